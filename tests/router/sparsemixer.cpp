// SPDX-License-Identifier: Apache-2.0
#include <expar/router/sparsemixer.hpp>

#include <expar/router/random.hpp>
#include <expar/router/route.hpp>

#include "../support/catch.hpp"
#include "support.hpp"

using Catch::Matchers::WithinAbs;
using router_test::inf;
using router_test::matrix;
using router_test::qnan;
using router_test::row_type;
using router_test::sentence_of;

namespace {

expar::host_context const ctx;

template <class T>
constexpr double accuracy = std::is_same_v<T, double> ? 1e-12 : 1e-5;

struct choice {
  int id;
  double weight;
  row_type gates;
};

/// One stage as it is published: masks as -inf, softmax of what is left.
choice stage_by_definition(row_type const& scores, row_type live, double jitter,
                           row_type const* noise, bool heun) {
  std::size_t const n = scores.size();
  auto const argmax = [n](row_type const& v) {
    std::size_t best = 0;
    for (std::size_t e = 1; e < n; ++e)
      if (v[e] > v[best]) best = e;
    return best;
  };
  std::size_t const best = argmax(live);
  double const most = live[best];
  if (most == -inf) return {-1, 0, row_type(n, 0)};
  for (std::size_t e = 0; e < n; ++e)
    if ((most - scores[e]) / std::max(std::fabs(scores[e]), most) > 2 * jitter) live[e] = -inf;
  std::size_t chosen = best;
  if (noise != nullptr) {
    row_type noisy = live;
    for (std::size_t e = 0; e < n; ++e) noisy[e] += (*noise)[e];
    chosen = argmax(noisy);
  }
  row_type gates;
  double sum = 0;
  for (double x : live) sum += std::exp(x - most);
  for (double x : live) gates.push_back(std::exp(x - most) / sum);
  double const factor = noise == nullptr || chosen == best || heun ? 1 : 0.3333;
  return {static_cast<int>(chosen), gates[chosen] * factor, gates};
}

std::vector<choice> by_definition(row_type scores, double jitter, row_type const* first,
                                  row_type const* second, std::uint8_t const* heun) {
  for (double& x : scores)
    if (std::isnan(x)) x = -inf;
  std::vector<choice> out;
  out.push_back(stage_by_definition(scores, scores, jitter, first, heun != nullptr && heun[0]));
  row_type live = scores;
  if (out[0].id >= 0) live[static_cast<std::size_t>(out[0].id)] = -inf;
  out.push_back(stage_by_definition(scores, live, jitter, second, heun != nullptr && heun[1]));
  return out;
}

/// Logits that lie near to each other, so that there are several candidates.
row_type near_logits(router_test::random& rng, int experts) {
  double const center = rng.uniform(-3, 3);
  row_type z;
  for (int e = 0; e < experts; ++e)
    z.push_back(rng.chance(.1) ? (rng.chance(.5) ? qnan : -inf)
                               : center * (1 + rng.uniform(-.05, .05)));
  return z;
}

}  // namespace

TEMPLATE_TEST_CASE("PhiMoE: two choices at inference", "[router][cases]", double, float) {
  matrix<TestType> z(std::vector<row_type>{
      {2.0, 1.9375, 1.75, -1.0}, {1.5, 2.5, 0.0, 0.25}, {3.0, 2.9375, 2.90625, 2.875}});
  expar::routes<TestType> routes(3, 2);
  expar::route(ctx, expar::sparse_mixer(4, .02), z.view(), routes);
  int const ids[3][2] = {{0, 1}, {1, 0}, {0, 1}};
  double const weights[3][2] = {
      {0.5156199157230156, 1.0}, {1.0, 1.0}, {0.3508866208512204, 0.34380254516740894}};
  for (int t = 0; t < 3; ++t)
    for (int j = 0; j < 2; ++j) {
      REQUIRE(routes.ids(t, j) == ids[t][j]);
      REQUIRE_THAT(static_cast<double>(routes.weights(t, j)),
                   WithinAbs(weights[t][j], accuracy<TestType>));
    }
  double const gates[2][3][4] = {
      {{0.5156199157230156, 0.48438008427698437, 0, 0},
       {0, 1, 0, 0},
       {0.3508866208512204, 0.3296274751941158, 0.31948590395466375, 0}},
      {{0, 1, 0, 0},
       {1, 0, 0, 0},
       {0, 0.34380254516740894, 0.33322485287380715, 0.32297260195878397}}};
  for (int t = 0; t < 3; ++t)
    for (int j = 0; j < 2; ++j) {
      TestType g[4];
      expar::detail::mixer_stage<TestType>(z.view().row(t), 4, j == 0 ? -1 : ids[t][0], .02)
          .gates(g);
      for (int e = 0; e < 4; ++e)
        REQUIRE_THAT(static_cast<double>(g[e]), WithinAbs(gates[j][t][e], accuracy<TestType>));
    }
}

