// SPDX-License-Identifier: Apache-2.0
#include <expar/router/state/quantile_balance.hpp>

#include <expar/router/count_choices.hpp>
#include <expar/router/route.hpp>
#include <expar/router/router.hpp>
#include <expar/router/routes.hpp>

#include "../../support/catch.hpp"
#include "../differences.hpp"
#include "../support.hpp"

using Catch::Matchers::WithinAbs;
using router_test::inf;
using router_test::mask;
using router_test::matrix;
using router_test::qnan;
using router_test::row_type;
using router_test::sentence_of;

namespace {

expar::host_context const ctx;

/// Megatron-LM's qb_dual_update, with beta = -bias.
row_type by_definition(matrix<double>& z, row_type const& bias, int k, mask const& valid) {
  std::size_t const experts = bias.size();
  std::vector<row_type> off(experts);
  for (expar::index_t t = 0; t < z.rows; ++t) {
    if (!valid[static_cast<std::size_t>(t)]) continue;
    row_type const row = z.row(t);
    row_type keys;
    for (std::size_t e = 0; e < experts; ++e)
      if (row[e] > -inf) keys.push_back(row[e] + bias[e]);
    std::sort(keys.rbegin(), keys.rend());
    double const alpha =
        keys.size() > static_cast<std::size_t>(k) ? keys[static_cast<std::size_t>(k)] : -inf;
    for (std::size_t e = 0; e < experts; ++e)
      off[e].push_back(row[e] > -inf ? row[e] - alpha : -inf);
  }
  row_type target = bias;
  for (std::size_t e = 0; e < experts; ++e) {
    std::sort(off[e].rbegin(), off[e].rend());
    std::size_t const rank = off[e].size() * static_cast<std::size_t>(k) / experts;
    if (rank < off[e].size() && std::isfinite(off[e][rank])) target[e] = -off[e][rank];
  }
  return target;
}

}  // namespace

TEST_CASE("Megatron-LM: the quantile bias agrees with its definition", "[router]") {
  router_test::random rng(410);
  expar::host_context const threads(3);
  for (int round = 0; round < 150; ++round) {
    int const tokens = static_cast<int>(rng.chance(.1) ? 900 : rng.integer(0, 12));
    int const experts = static_cast<int>(rng.integer(2, 8)),
              k = static_cast<int>(rng.integer(1, experts - 1));
    matrix<double> z = router_test::random_logits(rng, tokens, experts);
    row_type bias, target(static_cast<std::size_t>(experts), 77);
    for (int e = 0; e < experts; ++e) bias.push_back(rng.normal());
    mask const valid = router_test::random_mask(rng, tokens);
    expar::quantile_bias(rng.chance(.5) ? ctx : threads, expar::only(valid, z.view()), bias, k,
                         target);
    row_type const expected = by_definition(z, bias, k, valid);
    for (std::size_t e = 0; e < target.size(); ++e)
      REQUIRE_THAT(target[e], WithinAbs(expected[e], 1e-13));
    matrix<expar::bfloat16> narrow(tokens, experts, 3);
    for (int t = 0; t < tokens; ++t)
      for (int e = 0; e < experts; ++e) narrow.set(t, e, z.get(t, e));
    std::vector<float> narrow_target(static_cast<std::size_t>(experts));
    expar::quantile_bias(ctx, expar::only(valid, narrow.view()), bias, k, narrow_target);
    for (std::size_t e = 0; e < target.size(); ++e)
      REQUIRE_THAT(static_cast<double>(narrow_target[e]), WithinAbs(expected[e], 1e-5));
  }
}

TEST_CASE("quantile biases balance a load", "[router]") {
  router_test::random rng(411);
  int const tokens = 512, experts = 8, k = 2;
  matrix<float> z(tokens, experts);
  for (int t = 0; t < tokens; ++t)
    for (int e = 0; e < experts; ++e) z.set(t, e, rng.normal() + e);
  expar::router const router({experts, k}, expar::softmax_score{}, expar::biased_logit_key{});
  std::vector<float> bias(experts, 0);
  auto const busiest = [&] {
    expar::routes<float> routes(tokens, k);
    expar::route(ctx, router, z.view(), bias, routes);
    std::vector<int> counts(experts);
    expar::count_choices(ctx, routes.ids, k, counts);
    return *std::max_element(counts.begin(), counts.end());
  };
  REQUIRE(busiest() > 400);
  for (int step = 0; step < 30; ++step) {
    row_type target(experts);
    expar::quantile_bias(ctx, z.view(), bias, k, target);
    expar::blend_bias(ctx, target, 1, .5, bias);
  }
  REQUIRE(busiest() < 150);  // 128 is even
}

