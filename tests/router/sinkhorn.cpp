// SPDX-License-Identifier: Apache-2.0
#include <expar/router/sinkhorn.hpp>

#include <expar/router/route.hpp>

#include "../support/catch.hpp"
#include "support.hpp"

using Catch::Matchers::WithinAbs;
using Catch::Matchers::WithinRel;
using router_test::inf;
using router_test::matrix;
using router_test::qnan;
using router_test::row_type;
using router_test::sentence_of;

namespace {

expar::host_context const ctx;

template <class T>
constexpr double accuracy = std::is_same_v<T, double> ? 1e-12 : 1e-5;

/// As it is published, without a shift. Returns the number of iterations.
int by_definition(matrix<double>& z, double tolerance, double epsilon,
                  std::vector<row_type>& plan) {
  auto const tokens = static_cast<std::size_t>(z.rows),
             experts = static_cast<std::size_t>(z.columns);
  plan.assign(tokens, row_type(experts));
  for (std::size_t t = 0; t < tokens; ++t)
    for (std::size_t e = 0; e < experts; ++e) {
      double const x = z.get(static_cast<expar::index_t>(t), static_cast<expar::index_t>(e));
      plan[t][e] = std::isnan(x) ? 0 : std::exp(x);
    }
  row_type d0(tokens), d1(experts, 1);
  double error = 1e9;
  int iterations = 0;
  for (; error > tolerance; ++iterations) {
    for (std::size_t t = 0; t < tokens; ++t) {
      double sum = 0;
      for (std::size_t e = 0; e < experts; ++e) sum += d1[e] * plan[t][e];
      d0[t] = 1. / static_cast<double>(tokens) / (sum + epsilon);
    }
    error = 0;
    for (std::size_t e = 0; e < experts; ++e) {
      double sum = 0;
      for (std::size_t t = 0; t < tokens; ++t) sum += d0[t] * plan[t][e];
      double const next = 1. / static_cast<double>(experts) / (sum + epsilon);
      error += std::fabs(next - d1[e]) / static_cast<double>(experts);
      d1[e] = next;
    }
  }
  for (std::size_t t = 0; t < tokens; ++t)
    for (std::size_t e = 0; e < experts; ++e) plan[t][e] *= d0[t] * d1[e];
  return iterations;
}

}  // namespace

TEMPLATE_TEST_CASE("Megatron: a Sinkhorn plan, and what is selected by it", "[router][cases]",
                   double, float) {
  using T = TestType;
  matrix<T> z(std::vector<row_type>{{2.0, 1.0, 0.5, -1.0},
                                    {1.5, 2.5, 0.0, 0.25},
                                    {3.0, 0.75, 1.25, -0.5},
                                    {1.75, 0.875, 2.25, 0.125}}),
      plan(4, 4, 1);
  auto const result = expar::sinkhorn(ctx, z.view(), {}, plan.view());
  REQUIRE(result.iterations == 6);
  REQUIRE(result.converged);
  double const expected[4][4] = {
      {0.08145226082902189, 0.06548921131492526, 0.05090746573889421, 0.05215041964116539},
      {0.022222701913728594, 0.1320238647091986, 0.013889134872186489, 0.08187793260548883},
      {0.11873630759861137, 0.027351557007779626, 0.05779473186636917, 0.04610955835661412},
      {0.02758872514432166, 0.025135357101824164, 0.12740865487774738, 0.0698620313430039}};
  for (int t = 0; t < 4; ++t)
    for (int e = 0; e < 4; ++e)
      REQUIRE_THAT(plan.get(t, e), WithinAbs(expected[t][e], accuracy<T>));

  expar::given_keys const keys{expar::tensor_view<T const, 2>(plan.view())};
  expar::routes<T> one(4, 1), two(4, 2), eval(4, 1);
  expar::route(ctx, expar::router({4, 1}, expar::sigmoid_score{}, keys), z.view(), one);
  expar::route(ctx, expar::router({4, 2}, expar::softmax_score{}, keys), z.view(), two);
  expar::route(ctx, expar::router({4, 1}, expar::sigmoid_score{}), z.view(), eval);
  int const ids[4][2] = {{0, 1}, {1, 3}, {0, 2}, {2, 3}};
  double const sigmoids[] = {0.8807970779778823, 0.9241418199787566, 0.9525741268224334,
                             0.9046505351008906};
  double const softmaxes[4][2] = {{0.6094600375988771, 0.22420781804820114},
                                  {0.642936454615761, 0.06776500375905549},
                                  {0.7637257450951053, 0.13271563443980589},
                                  {0.5053559585817142, 0.060356162164687546}};
  for (int t = 0; t < 4; ++t) {
    REQUIRE(one.ids(t, 0) == ids[t][0]);
    REQUIRE(eval.ids(t, 0) == ids[t][0]);
    REQUIRE_THAT(static_cast<double>(one.weights(t, 0)), WithinAbs(sigmoids[t], accuracy<T>));
    for (int j = 0; j < 2; ++j) {
      REQUIRE(two.ids(t, j) == ids[t][j]);
      REQUIRE_THAT(static_cast<double>(two.weights(t, j)), WithinAbs(softmaxes[t][j], accuracy<T>));
    }
  }
}

