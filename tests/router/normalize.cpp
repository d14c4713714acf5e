// SPDX-License-Identifier: Apache-2.0
#include <expar/router/normalize.hpp>

#include "weight_support.hpp"

using namespace weight_test;

TEST_CASE("weights are normalized by norms, and by softmax and sigmoid", "[router]") {
  REQUIRE(weigh({0, 1}, {1, -3}, expar::normalize{}) == row_type{.25, -.75});
  row_type const cubic = weigh({0, 1}, {1, 2}, expar::normalize{3});
  REQUIRE_THAT(cubic[0], WithinAbs(1 / std::cbrt(9.), 1e-14));
  REQUIRE_THAT(cubic[1], WithinAbs(2 / std::cbrt(9.), 1e-14));
  for (double const unit : {1e-200, 1., 1e200}) {  // the squares of two are no numbers
    row_type const far = weigh({0, 1}, {3 * unit, 4 * unit}, expar::normalize{2});
    REQUIRE_THAT(far[0], WithinAbs(.6, 1e-15));
    REQUIRE_THAT(far[1], WithinAbs(.8, 1e-15));
  }
  row_type const soft = weigh({4, -1, 7}, {1, 0, 3}, expar::softmax_weights{});
  double const e = std::exp(2.);
  REQUIRE_THAT(soft[0], WithinAbs(1 / (1 + e), 1e-15));
  REQUIRE(soft[1] == 0);
  REQUIRE_THAT(soft[2], WithinAbs(e / (1 + e), 1e-15));
  row_type const half = weigh({4, -1}, {0, 0}, expar::sigmoid_weights{});
  REQUIRE(half == row_type{.5, 0});
  double const inf = router_test::inf;
  REQUIRE(weigh({4, 5}, {inf, 3}, expar::softmax_weights{}) == row_type{1, 0});
  REQUIRE(weigh({4, 5}, {-inf, 3}, expar::softmax_weights{}) == row_type{0, 1});
}

TEST_CASE("gradients of normalized weights agree with differences", "[router]") {
  compare_with_differences(expar::normalize{}, expar::scale{2});
  compare_with_differences(expar::normalize{2});
  compare_with_differences(expar::normalize{3});
  compare_with_differences(expar::normalize{1.5}, expar::offset{.25}, expar::renormalize{});
  compare_with_differences(expar::softmax_weights{});
  compare_with_differences(expar::sigmoid_weights{}, expar::renormalize{});
}
