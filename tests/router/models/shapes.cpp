// SPDX-License-Identifier: Apache-2.0
#include <expar/router/models/shapes.hpp>

#include "../../support/catch.hpp"

TEST_CASE("shapes of models are shapes of routers", "[router][models]") {
  constexpr expar::models::scaled_shape scaled{.experts = 8, .top_k = 2};
  constexpr expar::models::grouped_shape grouped{
      .experts = 16, .top_k = 4, .groups = 4, .top_groups = 2};
  STATIC_REQUIRE(scaled.scale == 1);
  STATIC_REQUIRE(grouped.scale == 1);
  constexpr expar::router of_scaled(scaled, expar::softmax_score{});
  constexpr expar::router of_grouped(grouped, expar::softmax_score{});
  STATIC_REQUIRE(of_scaled.experts == 8);
  STATIC_REQUIRE(of_scaled.top_k == 2);
  STATIC_REQUIRE(of_grouped.experts == 16);
  STATIC_REQUIRE(of_grouped.top_k == 4);
}
