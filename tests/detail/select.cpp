// SPDX-License-Identifier: Apache-2.0
#include <expar/detail/select.hpp>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "../support/catch.hpp"
#include "../support/random.hpp"

TEST_CASE("select: the first few of any number stand at the front, and sorting orders them") {
  expar_test::random rng(11);
  auto const before = [](int a, int b) { return a > b; };
  for (int round = 0; round < 3000; ++round) {
    auto const n = static_cast<int>(rng.integer(0, round % 10 == 0 ? 300 : 12));
    auto const count = static_cast<int>(rng.integer(0, n));
    auto const range = static_cast<int>(rng.integer(1, 40));  // with ties
    std::vector<int> given(static_cast<std::size_t>(n));
    for (int& x : given) x = static_cast<int>(rng.integer(0, range));
    auto found = given, sorted = given, expected = given;
    std::sort(expected.begin(), expected.end(), before);
    expar::detail::move_first_to_front(found.data(), n, count, before);
    std::sort(found.begin(), found.begin() + count, before);
    std::sort(found.begin() + count, found.end(), before);
    REQUIRE(found == expected);
    if (n > 0) {
      auto moved = given;
      auto const rank = static_cast<int>(rng.integer(0, n - 1));
      REQUIRE(expar::detail::element_of_rank(moved.data(), n, rank, before) ==
              expected[static_cast<std::size_t>(rank)]);
    }
    expar::detail::sort(sorted.data(), n, before);
    REQUIRE(sorted == expected);
  }
}
