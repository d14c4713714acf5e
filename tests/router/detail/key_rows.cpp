// SPDX-License-Identifier: Apache-2.0
#include <expar/router/detail/key_rows.hpp>

#include <vector>

#include "../../support/catch.hpp"

TEST_CASE("strips are of 32 experts, and the last one is filled up", "[router]") {
  using expar::detail::infinity;
  using expar::detail::key_rows;
  for (int experts : {1, 31, 32, 33, 64, 100}) {
    std::vector<float> row;
    for (int e = 0; e < experts; ++e) row.push_back(static_cast<float>(e));
    key_rows keys;
    keys.experts = experts;
    for (float const*& r : keys.row) r = row.data();
    keys.make_tails();
    int at = 0;
    keys.for_each_strip(key_rows::lanes - 1, 0, experts, [&](float const* strip) {
      for (int i = 0; i < key_rows::strip; ++i, ++at)
        REQUIRE(strip[i] == (at < experts ? static_cast<float>(at) : -infinity<float>));
    });
    REQUIRE(at == (experts + 31) / 32 * 32);
    if (experts <= 32) continue;
    int later = 0;
    keys.for_each_strip(0, 32, 64, [&](float const* strip) {
      REQUIRE(strip[0] == 32);
      ++later;
    });
    REQUIRE(later == 1);
  }
}
