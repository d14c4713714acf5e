// SPDX-License-Identifier: Apache-2.0
#include <expar/error.hpp>

#include <cstdint>
#include <string>

#include "support/catch.hpp"

using expar::detail::expects;
using expar::detail::sentence;

TEST_CASE("error: a sentence is its parts in order") {
  CHECK(sentence("top_k is ", 9, " of ", std::string("eight")) == "top_k is 9 of eight");
  CHECK(sentence(std::size_t{18446744073709551615u}, " ", INT64_MIN) ==
        "18446744073709551615 -9223372036854775808");
  CHECK(sentence(1.25, " ", 1e30, " ", -0.0) == "1.25 1e+30 -0");
  CHECK(sentence().empty());
}

TEST_CASE("error: expects throws what it was told, and only if it does not hold") {
  REQUIRE_NOTHROW(expects(true, "route: never"));
  REQUIRE_THROWS_WITH(expects(false, "route: top_k is ", 9, ", but there are only ", 8, " experts"),
                      "expar: route: top_k is 9, but there are only 8 experts");
  REQUIRE_THROWS_AS(expects(false, "x"), expar::error);
  REQUIRE_THROWS_AS(expects(false, "x"), std::runtime_error);
}
