// SPDX-License-Identifier: Apache-2.0
#include <expar/router/key.hpp>

#include "../support/catch.hpp"
#include "support.hpp"

TEST_CASE("the key is the score, or the score and a bias", "[router]") {
  double const z[] = {1, 2, 3}, s[] = {.1, .2, .7}, bias[] = {.5, -1, 0};
  double keys[3];
  expar::score_key{}(z, s, static_cast<double const*>(nullptr), keys, 3);
  for (int e = 0; e < 3; ++e) REQUIRE(keys[e] == s[e]);
  expar::biased_key{}(z, s, bias, keys, 3);
  for (int e = 0; e < 3; ++e) REQUIRE(keys[e] == s[e] + bias[e]);
  expar::biased_key{}(z, s, static_cast<double const*>(nullptr), keys, 3);
  for (int e = 0; e < 3; ++e) REQUIRE(keys[e] == s[e]);
  STATIC_REQUIRE_FALSE(expar::score_key::takes_bias);
  STATIC_REQUIRE(expar::biased_key::takes_bias);
  STATIC_REQUIRE(expar::key_policy<expar::biased_key>);
  STATIC_REQUIRE_FALSE(expar::key_policy<int>);
}
