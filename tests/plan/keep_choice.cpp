// SPDX-License-Identifier: Apache-2.0
#include <expar/plan/keep_choice.hpp>

#include <limits>

#include <expar/plan/capacity.hpp>
#include <expar/plan/drop.hpp>
#include <expar/router/route.hpp>

#include "../support/catch.hpp"
#include "support.hpp"

using namespace drop_test;
using Catch::Matchers::WithinAbs;
using router_test::sentence_of;

namespace {

expar::host_context const ctx;

}  // namespace

TEMPLATE_TEST_CASE("a choice is kept by the rules of published systems", "[plan]", float, double,
                   expar::bfloat16) {
  drop_test::random rng(61);
  for (int round = 0; round < 200; ++round) {
    problem p(rng, 20);
    auto weights = matrix_of<TestType>(p.values, p.k, 1);  // 1/8 to 12/8
    std::vector<float> uniform(at(p.tokens));
    for (float& u : uniform) u = static_cast<float>(rng.integer(0, 15)) / 16;
    auto const u = expar::make_view(uniform.data(), p.tokens);
    int const choice = static_cast<int>(rng.integer(0, p.k - 1));
    id_matrix ids(p.ids, at(p.k)), kept(p.tokens, p.k, 2);
    auto const before = ids.data;
    auto const expect = [&](auto const& rule, auto keeps) {
      expar::keep_choice(ctx, ids.view(), weights.view(), choice, rule, kept.view());
      REQUIRE(ids.data == before);
      for (std::int64_t t = 0; t < p.tokens; ++t)
        for (int j = 0; j < p.k; ++j) {
          double const w = p.values[at(t)][at(j)];
          bool const stays = j != choice || keeps(w, static_cast<double>(uniform[at(t)]));
          REQUIRE(kept.rows()[at(t)][at(j)] == (stays ? p.ids[at(t)][at(j)] : -1));
        }
    };
    expect(expar::kept_above{.5}, [](double w, double) { return w > .5; });
    expect(expar::kept_above{router_test::inf}, [](double, double) { return false; });
    expect(expar::kept_above{-1}, [](double, double) { return true; });
    // NLLB: 2 * p > u
    expect(expar::kept_at_random{.5, u}, [](double w, double x) { return 2 * w > x; });
    // Mesh TensorFlow: u < w / max(threshold, 1e-9); here of a power of 2, exact in all types
    expect(expar::kept_at_random{2., u}, [](double w, double x) { return x < w / 2; });
    struct even_tokens {
      bool keeps(expar::accumulator_t<TestType>, expar::index_t t) const { return t % 2 == 0; }
    };
    expar::keep_choice(ctx, ids.view(), weights.view(), choice, even_tokens{}, ids.view());
    for (std::int64_t t = 0; t < p.tokens; ++t)
      REQUIRE(ids.rows()[at(t)][at(choice)] == (t % 2 == 0 ? p.ids[at(t)][at(choice)] : -1));
  }
}

TEST_CASE("the second choice is kept with the probability that the rule says", "[plan]") {
  drop_test::random rng(62);
  expar::index_t const tokens = 20000;
  id_matrix ids(tokens, 2), kept(tokens, 2);
  matrix<double> weights(tokens, 2);
  for (expar::index_t t = 0; t < tokens; ++t) {
    ids.data[at(2 * t)] = 0, ids.data[at(2 * t + 1)] = 1;
    weights.set(t, 0, .95), weights.set(t, 1, .05);
  }
  std::vector<double> uniform(at(tokens));
  for (double& u : uniform) u = rng.uniform();
  auto const share = [&](double divisor) {
    expar::keep_choice(ctx, ids.view(), weights.view(), 1,
                       expar::kept_at_random{divisor, expar::make_view(uniform.data(), tokens)},
                       kept.view());
    return static_cast<double>(std::count(kept.data.begin(), kept.data.end(), 1)) / 20000;
  };
  CHECK_THAT(share(.2), WithinAbs(.25, .02));
  CHECK_THAT(share(.5), WithinAbs(.1, .01));
  CHECK(share(.05) == 1);
  CHECK(share(1e-9) == 1);
}