TEST_CASE("a Sinkhorn plan agrees with the definition", "[router]") {
  router_test::random rng(171);
  for (int round = 0; round < 60; ++round) {
    int const tokens = static_cast<int>(rng.integer(1, round < 50 ? 9 : 300));
    int const experts = static_cast<int>(rng.integer(1, 9));
    matrix<double> z(tokens, experts, 1), plan(tokens, experts, 2);
    for (double& x : z.data) x = rng.chance(.05) ? (rng.chance(.5) ? qnan : -inf) : rng.normal();
    expar::sinkhorn_options const o{
        .tolerance = rng.uniform(1e-5, 1e-2), .epsilon = 1e-4, .max_iterations = 1000000};
    std::vector<row_type> expected;
    int const iterations = by_definition(z, o.tolerance, o.epsilon, expected);
    REQUIRE(expar::sinkhorn(ctx, z.view(), o, plan.view()).iterations == iterations);
    for (int t = 0; t < tokens; ++t)
      for (int e = 0; e < experts; ++e)
        REQUIRE_THAT(
            plan.get(t, e),
            WithinAbs(expected[static_cast<std::size_t>(t)][static_cast<std::size_t>(e)], 1e-12));
  }
}

TEST_CASE("tokens that are not valid have no part in a Sinkhorn plan", "[router]") {
  router_test::random rng(176);
  for (int round = 0; round < 20; ++round) {
    int const tokens = static_cast<int>(rng.integer(1, 200)), experts = 5;
    std::vector<std::uint8_t> valid;
    for (int t = 0; t < tokens; ++t) valid.push_back(rng.chance(round == 0 ? 0 : .7));
    matrix<double> z(tokens, experts, 1), plan(tokens, experts);
    std::vector<row_type> rows;
    for (int t = 0; t < tokens; ++t) {
      for (int e = 0; e < experts; ++e) z.set(t, e, rng.normal());
      if (valid[static_cast<std::size_t>(t)] != 0)
        rows.push_back(z.row(t));
      else
        z.set(t, 0, qnan), z.set(t, 1, inf), z.set(t, 2, 1e300);
    }
    for (double& x : plan.data) x = 77;
    auto const result = expar::sinkhorn(ctx, expar::only(valid, z.view()), {}, plan.view());
    auto const n = static_cast<expar::index_t>(rows.size());
    matrix<double> some(n, experts), expected(n, experts);
    for (expar::index_t t = 0; t < n; ++t)
      for (int e = 0; e < experts; ++e)
        some.set(t, e, rows[static_cast<std::size_t>(t)][static_cast<std::size_t>(e)]);
    auto const of_some = expar::sinkhorn(ctx, some.view(), {}, expected.view());
    REQUIRE(result.iterations == of_some.iterations);
    REQUIRE(result.converged == of_some.converged);
    expar::index_t at = 0;
    for (int t = 0; t < tokens; ++t) {
      bool const counts = valid[static_cast<std::size_t>(t)] != 0;
      for (int e = 0; e < experts; ++e)
        REQUIRE_THAT(plan.get(t, e), WithinAbs(counts ? expected.get(at, e) : 0, 1e-14));
      at += counts;
    }
  }
}

TEST_CASE("a Sinkhorn plan has equal shares", "[router]") {
  router_test::random rng(172);
  matrix<float> z(40, 8);
  matrix<double> plan(40, 8);
  for (float& x : z.data) x = static_cast<float>(3 * rng.normal());
  REQUIRE(expar::sinkhorn(ctx, z.view(), {.tolerance = 1e-10, .epsilon = 1e-12}, plan.view())
              .converged);
  for (int t = 0; t < 40; ++t) {
    auto const row = plan.row(t);
    REQUIRE_THAT(std::accumulate(row.begin(), row.end(), 0.), WithinAbs(1. / 40, 1e-9));
  }
  for (int e = 0; e < 8; ++e) {
    double sum = 0;
    for (int t = 0; t < 40; ++t) sum += plan.get(t, e);
    REQUIRE_THAT(sum, WithinAbs(1. / 8, 1e-9));
  }
}