TEMPLATE_TEST_CASE("PhiMoE: two choices in training, and their gradient", "[router][cases]", double,
                   float) {
  matrix<TestType> z(std::vector<row_type>{{2.0, 1.9375, 1.75, -1.0}}), dz(1, 4), dw(1, 2);
  matrix<TestType> first(std::vector<row_type>{{0, 9, 0, 0}}), second(1, 4);
  matrix<TestType> uniform(std::vector<row_type>{{.5, .875}});
  expar::sparse_mixer_training const r(4, .02, expar::given_numbers{first.view()},
                                       expar::given_numbers{second.view()},
                                       expar::given_numbers{uniform.view()});
  expar::routes<TestType> routes(1, 2);
  expar::route(ctx, r, z.view(), routes);
  REQUIRE(routes.ids(0, 0) == 1);
  REQUIRE(routes.ids(0, 1) == 0);
  REQUIRE_THAT(static_cast<double>(routes.weights(0, 0)),
               WithinAbs(0.16144388208951888, accuracy<TestType>));
  REQUIRE(routes.weights(0, 1) == 1);
  dw.set(0, 0, 1), dw.set(0, 1, -.5);
  expar::route_backward(ctx, r, z.view(), routes, dw.view(), dz.view());
  double const expected[] = {-0.24975601823280585, 0.24975601823280588, 0, 0};
  for (int e = 0; e < 4; ++e)
    REQUIRE_THAT(dz.get(0, e), WithinAbs(expected[e], accuracy<TestType>));
}

TEST_CASE("the sparse mixer agrees with the definition", "[router]") {
  router_test::random rng(91);
  for (int round = 0; round < 300; ++round) {
    int const tokens = static_cast<int>(rng.integer(0, 6));
    int const experts = static_cast<int>(rng.integer(2, 40));
    double const jitter = rng.uniform(0, .05);
    matrix<double> z(tokens, experts, 1), first(tokens, experts, 2), second(tokens, experts);
    matrix<double> uniform(tokens, 2, 1);
    std::vector<std::uint8_t> heun;
    for (int t = 0; t < tokens; ++t) {
      auto const row = near_logits(rng, experts);
      for (int e = 0; e < experts; ++e) {
        z.set(t, e, row[static_cast<std::size_t>(e)]);
        first.set(t, e, rng.normal());
        second.set(t, e, rng.normal());
      }
      for (int j = 0; j < 2; ++j) {
        uniform.set(t, j, rng.uniform());
        heun.push_back(uniform.get(t, j) > .75);
      }
    }
    bool const training = rng.chance(.5);
    expar::routes<double> routes(tokens, 2);
    if (training)
      expar::route(ctx,
                   expar::sparse_mixer_training(experts, jitter, expar::given_numbers{first.view()},
                                                expar::given_numbers{second.view()},
                                                expar::given_numbers{uniform.view()}),
                   z.view(), routes);
    else
      expar::route(ctx, expar::sparse_mixer(experts, jitter), z.view(), routes);
    for (int t = 0; t < tokens; ++t) {
      auto const a = first.row(t), b = second.row(t);
      auto const expected = by_definition(z.row(t), jitter, training ? &a : nullptr,
                                          training ? &b : nullptr, heun.data() + 2 * t);
      for (int j = 0; j < 2; ++j) {
        REQUIRE(routes.ids(t, j) == expected[static_cast<std::size_t>(j)].id);
        REQUIRE_THAT(routes.weights(t, j),
                     WithinAbs(expected[static_cast<std::size_t>(j)].weight, 1e-13));
      }
    }
  }
}

