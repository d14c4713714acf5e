// SPDX-License-Identifier: Apache-2.0
#include <expar/router/expert_weights.hpp>

#include "weight_support.hpp"

using namespace weight_test;

TEST_CASE("weights know their expert", "[router]") {
  std::vector<float> const factors{1, 2, 4, 8};
  expar::expert_scale const by{expar::make_view(factors.data(), 4)};
  REQUIRE(weigh({3, -1, 1}, {1, 0, .5}, by) == row_type{8, 0, 1});
  REQUIRE(weigh({3, 2, -1, 1}, {1, 2, 0, 3}, expar::zero_weights_of{2, 3}) == row_type{1, 0, 0, 3});
  REQUIRE(weigh({3, 2, -1, 1}, {1, 2, 0, 3}, expar::equal_weights{}) ==
          row_type{1. / 3, 1. / 3, 0, 1. / 3});
  REQUIRE(weigh({-1, -1}, {0, 0}, expar::equal_weights{}) == row_type{0, 0});
  REQUIRE(weigh({3, -1}, {.5, 0}, expar::on_input{}) == row_type{.5, 0});
}

TEST_CASE("the mask of equal weights passes gradients straight through, if asked", "[router]") {
  ids_type const ids{3, -1, 0};
  auto const d_of = [&](bool through) {
    row_type values{1, 0, 1, 0, 0, 0}, d{1, 0, 3};
    chain_of(3, expar::equal_weights{through}).weigh_vjp(ids.data(), values.data(), d.data());
    return d;
  };
  REQUIRE(d_of(false) == row_type{0, 0, 0});
  REQUIRE(d_of(true) == row_type{.5, 0, 1.5});
}

TEST_CASE("gradients of weights that know their expert agree with differences", "[router]") {
  std::vector<double> const factors{1, .5, 4, 2, 3, -1, 2, 1};
  expar::expert_scale const by{expar::make_view(factors.data(), 8)};
  compare_with_differences(expar::renormalize{}, by);
  compare_with_differences(expar::zero_weights_of{1, 3}, expar::renormalize{});
}