TEST_CASE("Megatron-LM: targets are averaged, blended and centered", "[router]") {
  row_type bias{1, -1, 2}, zero(3, 0);
  expar::blend_bias(ctx, row_type{8, 0, 4}, 4, .5, bias);
  // .5 * {1, -1, 2} + .5 * {2, 0, 1} = {1.5, -.5, 1.5}
  double const mean = 2.5 / 3;
  REQUIRE_THAT(bias[0], WithinAbs(1.5 - mean, 1e-15));
  REQUIRE_THAT(bias[1], WithinAbs(-.5 - mean, 1e-15));
  REQUIRE_THAT(bias[2], WithinAbs(1.5 - mean, 1e-15));
  row_type none;
  expar::blend_bias(ctx, row_type{}, 1, 0, none);
  // Rounded once, though the bias before its mean is taken off is no number of float.
  std::vector<float> narrow{1, 0};
  double const third = 1 / 3.;
  expar::blend_bias(ctx, row_type{16777216 + third, 16777216 - third}, 1, 0, narrow);
  REQUIRE(narrow == std::vector<float>{static_cast<float>(third), static_cast<float>(-third)});
}

TEST_CASE("a bias without a quantile stays", "[router]") {
  matrix<double> none(0, 3), masked(std::vector<row_type>{{qnan, 1, -inf}, {qnan, 2, 0}});
  row_type const bias{1, 2, 3};
  row_type target(3);
  expar::quantile_bias(ctx, none.view(), bias, 1, target);
  REQUIRE(target == bias);
  expar::quantile_bias(ctx, masked.view(), bias, 1, target);
  REQUIRE(target == row_type{1, 2, 3});
}

TEST_CASE("quantile balancing refuses what does not fit", "[router]") {
  matrix<float> z(2, 3);
  row_type three(3), two(2), target(3), sums(2);
  REQUIRE(sentence_of([&] { expar::quantile_bias(ctx, z.view(), three, 3, target); }) ==
          "expar: quantile_bias: top_k is 3; it is at least 1 and less than the 3 experts");
  REQUIRE(sentence_of([&] { expar::quantile_bias(ctx, z.view(), two, 1, three); }) ==
          "expar: quantile_bias: bias has extent 2 in dimension 0, but the number of experts is 3");
  REQUIRE(
      sentence_of([&] { expar::quantile_bias(ctx, z.view(), three, 1, two); }) ==
      "expar: quantile_bias: target has extent 2 in dimension 0, but the number of experts is 3");
  REQUIRE(sentence_of([&] {
            expar::quantile_bias(ctx, expar::only(mask{1}, z.view()), three, 1, target);
          }) ==
          "expar: quantile_bias: valid has extent 1 in dimension 0, but the number of tokens is 2");
  REQUIRE(sentence_of([&] { expar::blend_bias(ctx, sums, 0, .5, two); }) ==
          "expar: blend_bias: parts is 0; it is at least 1");
  REQUIRE(sentence_of([&] { expar::blend_bias(ctx, sums, 1, 1.5, two); }) ==
          "expar: blend_bias: keep is 1.5; it is from 0 to 1");
  REQUIRE(sentence_of([&] { expar::blend_bias(ctx, sums, 1, .5, three); }) ==
          "expar: blend_bias: bias has extent 3 in dimension 0, but the number of sums is 2");
}

TEST_CASE("quantile biases that do not follow one another are balanced alike", "[router]") {
  router_test::random rng(412);
  matrix<float> z(30, 4);
  for (float& x : z.data) x = static_cast<float>(rng.normal());
  row_type const bias{.1, 9, .2, 9, -.1, 9, 0, 9}, packed_bias{.1, .2, -.1, 0};
  row_type target(12, 77), packed(4), sums{1, 2, 3, 4}, even{1, 9, 2, 9, 3, 9, 4, 9};
  expar::quantile_bias(ctx, z.view(), packed_bias, 2, packed);
  auto const strided = expar::make_strided_view(target.data(), 4, 3);
  expar::quantile_bias(ctx, z.view(), expar::make_strided_view(bias.data(), 4, 2), 2, strided);
  for (int e = 0; e < 4; ++e) REQUIRE(strided(e) == packed[static_cast<std::size_t>(e)]);
  expar::blend_bias(ctx, sums, 2, .5, packed);
  expar::blend_bias(ctx, expar::make_strided_view(even.data(), 4, 2), 2, .5, strided);
  for (int e = 0; e < 4; ++e) REQUIRE(strided(e) == packed[static_cast<std::size_t>(e)]);
  REQUIRE(std::count(target.begin(), target.end(), 77) == 8);
}
