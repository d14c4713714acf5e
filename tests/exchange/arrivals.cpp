// SPDX-License-Identifier: Apache-2.0
#include <expar/exchange/arrivals.hpp>

#include <vector>

#include "../support/catch.hpp"
#include "../support/random.hpp"

TEST_CASE("arriving blocks stand expert after expert, by source rank, and gaps are the rest") {
  for (std::uint64_t seed = 0; seed < 200; ++seed) {
    expar_test::random rng(seed);
    int const ranks = static_cast<int>(rng.integer(1, 4));
    expar::detail::arrivals map(std::pmr::get_default_resource());
    int const experts = ranks + static_cast<int>(rng.integer(0, 5));
    map.begin({experts, ranks}, static_cast<int>(rng.integer(0, ranks - 1)));
    REQUIRE(map.rows() == 0);
    map.capacity = rng.chance(.5) ? -1 : rng.integer(0, 5);
    int const alignment = map.capacity < 0 ? static_cast<int>(rng.integer(1, 4)) : 1;
    for (auto& n : map.arrived) n = rng.integer(0, map.capacity < 0 ? 5 : map.capacity);
    map.lay_out(alignment);
    std::vector<int> owner(static_cast<std::size_t>(map.rows()), -1);
    expar::index_t row = 0;
    for (int l = 0; l < map.locals(); ++l) {
      REQUIRE(map.offsets[l] == row);
      REQUIRE(row % alignment == 0);
      expar::index_t count = 0;
      for (int s = 0; s < ranks; ++s) {
        int const b = s * map.locals() + l;
        REQUIRE(map.first_row[b] == row);
        for (expar::index_t i = 0; i < map.arrived[b]; ++i)
          owner.at(static_cast<std::size_t>(row + i)) = b;
        row += map.arrived_rows()(b);
        count += map.arrived[b];
      }
      REQUIRE(map.counts[l] == count);
      while (row % alignment != 0) ++row;
    }
    REQUIRE(map.rows() == row);
    map.for_each_gap([&](expar::index_t first, expar::index_t last) {
      REQUIRE(first < last);
      for (auto i = first; i < last; ++i) {
        REQUIRE(owner.at(static_cast<std::size_t>(i)) == -1);
        owner[static_cast<std::size_t>(i)] = -2;
      }
    });
    for (int who : owner) REQUIRE(who != -1);
  }
}
