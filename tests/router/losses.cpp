// SPDX-License-Identifier: Apache-2.0
#include <expar/router/losses.hpp>

#include <type_traits>

#include "../support/catch.hpp"

TEST_CASE("one header has all losses but those of research", "[router]") {
  auto const is_there = [](auto const&... functions) {
    return (... && std::is_empty_v<std::remove_cvref_t<decltype(functions)>>);
  };
  STATIC_REQUIRE(is_there(expar::count_choices, expar::count_sequence_choices,
                          expar::count_sequence_tokens, expar::count_device_routes,
                          expar::count_device_tokens));
  STATIC_REQUIRE(is_there(expar::cv_squared, expar::cv_squared_backward, expar::score_importance,
                          expar::score_importance_loss_backward, expar::weight_importance,
                          expar::weight_importance_loss_backward, expar::smooth_load,
                          expar::load_loss_backward));
  STATIC_REQUIRE(is_there(expar::load_balance_loss, expar::load_balance_loss_backward,
                          expar::sequence_balance_loss, expar::sequence_balance_loss_backward,
                          expar::device_balance_loss, expar::device_balance_loss_backward));
  STATIC_REQUIRE(is_there(expar::entropy_loss, expar::entropy_loss_backward, expar::z_loss,
                          expar::z_loss_backward));
  REQUIRE(expar::choice_totals(2).tokens() == 0);
  REQUIRE(expar::normalized_score{expar::sigmoid_score{}, 0}.epsilon == 0);
}
