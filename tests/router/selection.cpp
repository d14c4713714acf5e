// SPDX-License-Identifier: Apache-2.0
#include <expar/router/selection.hpp>

#include <expar/router/transform.hpp>

#include "selection_support.hpp"

using namespace selection_test;

TEST_CASE("the largest keys of every group", "[router]") {
  expar::top_k_per_group const x{4};
  REQUIRE(select(x, {1, 0, 3, 2, 5, 7, 2, 2}, 4) == ids_type{0, 2, 5, 6});
  REQUIRE(select(expar::top_k_per_group{2}, {1, 4, 3, 2, -inf, 7, qnan, -inf}, 4) ==
          ids_type{1, 2, 5, -1});
}

TEST_CASE("top p takes experts until they exceed p", "[router]") {
  row_type const p{.1, .4, .2, .3};
  REQUIRE(select(expar::top_p{.35}, p, 4) == ids_type{1, -1, -1, -1});
  REQUIRE(select(expar::top_p{.5}, p, 4) == ids_type{1, 3, -1, -1});
  REQUIRE(select(expar::top_p{.8}, p, 4) == ids_type{1, 3, 2, -1});
  REQUIRE(select(expar::top_p{.8}, p, 2) == ids_type{1, 3});
  REQUIRE(select(expar::top_p{1}, p, 4) == ids_type{1, 3, 2, 0});
  REQUIRE(select(expar::top_p{0}, p, 4) == ids_type{1, -1, -1, -1});
  REQUIRE(select(expar::top_p{0}, {-inf, qnan}, 2) == ids_type{-1, -1});
}

TEST_CASE("every expert with a positive key, or the best score", "[router]") {
  expar::positive_keys const fires{}, best{.or_best = true};
  REQUIRE(select(fires, {-inf, 2, qnan, 1, 0}, 5) == ids_type{1, 3, -1, -1, -1});
  REQUIRE(select(fires, {0, -1}, 2) == ids_type{-1, -1});
  REQUIRE(select(best, {1, -1}, 2) == ids_type{0, -1});
  // The fallback compares scores, not keys.
  REQUIRE(select(best, {-.05, -.2}, 2, {.3, .4}) == ids_type{1, -1});
  REQUIRE(select(best, {-.05, -inf}, 2, {.3, .4}) == ids_type{0, -1});
  REQUIRE(select(best, {-1, -2}, 2, {.3, .3}) == ids_type{0, -1});
  REQUIRE(select(best, {-inf, qnan}, 2, {.3, .4}) == ids_type{-1, -1});
  REQUIRE(router_test::sentence_of([] { expar::positive_keys{}.validate("route", 4, 3, 1); }) ==
          "expar: route: top_k is 3, but any number of the 4 experts may have a positive key");
}

TEST_CASE("the first expert by its key, the others by perturbed keys", "[router]") {
  std::vector<double> const noise{0, 0, 5, 0, 9, 0};
  auto const add = expar::add_rows{expar::make_view(noise.data(), 1, 6)};
  auto const x = expar::perturbed_rest{add}.at(0);
  REQUIRE(select(x, {1, 4, 0, 3, -inf, 2}, 2) == ids_type{1, 2});
  REQUIRE(select(x, {1, 4, 0, 3, qnan, 2}, 3) == ids_type{1, 2, 3});
  REQUIRE(select(x, {1, 4, 0, 3, -inf, 2}, 1) == ids_type{1});
  REQUIRE(select(x, {-inf, -inf, -inf, -inf, -inf, qnan}, 2) == ids_type{-1, -1});
  REQUIRE(select(expar::perturbed_rest{expar::temperature{-1}}.at(0), {1, 2, 3}, 3) ==
          ids_type{2, 0, 1});
}