TEMPLATE_TEST_CASE("Mesh TensorFlow drops second experts at random, then by position", "[plan]",
                   double, float) {
  double const tolerance = sizeof(TestType) == 8 ? 1e-12 : 1e-5;
  matrix<TestType> logits(std::vector<router_test::row_type>{{2.0, 1.0, 0.5, -1.0},
                                                             {1.5, 2.5, 0.0, 0.25},
                                                             {5.0, 0.75, 1.25, -0.5},
                                                             {1.75, 0.875, 2.25, 0.125}});
  std::vector<TestType> const uniform{TestType(.5), TestType(.25), TestType(.75), TestType(.125)};
  expar::routes<TestType> routes(4, 2);
  expar::route(
      ctx,
      expar::router({.experts = 4, .top_k = 2}, expar::softmax_score{}, expar::renormalize{1e-9}),
      logits.view(), routes);
  double const weights[4][2] = {{0.7310585777530867, 0.26894142104739494},
                                {0.731058577798746, 0.26894142106419205},
                                {0.9770226290954345, 0.022977369886636276},
                                {0.6224593304351561, 0.3775406683331193}};
  for (int t = 0; t < 4; ++t)
    for (int j = 0; j < 2; ++j)
      CHECK_THAT(static_cast<double>(routes.weights(t, j)), WithinAbs(weights[t][j], tolerance));
  id_matrix kept(4, 2);
  expar::keep_choice(ctx, routes.ids, routes.weights, 1,
                     expar::kept_at_random{.2, expar::make_view(uniform.data(), 4)}, kept.view());
  CHECK(kept.rows() == id_rows{{0, 1}, {1, 0}, {0, -1}, {2, 0}});
  counts dropped(4);
  expar::drop_to_capacity(ctx, kept.view(), 4, 2, expar::by_choice{}, kept.view(), dropped);
  CHECK(kept.rows() == id_rows{{0, 1}, {1, -1}, {0, -1}, {2, -1}});
  CHECK(dropped == counts{2, 0, 0, 0});
  expar::keep_choice(ctx, routes.ids, routes.weights, 1, expar::kept_above{.3}, kept.view());
  CHECK(kept.rows() == id_rows{{0, -1}, {1, -1}, {0, -1}, {2, 0}});
}

TEMPLATE_TEST_CASE("fastmoe drops by position, then second experts at random", "[plan]", double,
                   float) {
  double const tolerance = sizeof(TestType) == 8 ? 1e-12 : 1e-5;
  matrix<TestType> logits(std::vector<router_test::row_type>{{2.0, 1.0, 0.5, -1.0},
                                                             {1.5, 2.5, 0.0, 0.25},
                                                             {3.0, 0.75, 1.25, -0.5},
                                                             {1.75, 0.875, 2.25, 0.125}});
  std::vector<double> const uniform{.9, .2, .95, .1};
  expar::routes<TestType> routes(4, 2);
  expar::route(
      ctx,
      expar::router({.experts = 4, .top_k = 2}, expar::logit_score{}, expar::softmax_weights{}),
      logits.view(), routes);
  double const weights[4][2] = {{0.7310585786300049, 0.2689414213699951},
                                {0.7310585786300049, 0.2689414213699951},
                                {0.8519528019683106, 0.1480471980316895},
                                {0.6224593312018546, 0.37754066879814546}};
  for (int t = 0; t < 4; ++t)
    for (int j = 0; j < 2; ++j)
      CHECK_THAT(static_cast<double>(routes.weights(t, j)), WithinAbs(weights[t][j], tolerance));
  auto const capacity = expar::capacities::fastmoe_gshard(4, 4, 2, 1.2);
  CHECK(capacity == 2);
  id_matrix kept(4, 2);
  counts dropped(4);
  expar::drop_to_capacity(ctx, routes.ids, 4, capacity, expar::by_token{}, kept.view(), dropped);
  CHECK(kept.rows() == id_rows{{0, 1}, {1, 0}, {-1, 2}, {2, -1}});
  expar::keep_choice(ctx, kept.view(), routes.weights, 1,
                     expar::kept_at_random{.5, expar::make_view(uniform.data(), 4)}, kept.view());
  CHECK(kept.rows() == id_rows{{0, -1}, {1, 0}, {-1, -1}, {2, -1}});
}

