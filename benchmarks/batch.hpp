// SPDX-License-Identifier: Apache-2.0
// A batch that the row movers run on, and what their results must be.
#pragma once

#include <limits/rows.hpp>
#include <peers/rows.hpp>
#include <problem.hpp>

#include <expar/permute/decode.hpp>
#include <expar/permute/encode.hpp>

namespace benchmarks {

template <class T>
class batch {
 public:
  batch(shape s, int threads)
      : ctx(threads),
        s_(s),
        ids_(draw_ids(s)),
        x(index_t{s.tokens} * s.hidden),
        out(x.size()),
        rows(x.size() * s.top_k),
        weights(index_t{s.tokens} * s.top_k),
        sources_(ids_.size()),
        rows_of_(ids_.size()) {
    expar::make_plan(ctx, expar::make_view(ids_.data(), s.tokens, s.top_k), s.experts,
                     expar::ragged{}, plan);
    for (index_t route = 0; route < weights.size(); ++route) {
      index_t const row = plan.row(route / s.top_k, static_cast<int>(route % s.top_k));
      rows_of_[size_of(route)] = row, sources_[size_of(row)] = route;
    }
  }

  expar::host_context ctx;
  expar::route_plan plan;

 private:
  shape s_;
  std::vector<std::int32_t> ids_;

 public:
  array<T> x, out, rows;
  array<float> weights;
  array<T> d_rows;  // these where something goes backward
  array<float> d_weights;
  void goes_backward() { d_rows = array<T>(rows.size()), d_weights = array<float>(weights.size()); }

  auto view(array<T> const& a) const {
    return expar::make_view(a.data(), a.size() / s_.hidden, index_t{s_.hidden});
  }
  auto view_of_routes(array<float> const& a) const {
    return expar::make_view(a.data(), s_.tokens, s_.top_k);
  }
  limits::extent extent() const { return {s_.hidden, s_.top_k}; }
  peers::routing routing() const {
    return {sources_.data(), rows_of_.data(), s_.tokens, s_.hidden, s_.top_k};
  }

  template <class F>  // f(first, last)
  void each_token(F f) const {
    ctx.for_each_chunk(s_.tokens, 1, [&](int, index_t first, index_t last) { f(first, last); });
  }

  /// Where rows stand: by the plan, or by the route as limits have them.
  enum class order { plan, route };

  bool rows_are_tokens(order by) const {
    return each_route([&](index_t route) {
      return std::memcmp(row(rows, route, by), token(x, route / s_.top_k),
                         size_of(s_.hidden) * sizeof(T)) == 0;
    });
  }
  /// out is the sum over rows; each was rounded `times` times.
  bool out_is_sum(order by, bool weighted, int times = 1) const {
    std::vector<float> sum(size_of(s_.hidden));
    for (index_t t = 0; t < s_.tokens; ++t) {
      std::fill(sum.begin(), sum.end(), 0.0f);
      for (int j = 0; j < s_.top_k; ++j) {
        index_t const route = t * s_.top_k + j;
        T const* const r = row(rows, route, by);
        float const weight = weighted ? weights.data()[route] : 1.0f;
        for (index_t h = 0; h < s_.hidden; ++h) sum[size_of(h)] += weight * expar::widen(r[h]);
      }
      T const* const o = token(out, t);
      int wrong = 0;
      for (index_t h = 0; h < s_.hidden; ++h)
        wrong += !close(expar::widen(o[h]), sum[size_of(h)], tolerance<T>(times));
      if (wrong != 0) return false;
    }
    return true;
  }
  /// d_rows and d_weights are the adjoint of the weighted sum, x the gradient of it.
  bool gradients_are_right(order by) const {
    return each_route([&](index_t route) {
      T const* const d = token(x, route / s_.top_k);
      T const* const r = row(rows, route, by);
      T const* const d_r = row(d_rows, route, by);
      float const weight = weights.data()[route];
      int wrong = 0;
      double product = 0;
      for (index_t h = 0; h < s_.hidden; ++h) {
        wrong += !close(expar::widen(d_r[h]), weight * expar::widen(d[h]), tolerance<T>());
        product += expar::widen(d[h]) * expar::widen(r[h]);
      }
      return wrong == 0 && close(d_weights.data()[route], product, 1e-4);
    });
  }

 private:
  T const* token(array<T> const& a, index_t t) const { return a.data() + t * s_.hidden; }
  T const* row(array<T> const& a, index_t route, order by) const {
    return a.data() + (by == order::plan ? rows_of_[size_of(route)] : route) * s_.hidden;
  }
  template <class F>
  bool each_route(F right) const {
    for (index_t route = 0; route < weights.size(); ++route)
      if (!right(route)) return false;
    return true;
  }

  std::vector<index_t> sources_, rows_of_;
};

}  // namespace benchmarks