TEST_CASE("the gradient of the sparse mixer agrees with differences of its gates", "[router]") {
  router_test::random rng(92);
  for (int round = 0; round < 200; ++round) {
    int const experts = static_cast<int>(rng.integer(2, 8));
    matrix<double> z({near_logits(rng, experts)}), dz(1, experts), dw(1, 2);
    for (double& x : dw.data) x = rng.normal();
    expar::sparse_mixer const r(experts, .02);
    expar::routes<double> routes(1, 2);
    expar::route(ctx, r, z.view(), routes);
    // Any candidate may have been sampled.
    for (int j = 0; j < 2; ++j) {
      auto const before = by_definition(z.row(0), .02, nullptr, nullptr, nullptr);
      if (j == 0 && before[0].id >= 0) {
        auto const& gates = before[0].gates;
        for (int e = 0; e < experts; ++e)
          if (gates[static_cast<std::size_t>(e)] > 0 && rng.chance(.4)) routes.ids(0, 0) = e;
        if (routes.ids(0, 1) == routes.ids(0, 0)) routes.ids(0, 1) = before[0].id;
      }
    }
    expar::route_backward(ctx, r, z.view(), routes, dw.view(), dz.view());
    auto const loss = [&](row_type const& moved) {
      double sum = 0;
      for (int j = 0; j < 2; ++j) {
        if (routes.ids(0, j) < 0) continue;
        row_type scores = moved;
        for (double& x : scores)
          if (std::isnan(x)) x = -inf;
        row_type live = scores;
        if (j == 1) live[static_cast<std::size_t>(routes.ids(0, 0))] = -inf;
        auto const at = stage_by_definition(scores, live, .02, nullptr, false);
        sum += dw.get(0, j) * at.gates[static_cast<std::size_t>(routes.ids(0, j))];
      }
      return sum;
    };
    for (int e = 0; e < experts; ++e) {
      row_type up = z.row(0), down = up;
      if (std::isnan(up[static_cast<std::size_t>(e)]) || up[static_cast<std::size_t>(e)] == -inf) {
        REQUIRE(dz.get(0, e) == 0);
        continue;
      }
      up[static_cast<std::size_t>(e)] += 1e-6;
      down[static_cast<std::size_t>(e)] -= 1e-6;
      double const slope = (loss(up) - loss(down)) / 2e-6;
      if (std::fabs(slope) < 100) REQUIRE_THAT(dz.get(0, e), WithinAbs(slope, 1e-6));
    }
  }
}

TEST_CASE("the sparse mixer where logits are special", "[router]") {
  matrix<double> z(std::vector<row_type>{{0, 0, 0},           // 0 / 0 is near
                                         {-2, -2.01, -4},     // below 0
                                         {inf, 1, inf},       // two of +inf
                                         {qnan, 5, -inf},     // one alone
                                         {qnan, -inf, qnan},  // none
                                         {1, 1, 1}});         // ties
  expar::routes<double> routes(6, 2);
  expar::route(ctx, expar::sparse_mixer(3, .01), z.view(), routes);
  int const ids[6][2] = {{0, 1}, {0, 1}, {0, 2}, {1, -1}, {-1, -1}, {0, 1}};
  double const near = 1 / (1 + std::exp(-.01));
  double const weights[6][2] = {{1. / 3, .5}, {near, 1}, {.5, 1}, {1, 0}, {0, 0}, {1. / 3, .5}};
  for (int t = 0; t < 6; ++t)
    for (int j = 0; j < 2; ++j) {
      REQUIRE(routes.ids(t, j) == ids[t][j]);
      REQUIRE_THAT(routes.weights(t, j), WithinAbs(weights[t][j], 1e-14));
    }
  matrix<double> none(0, 3);
  expar::routes<double> nothing(0, 2);
  expar::route(ctx, expar::sparse_mixer(3, .01), none.view(), nothing);
}

TEST_CASE("an expert at the threshold is a candidate", "[router]") {
  matrix<double> z(std::vector<row_type>{{2, 1, .5}});
  expar::routes<double> routes(1, 2);
  expar::route(ctx, expar::sparse_mixer(3, .25), z.view(), routes);
  REQUIRE_THAT(routes.weights(0, 0), WithinAbs(1 / (1 + std::exp(-1)), 1e-15));
  REQUIRE_THAT(routes.weights(0, 1), WithinAbs(1 / (1 + std::exp(-.5)), 1e-15));
}

TEST_CASE("the sparse mixer takes bfloat16", "[router]") {
  using bf16 = expar::bfloat16;
  matrix<bf16> z(std::vector<row_type>{{2, 1, 2, -1}}, 3), dz(1, 4, 1), dw(1, 2);
  expar::routes<bf16> routes(1, 2);
  expar::route(ctx, expar::sparse_mixer(4, .01), z.view(), routes);
  REQUIRE((routes.ids(0, 0) == 0 && routes.ids(0, 1) == 2));
  REQUIRE(expar::widen(routes.weights(0, 0)) == .5f);
  REQUIRE(expar::widen(routes.weights(0, 1)) == 1);
  dw.set(0, 0, 1), dw.set(0, 1, 1);
  expar::route_backward(ctx, expar::sparse_mixer(4, .01), z.view(), routes, dw.view(), dz.view());
  REQUIRE(dz.row(0) == row_type{.25, 0, -.25, 0});
}

