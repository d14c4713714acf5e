// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <limits>
#include <vector>

#include <expar/plan/plan.hpp>

#include "grid.hpp"
#include "random.hpp"

namespace expar_test {

/// Half a unit in the last place of T, relative, and of the type that T's sums are made in.
template <class T>
constexpr double rounding() {
  if constexpr (std::is_same_v<T, double>)
    return std::numeric_limits<double>::epsilon() / 2;
  else if constexpr (std::is_same_v<T, float>)
    return std::numeric_limits<float>::epsilon() / 2;
  else
    return std::is_same_v<T, expar::half> ? 0x1p-11 : 0x1p-8;
}
template <class T>
constexpr double sum_rounding() {
  return rounding<expar::accumulator_t<T>>();
}

/// A sum in float64 with the bound on what rounding may do to it: every product and every addition
/// is rounded in the accumulator, the result once more in the type that it is stored in.
class exact_sum {
 public:
  void add(double term) {
    sum_ += term;
    size_ += std::abs(term);
    ++terms_;
  }
  bool holds(double got, double stored, double accumulated) const {
    double const inner = (terms_ + 1) * accumulated * size_;
    return std::abs(got - sum_) <= inner + stored * (std::abs(sum_) + inner) + 1e-300;
  }

 private:
  double sum_ = 0, size_ = 0;
  int terms_ = 0;
};

/// A random problem of one rank: any shape, pitched rows, values between 1/2 and 2 of either sign,
/// that a float holds.
template <class T>
struct one_rank {
  expar::host_context ctx;
  int experts, tokens, k, hidden, gap;
  std::vector<std::int32_t> ids;
  grid<T> x{0, 0};
  grid<double> weights{0, 0};

  explicit one_rank(std::uint64_t seed, int at_least = 0) : rng_(seed) {
    if (seed % 2 == 1) ctx.set_cache_bytes(0);  // rows are written past the caches
    experts = static_cast<int>(rng_.integer(1, 9));
    tokens = at_least + static_cast<int>(rng_.integer(0, 20));
    k = static_cast<int>(rng_.integer(1, 5));
    hidden = static_cast<int>(rng_.chance(.3) ? rng_.integer(60, 150) : rng_.integer(1, 10));
    gap = static_cast<int>(rng_.integer(0, 3));
    for (int i = 0; i < tokens * k; ++i)
      ids.push_back(static_cast<std::int32_t>(rng_.integer(-1, experts - 1)));
    x = random_grid<T>(tokens, hidden);
    weights = random_grid<double>(tokens, k);
  }

  expar::route_plan plan() {
    auto const v = expar::make_view(ids.data(), tokens, k);
    int const kind = static_cast<int>(rng_.integer(0, 2));
    if (kind == 0) return expar::make_plan(ctx, v, experts);
    if (kind == 1) return expar::make_plan(ctx, v, experts, expar::ragged{4});
    return expar::make_plan(ctx, v, experts, expar::fixed_capacity{.75, 2});
  }
  /// Rows as experts may leave them: what no route reads is NaN.
  grid<T> random_rows(expar::route_plan const& p) {
    auto rows = random_grid<T>(p.rows(), hidden);
    for (int e = 0; e < experts; ++e)
      for (auto row = p.offsets()[static_cast<std::size_t>(e)] + p.kept(e);
           row < p.offsets()[static_cast<std::size_t>(e) + 1]; ++row)
        for (int h = 0; h < hidden; ++h) rows.set(row, h, std::nan(""));
    return rows;
  }

 private:
  template <class U>
  grid<U> random_grid(expar::index_t rows, expar::index_t columns) {
    grid<U> g(rows, columns, gap);
    for (expar::index_t r = 0; r < rows; ++r)
      for (expar::index_t c = 0; c < columns; ++c)
        g.set(r, c, (rng_.chance(.5) ? 1 : -1) * static_cast<float>(rng_.uniform(.5, 2)));
    return g;
  }
  random rng_;
};

}  // namespace expar_test
