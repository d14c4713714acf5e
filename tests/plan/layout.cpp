// SPDX-License-Identifier: Apache-2.0
#include <expar/plan/layout.hpp>

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

TEST_CASE("capacity keeps at least one row where there are tokens") {
  CHECK(capacity(.1, 6, 4, 2, 5) == 1);
  CHECK(capacity(-.1, 6, 4, 2, 5) == 1);
  CHECK(capacity(1, 0, 4, 2, 0) == 0);
  CHECK(capacity(0, 6, 4, 2, 0) == 0);
  CHECK(capacity(1, 6, 4, 2, 0) == 4);
  STATIC_REQUIRE(expar::round_up(9, 4) == 12);
}