TEST_CASE("no logit is too large for a Sinkhorn plan", "[router]") {
  router_test::random rng(173);
  matrix<double> z(12, 5), high(12, 5), plan(12, 5), high_plan(12, 5);
  for (int t = 0; t < 12; ++t)
    for (int e = 0; e < 5; ++e) {
      z.set(t, e, static_cast<double>(rng.integer(-8, 8)) / 4);
      high.set(t, e, z.get(t, e) + 1000 * t);
    }
  expar::sinkhorn_options const o{.epsilon = 1e-30};
  expar::sinkhorn(ctx, z.view(), o, plan.view());
  expar::sinkhorn(ctx, high.view(), o, high_plan.view());
  for (int t = 0; t < 12; ++t)
    for (int e = 0; e < 5; ++e) REQUIRE_THAT(high_plan.get(t, e), WithinAbs(plan.get(t, e), 1e-14));

  matrix<float> special(std::vector<row_type>{
      {inf, 1, 2}, {3e38, -3e38, 0}, {-3e38, -3e38, -inf}, {qnan, qnan, -inf}, {0, 1, 2}});
  matrix<float> out(5, 3);
  expar::sinkhorn(ctx, special.view(), {}, out.view());
  for (float x : out.data) REQUIRE(std::isfinite(x));
  REQUIRE(out.row(3) == row_type{0, 0, 0});
  REQUIRE(out.get(0, 0) > 0);
  REQUIRE(out.get(0, 1) == 0);
}

TEST_CASE("a Sinkhorn plan ends where it may not go on, and of nothing at once", "[router]") {
  router_test::random rng(174);
  matrix<float> z(20, 4), plan(20, 4);
  for (float& x : z.data) x = static_cast<float>(3 * rng.normal());
  auto const capped =
      expar::sinkhorn(ctx, z.view(), {.tolerance = 0, .max_iterations = 3}, plan.view());
  REQUIRE(capped.iterations == 3);
  REQUIRE_FALSE(capped.converged);
  auto const none = expar::sinkhorn(ctx, expar::make_view(z.data.data(), 0, 4), {},
                                    expar::make_view(plan.data.data(), 0, 4));
  REQUIRE(none.iterations == 0);
  REQUIRE(none.converged);
}

TEST_CASE("the number of threads does not show in a Sinkhorn plan", "[router]") {
  router_test::random rng(175);
  matrix<float> z(1000, 7), one(1000, 7), three(1000, 7);
  for (float& x : z.data) x = static_cast<float>(rng.normal());
  expar::host_context const threads(3);
  expar::sinkhorn(ctx, z.view(), {}, one.view());
  expar::sinkhorn(threads, z.view(), {}, three.view());
  REQUIRE(one.data == three.data);
  expar::sinkhorn(ctx, z.view(), {}, z.view());
  REQUIRE(one.data == z.data);
}

TEST_CASE("a Sinkhorn plan refuses what does not fit", "[router]") {
  matrix<float> z(2, 3), plan(2, 3), wide(2, 4);
  auto const make = [&](expar::sinkhorn_options const& o, auto& to) {
    return sentence_of([&] { expar::sinkhorn(ctx, z.view(), o, to.view()); });
  };
  REQUIRE(make({}, wide) ==
          "expar: sinkhorn: plan has extent 4 in dimension 1, but the number of experts is 3");
  REQUIRE(make({.tolerance = -1}, plan) == "expar: sinkhorn: tolerance is -1; it is at least 0");
  REQUIRE(make({.epsilon = 0}, plan) == "expar: sinkhorn: epsilon is 0; it is above 0");
  REQUIRE(make({.max_iterations = 0}, plan) ==
          "expar: sinkhorn: max_iterations is 0; it is at least 1");
  REQUIRE(
      sentence_of([&] {
        expar::sinkhorn(ctx, expar::only(std::vector<std::uint8_t>{1}, z.view()), {}, plan.view());
      }) == "expar: sinkhorn: valid has extent 1 in dimension 0, but the number of tokens is 2");
}
