// SPDX-License-Identifier: Apache-2.0
#include <expar/exchange/hop_tables.hpp>

#include <cstdint>

#include "support/catch.hpp"
#include "support/thrown_by.hpp"

TEST_CASE("more rows than their numbers can count pass no rank") {
  expar::detail::hop_tables t(std::pmr::get_default_resource());
  t.reserve(2);
  t.clear_counts(2);
  t.got(0)[1] = INT32_MAX, t.got(1)[0] = 1;
  CHECK(expar_test::thrown_by([&] { t.begin(0, 0, 4, 0, 0); }) ==
        "expar: dispatch: 2147483648 rows pass a rank; over hops at most 2147483647 do");
  t.got(1)[0] = 0;
  CHECK(t.begin(0, 0, 4, 0, 0) == 0);
  CHECK(t.all == INT32_MAX);
}
