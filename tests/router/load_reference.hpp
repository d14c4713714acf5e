// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/router/cv_squared.hpp>
#include <expar/router/smooth_load.hpp>

#include "support.hpp"

namespace router_test {

/// The probabilities of one token: each expert's threshold is the k-th of a sorted list.
inline row_type load_probabilities(row_type const& c, row_type const& h, row_type const& sigma,
                                   int k, expar::load_threshold threshold) {
  auto const there = [&](std::size_t e) { return c[e] > -inf && h[e] > -inf; };
  row_type p(c.size(), 0);
  for (std::size_t e = 0; e < c.size(); ++e) {
    if (!there(e)) continue;
    row_type list;
    for (std::size_t o = 0; o < c.size(); ++o)
      if (there(o) && (threshold == expar::load_threshold::kth || o != e)) list.push_back(h[o]);
    std::sort(list.rbegin(), list.rend());
    auto const n = static_cast<std::size_t>(k);
    p[e] =
        list.size() < n ? 1 : (1 + std::erf((c[e] - list[n - 1]) / sigma[e] / std::sqrt(2.))) / 2;
  }
  return p;
}

/// cv_squared() of x.
inline double variation(row_type const& x, expar::cv_squared_options const& o) {
  double const n = static_cast<double>(x.size());
  double sum = 0, squares = 0;
  for (double v : x) sum += v, squares += v * v;
  double const divisor = sum / n * (sum / n) + o.epsilon;
  return x.size() > 1 && divisor > 0
             ? o.coefficient * (squares - sum * sum / n) / (n - o.ddof) / divisor
             : 0;
}

}  // namespace router_test
