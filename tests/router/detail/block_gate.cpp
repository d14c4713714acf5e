// SPDX-License-Identifier: Apache-2.0
#include <expar/router/detail/block_gate.hpp>

#include <cstring>
#include <vector>

#include <expar/router/models.hpp>
#include <expar/router/route.hpp>

#include "../../support/catch.hpp"
#include "../support.hpp"

using router_test::inf;
using router_test::matrix;
using router_test::qnan;

namespace {

template <class A>
bool same_bits(A a, A b) {
  return std::memcmp(&a, &b, sizeof a) == 0;
}

/// route() gives each token what router::forward() gives it.
template <class Weight, class Logit, class Router>
void require_forward(Router const& r, matrix<Logit>& z, std::vector<float> const& bias,
                     int threads = 1) {
  using A = expar::accumulator_t<Logit>;
  static_assert(expar::detail::block_gate<Router, A>::possible);
  int const tokens = static_cast<int>(z.rows), k = r.top_k;
  expar::host_context const ctx(threads);
  expar::routes<Weight> routes(tokens, k);
  std::vector<A> wide_bias(bias.begin(), bias.end());
  if constexpr (Router::takes_bias) {
    if (bias.empty())
      expar::route(ctx, r, z.view(), expar::no_bias, routes);
    else
      expar::route(ctx, r, z.view(), bias, routes);
  } else {
    expar::route(ctx, r, z.view(), routes);
  }
  auto const size = static_cast<std::size_t>(r.experts);
  std::vector<A> row(size), scratch(static_cast<std::size_t>(r.forward_scratch())),
      w(static_cast<std::size_t>(k));
  std::vector<std::int32_t> ids(static_cast<std::size_t>(k));
  for (int t = 0; t < tokens; ++t) {
    for (int e = 0; e < r.experts; ++e) row[static_cast<std::size_t>(e)] = expar::widen(z.at(t, e));
    r.forward(static_cast<A const*>(row.data()),
              wide_bias.empty() || !Router::takes_bias ? nullptr
                                                       : static_cast<A const*>(wide_bias.data()),
              scratch.data(), ids.data(), w.data());
    bool same = true;
    for (int j = 0; j < k; ++j) {
      auto const at = static_cast<std::size_t>(j);
      auto const expected = expar::narrow<Weight>(static_cast<expar::accumulator_t<Weight>>(w[at]));
      same = same && routes.ids(t, j) == ids[at] && same_bits(routes.weights(t, j), expected);
    }
    if (same) continue;
    CAPTURE(t, k, r.experts, tokens, ids, w);
    REQUIRE(same);
  }
  REQUIRE(tokens > 0);
}

/// Logits that are all different, or tie, or are special.
template <class Logit>
matrix<Logit> logits_of(router_test::random& rng, int tokens, int experts, int gap) {
  matrix<Logit> z(tokens, experts, gap);
  for (int t = 0; t < tokens; ++t) {
    if (rng.chance(.5)) {
      auto const row = router_test::random_row(rng, experts);
      for (int e = 0; e < experts; ++e) z.set(t, e, row[static_cast<std::size_t>(e)]);
    } else {
      double const spread = rng.chance(.2) ? 1e-42 : rng.chance(.2) ? 60 : 1;
      for (int e = 0; e < experts; ++e) z.set(t, e, spread * rng.normal());
    }
  }
  return z;
}

template <class Logit, class Weight>
void compare(std::uint64_t seed, int rounds, int most_experts) {
  router_test::random rng(seed);
  for (int round = 0; round < rounds; ++round) {
    int const tokens = static_cast<int>(rng.integer(1, 50));
    int const experts = static_cast<int>(rng.integer(1, rng.chance(.5) ? 40 : most_experts));
    int k =
        rng.chance(.15) ? experts : static_cast<int>(rng.integer(1, experts < 20 ? experts : 20));
    auto z = logits_of<Logit>(rng, tokens, experts, static_cast<int>(rng.integer(0, 5)));
    std::vector<float> bias;
    if (rng.chance(.8))
      for (int e = 0; e < experts; ++e)
        bias.push_back(rng.chance(.03)  ? static_cast<float>(rng.chance(.5) ? -inf : qnan)
                       : rng.chance(.3) ? 0.f
                                        : static_cast<float>(rng.uniform(-.3, .3)));
    int const threads = static_cast<int>(rng.integer(1, 3));
    auto const check = [&](auto... steps) {
      require_forward<Weight>(expar::router({experts, k}, steps...), z, bias, threads);
    };
    namespace e = expar;
    check(e::softmax_score{}, e::score_key{}, e::renormalize{});
    check(e::softmax_score{});
    check(e::softmax_score{}, e::biased_key{},
          e::renormalize{1e-3, e::renormalize::guard::at_least, false}, e::scale{2.5});
    check(e::sigmoid_score{}, e::biased_key{}, e::renormalize{1e-20}, e::scale{2.5});
    check(e::sigmoid_score{}, e::normalize{2});
    check(e::logit_score{}, e::softmax_weights{});
    check(e::logit_score{}, e::sigmoid_weights{}, e::on_input{});
    check(e::relu_score{}, e::equal_weights{});
    check(e::sqrt_softplus_score{}, e::biased_logit_key{}, e::renormalize{});
    for (int groups = 1; groups <= experts; ++groups) {
      if (experts % groups != 0 || rng.chance(.5)) continue;
      int const size = experts / groups;
      int const top_groups = static_cast<int>(rng.integer((k + size - 1) / size, groups));
      for (int best_of = 1; best_of <= (size < 3 ? size : 3); ++best_of) {
        e::group_limited const limit{groups, top_groups, best_of, rng.chance(.5)};
        check(e::sigmoid_score{}, e::biased_key{}, limit, e::renormalize{1e-20}, e::scale{2.5});
        check(e::softmax_score{}, e::score_key{}, limit);
        // Two limits, of which blocks may fit the one and not the other.
        check(e::sigmoid_score{}, e::biased_key{}, limit, e::group_limited{1, 1, 1});
        check(e::sigmoid_score{}, e::biased_key{}, e::group_limited{1, 1, 1}, limit);
      }
    }
  }
}

}  // namespace

