// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/add_to.hpp>

#include "../support/catch.hpp"
#include "support.hpp"

namespace router_test {

using mask = std::vector<std::uint8_t>;

/// Logits of any kind but +inf, which has no differences.
inline matrix<double> random_logits(random& rng, int tokens, int experts) {
  matrix<double> z(tokens, experts, 1);
  for (int t = 0; t < tokens; ++t) {
    row_type const row = random_row(rng, experts);
    for (int e = 0; e < experts; ++e) {
      double const x = row[static_cast<std::size_t>(e)];
      z.set(t, e, x == inf ? 2 : x);
    }
  }
  return z;
}
inline mask random_mask(random& rng, int tokens) {
  mask m;
  for (int t = 0; t < tokens; ++t) m.push_back(rng.chance(.8));
  return m;
}
inline double valid_tokens(mask const& valid) {
  return std::max(1., static_cast<double>(std::count(valid.begin(), valid.end(), 1)));
}
template <class T>
matrix<T> filled(expar::index_t rows, expar::index_t columns, double x, expar::index_t gap = 0) {
  matrix<T> m(rows, columns, gap);
  for (expar::index_t r = 0; r < rows; ++r)
    for (expar::index_t c = 0; c < columns; ++c) m.set(r, c, x);
  return m;
}

/// The gradient that backward(d) writes over whatever d holds; add_to(d) adds the same to it.
template <class F>
matrix<double> gradient_of(expar::index_t rows, expar::index_t columns, F backward) {
  auto d = filled<double>(rows, columns, 77, 2), sum = filled<double>(rows, columns, 3, 1);
  backward(d.view());
  backward(expar::add_to(sum.view()));
  for (expar::index_t r = 0; r < rows; ++r)
    for (expar::index_t c = 0; c < columns; ++c) REQUIRE(sum.get(r, c) == 3 + d.get(r, c));
  return d;
}

/// Requires that d is `before` and the central differences of loss(), which reads z.
template <class F>
void require_gradient(matrix<double>& z, matrix<double>& d, double before, F loss,
                      double tolerance = 1e-7) {
  constexpr double step = 1e-5;
  for (expar::index_t t = 0; t < z.rows; ++t)
    for (expar::index_t e = 0; e < z.columns; ++e) {
      double const at = z.get(t, e);
      if (!(at > -inf)) {
        REQUIRE(d.get(t, e) == before);
        continue;
      }
      z.set(t, e, at + step);
      double const above = loss();
      z.set(t, e, at - step);
      double const below = loss();
      z.set(t, e, at);
      CAPTURE(t, e);
      REQUIRE_THAT(d.get(t, e),
                   Catch::Matchers::WithinAbs(before + (above - below) / (2 * step), tolerance));
    }
}

}  // namespace router_test
