// SPDX-License-Identifier: Apache-2.0
#include <expar/router/key.hpp>

#include <expar/router/router.hpp>
#include <expar/router/transform.hpp>

#include <array>

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

TEST_CASE("the key is the logit and a bias, another score, or the caller's", "[router]") {
  double const z[] = {1, 2, 3}, s[] = {.1, .2, .7}, bias[] = {.5, -1, 0};
  std::vector<double> keys(3);
  auto const none = static_cast<double const*>(nullptr);
  expar::biased_logit_key{}(z, s, bias, keys.data(), 3);
  REQUIRE(keys == std::vector<double>{1.5, 1, 3});
  expar::scored_key const other{expar::relu_score{}};
  other(z, s, bias, keys.data(), 3);
  REQUIRE(keys == std::vector<double>{1, 2, 3});
  std::vector<double> const noise{9, 9, 9, 0, 5, 1};
  expar::perturbed_key const noisy{expar::add_rows{expar::make_view(noise.data(), 2, 3)}};
  noisy.at(1)(z, s, none, keys.data(), 3);
  REQUIRE(keys == std::vector<double>{1, 7, 4});
  std::vector<float> const plan{1, 2, 3, 4, 5, 6};
  expar::given_keys const given{expar::make_view(plan.data(), 2, 3)};
  given.at(1)(z, s, none, keys.data(), 3);
  REQUIRE(keys == std::vector<double>{4, 5, 6});
  expar::detail::argument_table a("route");
  REQUIRE(router_test::sentence_of([&] { given.validate(a, 3, 1, 4); }) ==
          "expar: route: given keys has extent 2 in dimension 0, but the number of tokens is 4");
}
