// SPDX-License-Identifier: Apache-2.0
#include <expar/plan/placement.hpp>

#include "../support/catch.hpp"

TEST_CASE("blocks of experts cover the ranks in order, and differ by at most one") {
  for (int experts = 1; experts <= 40; ++experts)
    for (int ranks = 1; ranks <= experts; ++ranks) {
      expar::block_placement const place{experts, ranks};
      int next = 0, most = 0;
      for (int r = 0; r < ranks; ++r) {
        REQUIRE(place.first(r) == next);
        for (int e = next; e < next + place.count(r); ++e) REQUIRE(place.owner(e) == r);
        next += place.count(r);
        most = place.count(r) > most ? place.count(r) : most;
        REQUIRE(place.count(r) >= experts / ranks);
      }
      REQUIRE(next == experts);
      REQUIRE(place.first(ranks) == experts);
      REQUIRE(place.most() == most);
    }
  STATIC_REQUIRE(expar::block_placement{7, 3}.count(0) == 3);
}
