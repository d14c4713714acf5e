// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/router/route.hpp>

#include <functional>

#include "../../support/catch.hpp"
#include "../support.hpp"

// Formulas of published routers, transcribed in float64 with nothing of the library.

namespace formula {

using router_test::inf;
using router_test::row_type;
using ids_type = std::vector<std::int32_t>;

struct choice {
  ids_type ids;
  row_type weights;
};

inline bool masked(double z) {
  return !(z > -inf);
}
inline std::size_t at(std::int32_t id) {
  return static_cast<std::size_t>(id);
}

inline row_type softmax(row_type const& z) {
  double most = -inf, sum = 0;
  for (double x : z)
    if (!masked(x)) most = std::max(most, x);
  row_type p;
  for (double x : z) p.push_back(masked(x) ? 0 : most == inf ? x == inf : std::exp(x - most));
  for (double x : p) sum += x;
  for (double& x : p) x = sum > 0 ? x / sum : 0;
  return p;
}
template <class Of>
row_type each(row_type const& z, Of of) {
  row_type s;
  for (double x : z) s.push_back(masked(x) ? 0 : of(x));
  return s;
}
inline row_type sigmoid(row_type const& z) {
  return each(z, [](double x) { return 1 / (1 + std::exp(-x)); });
}
inline row_type sqrt_softplus(row_type const& z) {
  return each(z, [](double x) {
    return x == inf ? 1e100 : std::sqrt(x > 30 ? x : std::log1p(std::exp(x)));
  });
}
/// Keys for what is not masked, -inf for the rest.
inline row_type keys(row_type const& z, row_type const& s, row_type const& bias = {}) {
  row_type key;
  for (std::size_t e = 0; e < z.size(); ++e)
    key.push_back(masked(z[e]) ? -inf : s[e] + (bias.empty() ? 0 : bias[e]));
  return key;
}

/// The k largest: value descending, then id ascending; -1 where there is none.
inline ids_type top(row_type const& key, int k) {
  ids_type order(key.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) {
    return (masked(key[at(a)]) ? -inf : key[at(a)]) > (masked(key[at(b)]) ? -inf : key[at(b)]);
  });
  order.resize(static_cast<std::size_t>(k));
  for (auto& id : order)
    if (masked(key[at(id)])) id = -1;
  return order;
}
/// Keys of the best groups alone, by the sum of the best_of largest keys of each; those of the
/// others, where they are not masked, become `other`.
inline row_type in_groups(row_type key, int groups, int top_groups, int best_of,
                          double other = -inf) {
  std::size_t const size = key.size() / static_cast<std::size_t>(groups);
  row_type sums;
  for (std::size_t g = 0; g < key.size(); g += size) {
    row_type run(key.begin() + static_cast<std::ptrdiff_t>(g),
                 key.begin() + static_cast<std::ptrdiff_t>(g + size));
    std::sort(run.rbegin(), run.rend());
    double sum = run[0];
    for (int i = 1; i < best_of; ++i)
      if (run[static_cast<std::size_t>(i)] > -inf) sum += run[static_cast<std::size_t>(i)];
    sums.push_back(sum);
  }
  ids_type order(sums.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](auto a, auto b) { return sums[at(a)] > sums[at(b)]; });
  for (std::size_t i = static_cast<std::size_t>(top_groups); i < order.size(); ++i)
    for (std::size_t e = 0; e < size; ++e)
      if (double& x = key[at(order[i]) * size + e]; x > -inf) x = other;
  return key;
}

/// Ids that somebody names, but for experts that are masked.
inline ids_type named(row_type const& z, ids_type ids) {
  for (auto& id : ids)
    if (id >= 0 && masked(z[at(id)])) id = -1;
  return ids;
}
inline row_type gather(row_type const& s, ids_type const& ids) {
  row_type w;
  for (auto id : ids) w.push_back(id < 0 ? 0 : s[at(id)]);
  return w;
}
inline row_type times(row_type w, double factor) {
  for (double& x : w) x *= factor;
  return w;
}
inline double sum(row_type const& w) {
  return std::accumulate(w.begin(), w.end(), 0.);
}
/// w / (sum + epsilon); 0 where that divides by 0.
inline row_type over_sum(row_type const& w, double epsilon = 0) {
  double const divisor = sum(w) + epsilon;
  return times(w, divisor == 0 ? 0 : 1 / divisor);
}
inline row_type over_sum_at_least(row_type const& w, double epsilon) {
  return times(w, 1 / std::max(sum(w), epsilon));
}
/// The softmax of the selected logits.
inline row_type softmax_of(row_type const& z, ids_type const& ids) {
  row_type chosen;
  for (auto id : ids) chosen.push_back(id < 0 ? -inf : z[at(id)]);
  return softmax(chosen);
}

/// What a formula makes of a token: its logits and the bias.
using rule = std::function<choice(row_type const& z, row_type const& bias)>;

/// Routes of random tokens, in double to 1e-12 and in float to 1e-5, agree with the rule.
template <class T, class Router>
void compare_as(Router const& r, rule const& by, bool specials) {
  using Catch::Matchers::WithinAbs;
  expar::host_context const ctx;
  router_test::random rng(17);
  for (int round = 0; round < 40; ++round) {
    row_type z = router_test::random_row(rng, r.experts), bias;
    for (double& x : z)
      if (!specials && !(std::abs(x) < 100)) x = .5;
    for (int e = 0; e < r.experts; ++e)
      bias.push_back(static_cast<double>(static_cast<float>(rng.normal() / 4)));
    router_test::matrix<T> logits(std::vector<row_type>{z});
    expar::routes<T> routes(1, r.top_k);
    if constexpr (Router::takes_bias)
      expar::route(ctx, r, logits.view(), bias, routes);
    else
      expar::route(ctx, r, logits.view(), routes);
    choice const expected = by(z, bias);
    ids_type const ids(routes.ids.data, routes.ids.data + r.top_k);
    CAPTURE(round, z, bias);
    REQUIRE(ids == expected.ids);
    for (int j = 0; j < r.top_k; ++j)
      REQUIRE_THAT(static_cast<double>(routes.weights(0, j)),
                   WithinAbs(expected.weights[static_cast<std::size_t>(j)],
                             std::is_same_v<T, double> ? 1e-12 : 1e-5 * (1 + expected.weights[0])));
  }
}
/// `specials`: also with logits of NaN and infinities.
template <class Router>
void compare(Router const& r, rule const& by, bool specials = true) {
  compare_as<double>(r, by, specials);
  compare_as<float>(r, by, specials);
}

}  // namespace formula