TEST_CASE("blocks of tokens have the bits of single tokens", "[router]") {
  compare<float, float>(1, 60, 140);
  compare<float, expar::bfloat16>(2, 10, 140);
  compare<expar::bfloat16, float>(3, 20, 140);
  compare<expar::half, expar::half>(4, 10, 140);
  compare<double, double>(5, 15, 100);
  compare<router_test::fixed16, double>(6, 10, 100);
}

/// A policy that takes the number of choices as whatever it is given, and counts it down.
struct halved {
  void operator()(std::int32_t const*, auto* w, auto k) const {
    while (k-- > 0) w[k] /= 2;
  }
  void vjp(std::int32_t const*, auto const*, auto const*, auto* d, auto k) const {
    while (k-- > 0) d[k] /= 2;
  }
};

TEST_CASE("blocks of 8 experts have the bits of single tokens", "[router]") {
  router_test::random rng(8);
  for (int round = 0; round < 150; ++round) {
    auto z = logits_of<float>(rng, static_cast<int>(rng.integer(1, 70)), 8, rng.chance(.1) ? 1 : 0);
    int const k = static_cast<int>(rng.integer(1, 3)),
              threads = static_cast<int>(rng.integer(1, 3));
    auto const check = [&](auto... steps) {
      require_forward<float>(expar::router({8, k}, steps...), z, {}, threads);
      require_forward<expar::bfloat16>(expar::router({8, k}, steps...), z, {}, threads);
    };
    check(expar::softmax_score{});
    check(expar::softmax_score{}, expar::renormalize{});
    check(expar::logit_score{}, expar::softmax_weights{}, halved{});
    check(expar::logit_score{}, expar::sigmoid_weights{});
    check(expar::sigmoid_score{}, expar::normalize{2}, expar::scale{2.5});
  }
}

TEST_CASE("blocks select among many experts", "[router]") {
  router_test::random rng(7);
  for (int experts : {256, 384, 500, 513, 1024, 1500})
    for (int k : {1, 6, 8, 9, 16, 17}) {
      auto z = logits_of<float>(rng, 37, experts, 3);
      require_forward<float>(expar::models::mixtral({experts, k}), z, {});
      auto halves = logits_of<expar::bfloat16>(rng, 19, experts, 0);
      require_forward<float>(expar::models::mixtral({experts, k}), halves, {});
      std::vector<float> bias(static_cast<std::size_t>(experts));
      for (float& b : bias) b = static_cast<float>(.1 * rng.normal());
      require_forward<float>(expar::models::glm_4_5({.experts = experts, .top_k = k}), z, bias);
    }
  auto z = logits_of<float>(rng, 300, 256, 0);
  std::vector<float> bias(256);
  for (float& b : bias) b = static_cast<float>(.1 * rng.normal());
  for (int threads : {1, 3}) require_forward<float>(expar::models::deepseek_v3(), z, bias, threads);
}

TEST_CASE("more keys at the threshold than slots leave the lower experts", "[router]") {
  matrix<float> z(33, 200);
  for (int t = 0; t < 33; ++t)
    for (int e = 0; e < 200; ++e) z.set(t, e, e % (t + 1) == 0 ? 1 : e % 2 == 0 ? 0. : -0.);
  require_forward<float>(expar::models::mixtral({200, 8}), z, {});
  require_forward<float>(expar::models::mixtral({200, 12}), z, {});
  matrix<float> masked(20, 100);
  for (int t = 0; t < 20; ++t)
    for (int e = 0; e < 100; ++e) masked.set(t, e, e % 20 < t ? e : t % 2 == 0 ? -inf : qnan);
  require_forward<float>(expar::models::mixtral({100, 8}), masked, {});
  require_forward<float>(expar::models::glm_4_5({.experts = 100, .top_k = 8}), masked, {});
}
