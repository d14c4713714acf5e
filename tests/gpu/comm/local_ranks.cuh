// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include <expar/gpu/detail/launch.cuh>
#include <expar/gpu/exchange/ranks.cuh>

#include "gpu/device.cuh"
#include "support/catch.hpp"

namespace expar_test {

/// Every rank writes 100 * itself + peer into its place in the window of each peer, and adds up
/// what the peers have in the place of `this rank` there.
template <class View>
__global__ void write_peers(View const window) {
  for (int p = static_cast<int>(threadIdx.x); p < window.size(); p += 32)
    *static_cast<int*>(window.peer(p, 256 + sizeof(int) * static_cast<unsigned>(window.rank()))) =
        100 * window.rank() + p;
}
template <class View>
__global__ void read_peers(View const window, int* sum) {
  *sum = 0;
  for (int p = 0; p < window.size(); ++p)
    *sum += *static_cast<int*>(
        window.peer(p, 256 + sizeof(int) * static_cast<unsigned>(window.rank())));
}

template <class Group>
void require_windows_that_peers_write(Group& group) {
  int const n = group.size();
  auto window = group.allocate_window(256 + sizeof(int) * static_cast<unsigned>(n));
  auto moved = std::move(window);
  REQUIRE(moved.size_bytes() == 256 + sizeof(int) * static_cast<unsigned>(n));
  using view = decltype(moved.view(0));
  std::vector<std::unique_ptr<device_array<int>>> sums;
  for (int r = 0; r < n; ++r)
    group.on(r, [&](expar::gpu::context const& ctx) {
      sums.push_back(std::make_unique<device_array<int>>(std::vector<int>(1)));
      expar::gpu::detail::launch(ctx, "test", write_peers<view>, 1, 32, 0, moved.view(r));
    });
  group.exchange_phase();
  for (int r = 0; r < n; ++r)
    group.on(r, [&](expar::gpu::context const& ctx) {
      expar::gpu::detail::launch(ctx, "test", read_peers<view>, 1, 1, 0, moved.view(r),
                                 sums[static_cast<std::size_t>(r)]->data());
    });
  group.exchange_phase();
  for (int r = 0; r < n; ++r)
    group.on(r, [&](expar::gpu::context const& ctx) {
      require_success(cudaStreamSynchronize(ctx.stream()));
      REQUIRE(sums[static_cast<std::size_t>(r)]->read()[0] == 100 * r * n + n * (n - 1) / 2);
    });
}

/// An int array for every rank, of which entry i of rank r is f(r, i).
class arrays_of_ranks {
 public:
  template <class Group, class F>
  arrays_of_ranks(Group& group, std::vector<int> const& sizes, F f) {
    for (int r = 0; r < group.size(); ++r)
      group.on(r, [&](expar::gpu::context const&) {
        std::vector<int> values;
        for (int i = 0; i < sizes[static_cast<std::size_t>(r)]; ++i) values.push_back(f(r, i));
        arrays_.push_back(std::make_unique<device_array<int>>(values));
      });
  }
  std::vector<void const*> in() const {
    std::vector<void const*> all;
    for (auto const& a : arrays_) all.push_back(a->data());
    return all;
  }
  std::vector<void*> out() const {
    std::vector<void*> all;
    for (auto const& a : arrays_) all.push_back(a->data());
    return all;
  }
  template <class Group>
  std::vector<int> read(Group& group, int rank) const {
    std::vector<int> values;
    group.on(rank, [&](expar::gpu::context const& ctx) {
      require_success(cudaStreamSynchronize(ctx.stream()));
      values = arrays_[static_cast<std::size_t>(rank)]->read();
    });
    return values;
  }

 private:
  std::vector<std::unique_ptr<device_array<int>>> arrays_;
};

template <class Group>
void require_collectives(Group& group) {
  int const n = group.size();
  auto const ranks = static_cast<std::size_t>(n);
  auto const nothing = [](int, int) { return -1; };
  std::vector<int> const two(ranks, 2), two_each(ranks, 2 * n);

  arrays_of_ranks const a(group, two_each, [&](int r, int i) { return 100 * r + i; });
  arrays_of_ranks const b(group, two_each, nothing);
  group.all_to_all(a.in(), b.out(), 2 * sizeof(int));
  for (int p = 0; p < n; ++p) {
    std::vector<int> wanted;
    for (int s = 0; s < n; ++s)
      for (int i = 0; i < 2; ++i) wanted.push_back(100 * s + 2 * p + i);
    REQUIRE(b.read(group, p) == wanted);
  }

  arrays_of_ranks const c(group, two, [](int r, int i) { return 10 * r + i; });
  arrays_of_ranks const d(group, two_each, nothing);
  group.all_gather(c.in(), d.out(), 2 * sizeof(int));
  group.barrier();
  for (int p = 0; p < n; ++p) {
    std::vector<int> wanted;
    for (int s = 0; s < n; ++s) wanted.push_back(10 * s), wanted.push_back(10 * s + 1);
    REQUIRE(d.read(group, p) == wanted);
  }

  // Rank s sends (s + p) % 3 ints to rank p, none to some.
  auto const sent = [](int s, int p) { return (s + p) % 3; };
  std::vector<std::size_t> counts(ranks * ranks), from(counts), out_counts(counts), to(counts);
  std::vector<int> sizes(ranks);
  for (int r = 0; r < n; ++r) {
    int out = 0, in = 0;
    for (int p = 0; p < n; ++p) {
      auto const at = static_cast<std::size_t>(r * n + p);
      counts[at] = static_cast<std::size_t>(sent(r, p)) * sizeof(int);
      from[at] = static_cast<std::size_t>(out) * sizeof(int);
      out_counts[at] = static_cast<std::size_t>(sent(p, r)) * sizeof(int);
      to[at] = static_cast<std::size_t>(in) * sizeof(int);
      out += sent(r, p), in += sent(p, r);
    }
    sizes[static_cast<std::size_t>(r)] = out;  // sent(r, p) == sent(p, r)
  }
  arrays_of_ranks const e(group, sizes, [](int r, int i) { return 100 * r + i; });
  arrays_of_ranks const f(group, sizes, nothing);
  group.all_to_all_v(e.in(), counts, from, f.out(), out_counts, to);
  for (int p = 0; p < n; ++p) {
    std::vector<int> wanted;
    for (int s = 0; s < n; ++s)
      for (int i = 0; i < sent(s, p); ++i)
        wanted.push_back(100 * s + i +
                         static_cast<int>(from[static_cast<std::size_t>(s * n + p)] / sizeof(int)));
    REQUIRE(f.read(group, p) == wanted);
  }
}

}  // namespace expar_test
