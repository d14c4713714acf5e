// SPDX-License-Identifier: Apache-2.0
#include <expar/plan/layout.hpp>

#include <cstdint>

#include "../support/catch.hpp"

namespace {
expar::index_t capacity(double factor, expar::index_t tokens, int experts, int k,
                        expar::index_t most, int alignment = 1) {
  return expar::capacity_of({factor, alignment}, tokens, experts, k, most);
}
}  // namespace

TEST_CASE("capacity follows Tutel's rule") {
  // The golden values of six tokens on four experts; the largest count is 5.
  CHECK(capacity(1, 6, 4, 1, 5) == 2);
  CHECK(capacity(1.25, 6, 4, 1, 5) == 2);
  CHECK(capacity(1, 6, 4, 2, 5) == 4);
  CHECK(capacity(0, 6, 4, 2, 5) == 5);
  CHECK(capacity(-1, 6, 4, 2, 5) == 4);
  CHECK(capacity(-4, 6, 4, 2, 5) == 5);
  CHECK(capacity(.6, 6, 4, 2, 5) == 2);
  // Truncation comes before the product with k, alignment last.
  CHECK(capacity(1.9, 4, 4, 3, 9) == 3);
  CHECK(capacity(1, 6, 4, 2, 5, 8) == 8);
  CHECK(capacity(0, 6, 4, 2, 5, 4) == 8);
  CHECK(capacity(-1, 6, 4, 2, 3, 2) == 4);
}

TEST_CASE("a capacity of so many rows has them, whatever the routes") {
  for (double const factor : {1., 0., -4.})
    for (expar::index_t const rows : {0, 1, 7}) {
      CHECK(expar::capacity_of({factor, 1, rows}, 6, 4, 2, 5) == rows);
      CHECK(expar::capacity_of({factor, 1, rows}, 0, 4, 2, 0) == rows);
    }
  CHECK(expar::capacity_of({.alignment = 4, .rows = 7}, 6, 4, 2, 5) == 8);
  STATIC_REQUIRE(expar::capacity_of({.rows = 3}, 6, 4, 2, 5) == 3);
}

TEST_CASE("capacity keeps at least one row where there are tokens") {
  CHECK(capacity(.1, 6, 4, 2, 5) == 1);
  CHECK(capacity(-.1, 6, 4, 2, 5) == 1);
  CHECK(capacity(1, 0, 4, 2, 0) == 0);
  CHECK(capacity(0, 6, 4, 2, 0) == 0);
  CHECK(capacity(1, 6, 4, 2, 0) == 4);
  STATIC_REQUIRE(expar::round_up(9, 4) == 12);
}

TEST_CASE("a capacity beyond what an index counts does not become a small one") {
  constexpr int most_experts = 1 << 30;
  CHECK(capacity(524288, 1, 1 << 23, 1 << 22, 0) == expar::index_t{1} << 41);
  CHECK(capacity(999999, PTRDIFF_MAX, 1, most_experts, 0) == PTRDIFF_MAX);
  CHECK(capacity(0, 1, 1, 1, PTRDIFF_MAX - 1, 4) == PTRDIFF_MAX);
  CHECK(capacity(0, PTRDIFF_MAX, 1, 1, 3) == 3);
}

TEST_CASE("a capacity of impossible numbers is refused") {
  CHECK_THROWS_WITH(capacity(1, 6, 0, 1, 5),
                    "expar: capacity_of: experts is 0; at least 1 is needed");
  CHECK_THROWS_WITH(capacity(1, 6, 4, 1, 5, 0),
                    "expar: capacity_of: alignment is 0; it is at least 1");
  CHECK_THROWS_WITH(capacity(2e6, 6, 4, 1, 5),
                    "expar: capacity_of: capacity factor is 2000000; it lies between -1000000 and "
                    "1000000");
  CHECK_THROWS_WITH(capacity(1, -6, 4, 1, 5),
                    "expar: capacity_of: tokens is -6, top_k 1 and most 5; none is negative");
}
