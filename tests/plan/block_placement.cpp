// SPDX-License-Identifier: Apache-2.0
#include <expar/plan/block_placement.hpp>

#include <cstdint>
#include <string>

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

TEST_CASE("there is no rank and no expert out of range") {
  expar::block_placement const place{8, 3};
  std::string const there = "; there are 8 experts on 3 ranks";
  CHECK_THROWS_WITH(place.owner(-9), "expar: block_placement: expert is -9" + there);
  CHECK_THROWS_WITH(place.owner(8), "expar: block_placement: expert is 8" + there);
  CHECK_THROWS_WITH(place.count(3), "expar: block_placement: rank is 3" + there);
  CHECK_THROWS_WITH(place.count(-1), "expar: block_placement: rank is -1" + there);
  CHECK_THROWS_WITH(place.first(4), "expar: block_placement: rank is 4" + there);
  CHECK_THROWS_WITH((expar::block_placement{8, 0}.most()),
                    "expar: block_placement: ranks is 0; there are 8 experts on 0 ranks");
  CHECK(expar::block_placement{INT32_MAX, 2}.most() == 1 << 30);
}
