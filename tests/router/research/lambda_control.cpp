// SPDX-License-Identifier: Apache-2.0
#include <expar/router/research/lambda_control.hpp>

#include <expar/router/load_balance_loss.hpp>

#include "../../support/catch.hpp"
#include "../support.hpp"

using Catch::Matchers::WithinAbs;
using Catch::Matchers::WithinRel;
using router_test::matrix;
using router_test::row_type;
using router_test::sentence_of;

namespace {

expar::host_context const ctx;
using counts_type = std::vector<std::int32_t>;

}  // namespace

TEMPLATE_TEST_CASE("ReMoE: the loss of ReLU routes, and the lambda after it", "[router][cases]",
                   double, float) {
  matrix<TestType> z(std::vector<row_type>{{0.5, -0.25, 0.0, 1.0},
                                           {-0.5, -1.0, -0.25, -0.125},
                                           {2.0, 0.75, 0.25, -0.5},
                                           {0.125, 1.5, -0.5, 0.5}}),
      dz(4, 4);
  counts_type const counts{3, 2, 1, 2};  // positive logits
  std::vector<row_type> const expected{
      {0.75, 0.0, 0.0, 0.5}, {0.0, 0.0, 0.0, 0.0}, {0.75, 0.5, 0.25, 0.0}, {0.75, 0.5, 0.0, 0.5}};
  expar::load_balance_options const o{.choices = 1};
  REQUIRE_THAT(expar::load_balance_loss(ctx, expar::relu_score{}, z.view(), counts, o),
               WithinAbs(3.90625, 1e-12));
  expar::load_balance_loss_backward(ctx, expar::relu_score{}, z.view(), counts, o, dz.view());
  for (int t = 0; t < 4; ++t) REQUIRE(dz.row(t) == expected[static_cast<std::size_t>(t)]);
  expar::lambda_control const control{.experts = 4, .top_k = 1};
  REQUIRE(control.target() == .75);
  double const sparse = expar::route_sparsity(ctx, counts, 4);
  REQUIRE(sparse == .5);
  REQUIRE_THAT(control.next(1e-8, sparse), WithinRel(1.2e-8, 1e-14));
}

TEST_CASE("lambda grows below the target, shrinks above, and stays on it", "[router]") {
  constexpr expar::lambda_control control{.experts = 4, .top_k = 2, .factor = 2};
  static_assert(control.next(3, .25) == 6);
  static_assert(control.next(3, .75) == 1.5);
  static_assert(control.next(3, .5) == 3);
  REQUIRE(expar::route_sparsity(ctx, counts_type{0, 0}, 3) == 1);
  REQUIRE(expar::route_sparsity(ctx, counts_type{3, 3}, 3) == 0);
}

TEST_CASE("sparsity refuses what does not fit", "[router]") {
  REQUIRE(sentence_of([] { (void)expar::route_sparsity(ctx, counts_type{1}, 0); }) ==
          "expar: route_sparsity: tokens is 0; it is at least 1");
  REQUIRE(sentence_of([] { (void)expar::route_sparsity(ctx, counts_type{}, 1); }) ==
          "expar: route_sparsity: counts has no experts; at least 1 is needed");
  auto const next = [](expar::lambda_control const& control) {
    return sentence_of([&] { (void)control.next(1, .5); });
  };
  REQUIRE(next({.experts = 4, .top_k = 0}) ==
          "expar: lambda_control: top_k is 0; it is at least 1 and at most the 4 experts");
  REQUIRE(next({.experts = 4, .top_k = 5}) ==
          "expar: lambda_control: top_k is 5; it is at least 1 and at most the 4 experts");
  REQUIRE(next({.experts = 4, .top_k = 2, .factor = 1}) ==
          "expar: lambda_control: factor is 1; it is greater than 1");
}

TEST_CASE("the sparsity of counts that do not follow one another", "[router]") {
  counts_type const counts{3, 9, 1, 9};
  REQUIRE(expar::route_sparsity(ctx, expar::make_strided_view(counts.data(), 2, 2), 4) == .5);
}
