// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstring>
#include <vector>

#include <expar/plan/plan.hpp>

#include "gpu/device.cuh"
#include "support/catch.hpp"
#include "support/one_rank.hpp"

namespace expar_test {

/// The size of a problem, and what is special in it.
struct shape {
  int tokens, k, experts, hidden;
  int gap = 0;               // elements between rows
  expar::index_t shift = 0;  // elements that device rows begin behind an aligned address
  double absent = .15;       // share of ids that are -1
  bool hot = false;          // one expert takes all
};

/// Whether all bytes are equal, gaps included.
template <class T>
bool same_bytes(grid<T>& a, grid<T>& b) {
  auto const v = a.view(), w = b.view();
  auto const n = static_cast<std::size_t>(v.extents[0] * v.strides[0]) * sizeof(T);
  return v.extents[0] == w.extents[0] && v.strides[0] == w.strides[0] &&
         (n == 0 || std::memcmp(v.data, w.data, n) == 0);
}

/// One problem with its plan on the host and on the device.
template <class Layout>
class two_plans {
 public:
  two_plans(shape const& s, Layout layout, std::uint64_t seed = 1)
      : size(s), random_(seed), ids_host_(make_ids()), ids_(ids_host_) {
    auto const view = [&](std::int32_t const* ids) {
      return expar::make_view(ids, size.tokens, expar::index_t{size.k});
    };
    host = expar::make_plan(on_host, view(ids_host_.data()), size.experts, layout);
    expar::gpu::make_plan(ctx, view(ids_.data()), size.experts, layout, device);
  }

  shape const size;
  own_stream const stream{};
  expar::gpu::context const ctx{stream};
  expar::host_context const on_host{};
  expar::route_plan host;
  expar::gpu::route_plan device{ctx};

  /// Values between 1/2 and 2 of either sign.
  template <class T>
  grid<T> values(expar::index_t rows, expar::index_t columns) {
    grid<T> g(rows, columns, size.gap);
    for (expar::index_t r = 0; r < rows; ++r)
      for (expar::index_t c = 0; c < columns; ++c)
        g.set(r, c, (random_.chance(.5) ? 1 : -1) * random_.uniform(.5, 2));
    return g;
  }
  /// A row for each row of the layout; NaN where no route may read.
  template <class T>
  grid<T> rows() {
    auto g = values<T>(host.rows(), size.hidden);
    for (int e = 0; e < size.experts; ++e)
      for (auto row = host.offsets()[static_cast<std::size_t>(e)] + host.kept(e);
           row < host.offsets()[static_cast<std::size_t>(e) + 1]; ++row)
        for (int c = 0; c < size.hidden; ++c) g.set(row, c, std::nan(""));
    return g;
  }
  template <class T>
  device_grid<T> on_device(grid<T> g) const {
    return device_grid<T>(g, size.shift);
  }
  /// What the device wrote, when it is done.
  template <class T>
  grid<T> back(device_grid<T> const& from, grid<T> like) const {
    stream.wait();
    from.read(like);
    return like;
  }

 private:
  std::vector<std::int32_t> make_ids() {
    std::vector<std::int32_t> ids;
    for (int i = 0; i < size.tokens * size.k; ++i)
      ids.push_back(random_.chance(size.absent) ? -1
                    : size.hot                  ? size.experts - 1
                               : static_cast<std::int32_t>(random_.integer(0, size.experts - 1)));
    return ids;
  }
  random random_;
  std::vector<std::int32_t> ids_host_;
  device_array<std::int32_t> ids_;
};

/// What weights of rows of T are made of here.
template <class T>
using weight_t = expar::accumulator_t<T>;

/// The kernel launches of f(), where they are counted; else what was expected.
template <class F>
unsigned long launches_of(unsigned long expected, F f) {
  auto const start = runtime_calls::now();
  f();
  auto const n = runtime_calls::now().since(start);
  // And no allocation, no free, no copy to the host, no wait.
  CHECK(n[1] + n[2] + n[3] + n[4] == 0);
  return runtime_calls::counted() ? n[0] : expected;
}

/// Shapes that between them take every path of the row kernels.
inline std::vector<shape> shapes() {
  std::vector<shape> all{
      {20, 2, 5, 16},                // widest accesses
      {9, 1, 3, 64, 2, 1},           // bases and pitches that allow fewer and fewer bytes
      {7, 4, 9, 40, 4, 2},           //
      {7, 6, 9, 40, 4, 4},           //
      {17, 3, 7, 33, 1},             // odd rows
      {6, 1, 4, 1},                  // one column
      {4, 6, 8, 1104},               // rows that several warps share
      {3, 40, 50, 24},               // more choices than lanes
      {0, 2, 4, 8},                  // no tokens
      {12, 2, 4, 8, 0, 0, 1},        // no experts
      {30, 1, 6, 8, 0, 0, 0, true},  // one expert takes all
      {10, 8, 8, 16, 8, 0, 0},       // every choice names an expert, some twice
  };
  return all;
}

/// d_weights[t,j] is <row(t,j), x[t]>, up to the rounding of every product and sum.
template <class T, class Plans>
void require_dots(Plans const& p, grid<T> const& rows, grid<T> const& x,
                  grid<weight_t<T>> const& d_weights) {
  bool holds = true;
  for (int t = 0; t < p.size.tokens; ++t)
    for (int j = 0; j < p.size.k; ++j) {
      auto const row = p.host.row(t, j);
      exact_sum dot;
      for (int h = 0; h < p.size.hidden && row >= 0; ++h) dot.add(rows.get(row, h) * x.get(t, h));
      holds = holds && dot.holds(d_weights.get(t, j), 0, sum_rounding<T>());
    }
  REQUIRE(holds);
}

/// Calls f(two_plans) for one shape in the layouts that differ.
template <class F>
void in_all_layouts(shape const& s, F f) {
  CAPTURE(s.tokens, s.k, s.experts, s.hidden, s.gap, s.shift);
  {
    two_plans p(s, expar::ragged{});
    f(p);
  }
  {
    two_plans p(s, expar::ragged{4});
    f(p);
  }
  {
    two_plans p(s, expar::fixed_capacity{.75, 2});  // drops, and fills
    f(p);
  }
}

}  // namespace expar_test
