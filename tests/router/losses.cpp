// SPDX-License-Identifier: Apache-2.0
#include <expar/router/losses.hpp>

#include <type_traits>

#include "../support/catch.hpp"

TEST_CASE("one header has all losses", "[router]") {
  STATIC_REQUIRE(std::is_empty_v<decltype(expar::count_choices)>);
  STATIC_REQUIRE(std::is_empty_v<decltype(expar::cv_squared)>);
  STATIC_REQUIRE(std::is_empty_v<decltype(expar::device_balance_loss)>);
  STATIC_REQUIRE(std::is_empty_v<decltype(expar::diverse_loss)>);
  STATIC_REQUIRE(std::is_empty_v<decltype(expar::entropy_loss)>);
  STATIC_REQUIRE(std::is_empty_v<decltype(expar::expert_choice_loss)>);
  STATIC_REQUIRE(std::is_empty_v<decltype(expar::load_balance_loss)>);
  STATIC_REQUIRE(std::is_empty_v<decltype(expar::orthogonal_loss)>);
  STATIC_REQUIRE(std::is_empty_v<decltype(expar::score_importance)>);
  STATIC_REQUIRE(std::is_empty_v<decltype(expar::sequence_balance_loss)>);
  STATIC_REQUIRE(std::is_empty_v<decltype(expar::smooth_load)>);
  STATIC_REQUIRE(std::is_empty_v<decltype(expar::z_loss)>);
}