TEST_CASE("a sampled expert is a candidate, however large its noise elsewhere", "[router]") {
  matrix<float> z(std::vector<row_type>{{1, 1, .1}}), noise(std::vector<row_type>{{0, 1, 99}});
  matrix<float> low(std::vector<row_type>{{-inf, -inf, -inf}});
  matrix<float> uniform(std::vector<row_type>{{.75, 0}});
  expar::routes<expar::bfloat16> routes(1, 2);
  expar::route(ctx,
               expar::sparse_mixer_training(3, .01, expar::given_numbers{noise.view()},
                                            expar::given_numbers{low.view()},
                                            expar::given_numbers{uniform.view()}),
               z.view(), routes);
  REQUIRE(routes.ids(0, 0) == 1);
  REQUIRE(routes.ids(0, 1) == 0);
  REQUIRE_THAT(static_cast<double>(expar::widen(routes.weights(0, 0))),
               WithinAbs(.5 * .3333, 1e-3));
}

TEST_CASE("the number of threads does not show in the sparse mixer", "[router]") {
  router_test::random rng(93);
  matrix<float> z(3000, 16, 3), one(3000, 16), three(3000, 16);
  for (float& x : z.data) x = static_cast<float>(1 + rng.uniform(0, .05));
  expar::host_context const threads(3);
  expar::sparse_mixer const r(16, .01);
  expar::routes<float> a(3000, 2), b(3000, 2);
  expar::route(ctx, r, z.view(), a);
  expar::route(threads, r, z.view(), b);
  expar::route_backward(ctx, r, z.view(), a, a.weights, one.view());
  expar::route_backward(threads, r, z.view(), b, b.weights, three.view());
  for (int t = 0; t < 3000; ++t)
    for (int j = 0; j < 2; ++j)
      REQUIRE((a.ids(t, j) == b.ids(t, j) && a.weights(t, j) == b.weights(t, j)));
  REQUIRE(one.data == three.data);
}

TEST_CASE("the sparse mixer refuses what does not fit", "[router]") {
  matrix<float> z(std::vector<row_type>{{1}}), noise(2, 3), wrong(2, 4);
  expar::routes<float> routes(1, 2);
  REQUIRE(sentence_of([&] { expar::route(ctx, expar::sparse_mixer(1, .01), z.view(), routes); }) ==
          "expar: route: top_k is 2, but there are only 1 experts");
  auto const check = [&](auto const& first, auto const& second, auto const& uniform) {
    expar::sparse_mixer_training const r(3, .01, first, second, uniform);
    expar::detail::argument_table a("route");
    return sentence_of([&] { r.validate(a, 3, 2, 2); });
  };
  matrix<float> two(2, 2);
  expar::given_numbers const fits{noise.view()}, other{wrong.view()}, pairs{two.view()};
  std::string const refused = "expar: route: given numbers has extent ";
  REQUIRE(check(fits, fits, pairs) == "nothing was thrown");
  REQUIRE(check(other, fits, pairs).starts_with(refused + "4"));
  REQUIRE(check(fits, other, pairs).starts_with(refused + "4"));
  REQUIRE(check(fits, fits, fits).starts_with(refused + "3"));
  expar::routes<float> two_routes(2, 2);
  std::string const negative = "expar: route: jitter is -0.5; it is at least 0";
  REQUIRE(sentence_of([&] {
            expar::route(ctx, expar::sparse_mixer(3, -.5), noise.view(), two_routes);
          }) == negative);
  REQUIRE(sentence_of([&] {
            expar::detail::argument_table a("route");
            expar::sparse_mixer_training(3, -.5, fits, fits, pairs).validate(a, 3, 2, 2);
          }) == negative);
  REQUIRE(sentence_of([&] { expar::sparse_mixer(3, qnan).validate("route", 3, 2, 2); }) ==
          "expar: route: jitter is nan; it is at least 0");
}

TEST_CASE("numbers of a stream sample as the softmax does", "[router]") {
  int const tokens = 20000;
  matrix<float> z(tokens, 3);
  for (int t = 0; t < tokens; ++t) z.set(t, 0, 1), z.set(t, 1, 1.5), z.set(t, 2, -9);
  expar::random_stream const stream{.seed = 7};
  expar::sparse_mixer_training const r(3, .5, expar::gumbels{stream},
                                       expar::gumbels{stream, expar::random_purpose{128}},
                                       expar::uniforms{stream});
  expar::routes<float> routes(tokens, 2);
  expar::route(ctx, r, z.view(), routes);
  double lower = 0, whole = 0;
  for (int t = 0; t < tokens; ++t) {
    REQUIRE(routes.ids(t, 0) + routes.ids(t, 1) == 1);
    if (routes.ids(t, 0) == 1) continue;
    ++lower;
    whole += routes.weights(t, 0) > .2f;
  }
  REQUIRE_THAT(lower / tokens, WithinAbs(1 / (1 + std::exp(.5)), .015));
  REQUIRE_THAT(whole / lower, WithinAbs(.25, .02));
}