TEST_CASE("the number of threads does not show in what is kept", "[plan]") {
  drop_test::random rng(63);
  expar::index_t const tokens = 40000;
  id_matrix ids(tokens, 2), one(tokens, 2), three(tokens, 2);
  matrix<float> weights(tokens, 2);
  for (auto& e : ids.data) e = static_cast<std::int32_t>(rng.integer(-1, 7));
  for (float& w : weights.data) w = static_cast<float>(rng.uniform());
  expar::keep_choice(ctx, ids.view(), weights.view(), 1, expar::kept_above{.4}, one.view());
  expar::keep_choice(expar::host_context(3), ids.view(), weights.view(), 1, expar::kept_above{.4},
                     three.view());
  CHECK(one.data == three.data);
}

TEST_CASE("keeping a choice refuses what does not fit", "[plan]") {
  id_matrix ids(id_rows{{0, 1}, {1, 2}}), kept(2, 2);
  matrix<float> weights(2, 2);
  std::vector<float> uniform(3);
  using expar::make_view;
  auto const keep = [&](auto const& i, auto const& w, int choice, auto const& rule, auto const& k) {
    return sentence_of([&] { expar::keep_choice(ctx, i, w, choice, rule, k); });
  };
  expar::kept_above const rule{0};
  CHECK(keep(make_view<std::int32_t>(nullptr, 2, 2), weights.view(), 1, rule, kept.view()) ==
        "expar: keep_choice: ids has 4 elements but its data is null");
  CHECK(keep(ids.view(), make_view<float>(nullptr, 2, 2), 1, rule, kept.view()) ==
        "expar: keep_choice: weights has 4 elements but its data is null");
  CHECK(keep(ids.view(), make_view(uniform.data(), 1, 2), 1, rule, kept.view()) ==
        "expar: keep_choice: weights has extent 1 in dimension 0, but the number of tokens is 2");
  CHECK(keep(ids.view(), make_view(uniform.data(), 2, 1), 1, rule, kept.view()) ==
        "expar: keep_choice: weights has extent 1 in dimension 1, but the number of choices per "
        "token is 2");
  CHECK(keep(ids.view(), weights.view(), 2, rule, kept.view()) ==
        "expar: keep_choice: choice is 2; a token has choices 0 to 1");
  CHECK(keep(ids.view(), weights.view(), -1, rule, kept.view()) ==
        "expar: keep_choice: choice is -1; a token has choices 0 to 1");
  CHECK(keep(ids.view(), weights.view(), 1, rule, make_view(kept.data.data(), 2, 1)) ==
        "expar: keep_choice: kept has extent 1 in dimension 1, but the number of choices per token "
        "is 2");
  auto const at_random = [&](double divisor, auto const& u) {
    return keep(ids.view(), weights.view(), 1, expar::kept_at_random{divisor, u}, kept.view());
  };
  CHECK(at_random(0, make_view(uniform.data(), 2)) ==
        "expar: keep_choice: divisor is 0; it is greater than 0");
  CHECK(at_random(std::numeric_limits<double>::quiet_NaN(), make_view(uniform.data(), 2)) ==
        "expar: keep_choice: divisor is nan; it is greater than 0");
  CHECK(at_random(.5, make_view(uniform.data(), 3)) ==
        "expar: keep_choice: uniform has extent 3 in dimension 0, but the number of tokens is 2");
  CHECK(at_random(.5, make_view<float>(nullptr, 2)) ==
        "expar: keep_choice: uniform has 2 elements but its data is null");
  CHECK(kept.data == std::vector<std::int32_t>(4, -7));
  std::vector<std::int32_t> shared{0, 1, 1, 2, -7, -7};
  CHECK(keep(make_view(shared.data(), 2, 2), weights.view(), 1, rule,
             make_view(shared.data() + 2, 2, 2)) ==
        "expar: keep_choice: kept overlaps ids in memory; it is that very tensor, or apart from "
        "it");
  auto* const as_ids = reinterpret_cast<std::int32_t*>(weights.data.data());
  CHECK(keep(ids.view(), weights.view(), 1, rule, make_view(as_ids, 2, 2)) ==
        "expar: keep_choice: kept overlaps weights in memory; the operation cannot work in place");
}
