// SPDX-License-Identifier: Apache-2.0
#include <expar/error.hpp>

#include <cstdint>
#include <string>
#include <type_traits>

#include "support/catch.hpp"

using expar::detail::expects;
using expar::detail::sentence;

TEST_CASE("error: a sentence is its parts in order") {
  auto const text = [](sentence const& s) { return std::string(s.c_str()); };
  CHECK(text(sentence{"top_k is ", 9, " of ", std::string("eight")}) == "top_k is 9 of eight");
  CHECK(text(sentence{std::size_t{18446744073709551615u}, " ", INT64_MIN}) ==
        "18446744073709551615 -9223372036854775808");
  CHECK(text(sentence{1.25, " ", 1e30, " ", -0.0}) == "1.25 1e+30 -0");
  CHECK(text(sentence{}).empty());
}

TEST_CASE("error: what is longer than its room is cut, in the middle of a part or between two") {
  std::string const most(expar::error::room - 1, 'a');
  CHECK(sentence{most, "b"}.c_str() == most);
  CHECK(sentence{most.substr(1), 12}.c_str() == most.substr(1) + "1");
  CHECK(expar::error(most + "b").what() == most);
}

TEST_CASE("error: expects throws what it was told, and only if it does not hold") {
  REQUIRE_NOTHROW(expects(true, "route: never"));
  REQUIRE_THROWS_WITH(expects(false, "route: top_k is ", 9, ", but there are only ", 8, " experts"),
                      "expar: route: top_k is 9, but there are only 8 experts");
  REQUIRE_THROWS_AS(expects(false, "x"), expar::error);
  REQUIRE_THROWS_AS(expects(false, "x"), std::exception);
}

TEST_CASE("error: what ranks disagree about, and a rank that is lost, are errors of their own") {
  STATIC_REQUIRE(std::is_base_of_v<expar::error, expar::disagreement>);
  STATIC_REQUIRE(std::is_base_of_v<expar::error, expar::lost_rank>);
  REQUIRE_THROWS_AS(expar::detail::fail<expar::disagreement>("x"), expar::disagreement);
  REQUIRE_THROWS_WITH(expar::detail::fail<expar::disagreement>("rank ", 1), "expar: rank 1");
  expar::lost_rank const lost(3, sentence{"rank ", 3, " did not come"});
  CHECK(lost.rank() == 3);
  CHECK(lost.what() == std::string("rank 3 did not come"));
  STATIC_REQUIRE(std::is_nothrow_copy_constructible_v<expar::lost_rank>);
}
