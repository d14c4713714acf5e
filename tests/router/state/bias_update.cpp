// SPDX-License-Identifier: Apache-2.0
#include <expar/router/state/bias_update.hpp>

#include <expar/router/count_choices.hpp>
#include <expar/router/route.hpp>
#include <expar/router/router.hpp>
#include <expar/router/routes.hpp>

#include "../../support/catch.hpp"
#include "../support.hpp"

using Catch::Matchers::WithinAbs;
using router_test::row_type;
using router_test::sentence_of;

namespace {

expar::host_context const ctx;
using counts_type = std::vector<std::int32_t>;

}  // namespace

TEST_CASE("MiniMax-M2 and Megatron: the bias moves to a balanced load", "[router][cases]") {
  row_type const bias{0.0, 0.125, -0.25, 0.0625, 0.25, -0.125, 0.0, 0.1875};
  row_type const expected{0.001, 0.124, -0.249, 0.0615, 0.249, -0.126, 0.001, 0.1885};
  row_type const logits{0.5,  0.375, 1.0,  0.75, -2.5, 2.0,   0.25, -0.5,
                        1.25, 1.0,   -2.0, 0.0,  0.5,  0.625, 1.5,  -1.0};
  expar::router const router({8, 2}, expar::sigmoid_score{}, expar::biased_key{});
  expar::routes<double> routes(2, 2);
  expar::route(ctx, router, expar::make_view(logits.data(), 2, 8), bias, routes);
  counts_type counts(8);
  expar::count_choices(ctx, routes.ids, 2, counts);
  REQUIRE(counts == counts_type{0, 1, 0, 1, 1, 1, 0, 0});
  for (bool centered : {false, true}) {  // as many experts above as below: the same
    row_type b = bias;
    expar::update_bias(ctx, counts, {.rate = .001, .centered = centered}, b);
    for (std::size_t e = 0; e < 8; ++e) REQUIRE_THAT(b[e], WithinAbs(expected[e], 1e-15));
    std::vector<float> narrow(bias.begin(), bias.end());
    expar::update_bias(ctx, counts, {.rate = .001, .centered = centered}, narrow);
    for (std::size_t e = 0; e < 8; ++e)
      REQUIRE_THAT(static_cast<double>(narrow[e]), WithinAbs(expected[e], 1e-7));
  }
}

TEST_CASE("torchtitan: a centered step has mean 0", "[router]") {
  row_type plain(4, 1), centered(4, 1);
  counts_type const counts{9, 1, 1, 1};
  expar::update_bias(ctx, counts, {.rate = .5}, plain);
  REQUIRE(plain == row_type{.5, 1.5, 1.5, 1.5});
  expar::update_bias(ctx, counts, {.rate = .5, .centered = true}, centered);
  REQUIRE(centered == row_type{.25, 1.25, 1.25, 1.25});
}

TEST_CASE("the step of a bias agrees with its definition", "[router]") {
  router_test::random rng(400);
  for (int round = 0; round < 100; ++round) {
    std::vector<std::int64_t> counts;
    row_type bias;
    for (int n = static_cast<int>(rng.integer(0, 9)); n > 0; --n) {
      counts.push_back(rng.integer(0, 5));
      bias.push_back(rng.normal());
    }
    bool const centered = rng.chance(.5);
    double mean = 0, of_steps = 0;
    for (auto n : counts) mean += static_cast<double>(n) / static_cast<double>(counts.size());
    row_type steps;
    for (auto n : counts) {
      double const off = mean - static_cast<double>(n);
      steps.push_back(std::abs(off) < 1e-9 ? 0 : off > 0 ? 1 : -1);
      of_steps += steps.back() / static_cast<double>(counts.size());
    }
    row_type expected = bias;
    for (std::size_t e = 0; e < bias.size(); ++e)
      expected[e] += .01 * (steps[e] - (centered ? of_steps : 0));
    expar::update_bias(ctx, counts, {.rate = .01, .centered = centered}, bias);
    for (std::size_t e = 0; e < bias.size(); ++e)
      REQUIRE_THAT(bias[e], WithinAbs(expected[e], 1e-14));
  }
}

TEST_CASE("the step of a bias is exact for counts of any size", "[router]") {
  constexpr std::int64_t large = INT64_MAX / 3;
  row_type bias(3);
  expar::update_bias(ctx, std::vector<std::int64_t>{large, large + 1, large}, {.rate = 1}, bias);
  REQUIRE(bias == row_type{1, -1, 1});
  expar::update_bias(ctx, std::vector<std::int64_t>{large, large, large}, {.rate = 1}, bias);
  REQUIRE(bias == row_type{1, -1, 1});
  expar::update_bias(ctx, std::vector<std::int64_t>{0, large, large + 1}, {.rate = 1}, bias);
  REQUIRE(bias == row_type{2, -2, 0});
}

TEST_CASE("the step of a bias refuses what does not fit", "[router]") {
  counts_type const counts(3);
  row_type two(2);
  REQUIRE(sentence_of([&] { expar::update_bias(ctx, counts, {}, two); }) ==
          "expar: update_bias: bias has extent 2 in dimension 0, but the number of experts is 3");
  REQUIRE(sentence_of([&] {
            expar::update_bias(ctx, expar::make_view<std::int32_t>(nullptr, 2), {}, two);
          }) == "expar: update_bias: counts has 2 elements but its data is null");
  std::string const bound = "; counts are at least 0 and add up to at most 9223372036854775807";
  REQUIRE(sentence_of([&] {
            expar::update_bias(ctx, counts_type{3, -1}, {}, two);
          }) == "expar: update_bias: counts(1) is -1" + bound);
  REQUIRE(sentence_of([&] {
            expar::update_bias(ctx, std::vector<std::int64_t>{INT64_MAX, 1}, {}, two);
          }) == "expar: update_bias: counts(1) is 1" + bound);
  REQUIRE(two == row_type(2));
}

TEST_CASE("a bias and counts that do not follow one another are moved alike", "[router]") {
  row_type bias{1, 77, 2, 77, 3, 77}, packed{1, 2, 3};
  std::vector<std::int64_t> const counts{5, 0, 0, 1, 0, 0, 9, 0, 0}, packed_counts{5, 1, 9};
  expar::update_bias(ctx, packed_counts, {.rate = .5}, packed);
  expar::update_bias(ctx, expar::make_strided_view(counts.data(), 3, 3), {.rate = .5},
                     expar::make_strided_view(bias.data(), 3, 2));
  REQUIRE(bias == row_type{packed[0], 77, packed[1], 77, packed[2], 77});
}
