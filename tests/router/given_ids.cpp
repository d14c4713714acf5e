// SPDX-License-Identifier: Apache-2.0
#include <expar/router/given_ids.hpp>

#include "selection_support.hpp"

using namespace selection_test;

TEST_CASE("experts that the caller names", "[router]") {
  ids_type const ids{1, 2, 2, -1, 0, 3}, names{2, 0};
  auto const table = expar::make_view(ids.data(), 3, 2);
  row_type const keys(4);
  REQUIRE(select(expar::given_ids{table}.at(1), keys, 2) == ids_type{2, -1});
  expar::table_ids const hash{table, expar::make_view(names.data(), 2)};
  REQUIRE(select(hash.at(0), keys, 2) == ids_type{0, 3});
  REQUIRE(select(hash.at(1), keys, 2) == ids_type{1, 2});
  ids_type const spread{2, 9, 0};
  expar::table_ids const strided{table, expar::make_strided_view(spread.data(), 2, 2)};
  REQUIRE(select(strided.at(1), keys, 2) == ids_type{1, 2});
  REQUIRE(select(expar::round_robin{}.at(3), keys, 3) == ids_type{1, 2, 3});
  // An expert that is masked cannot be named.
  row_type const masked{0, 0, -inf, qnan};
  REQUIRE(select(expar::given_ids{table}.at(0), masked, 2) == ids_type{1, -1});
  REQUIRE(select(hash.at(0), masked, 2) == ids_type{0, -1});
  REQUIRE(select(expar::round_robin{}.at(3), masked, 3) == ids_type{1, -1, -1});
}

TEST_CASE("experts that the caller names are checked", "[router]") {
  ids_type const ids{1, 2, 4, 0}, names{0, 2};
  auto const view = expar::make_view(ids.data(), 2, 2);
  auto const sentence = [](auto const& x, int k, expar::index_t tokens, bool entries) {
    return router_test::sentence_of([&] {
      expar::detail::argument_table a("route");
      x.validate(a, 4, k, tokens);
      if (entries) x.validate_entries("route", 4, k, tokens);
    });
  };
  expar::given_ids const given{view};
  REQUIRE(sentence(given, 2, 1, false) ==
          "expar: route: given ids has extent 2 in dimension 0, but the number of tokens is 1");
  REQUIRE(sentence(given, 2, 2, false) == "nothing was thrown");
  REQUIRE(sentence(given, 2, 2, true) ==
          "expar: route: given ids(1, 0) is 4; an expert id is -1 (no expert) or 0 to 3");
  expar::table_ids const table{view, expar::make_view(names.data(), 2)};
  REQUIRE(sentence(table, 3, 2, false) ==
          "expar: route: table has extent 2 in dimension 1, but top_k is 3");
  REQUIRE(sentence(table, 2, 5, false) ==
          "expar: route: names has extent 2 in dimension 0, but the number of tokens is 5");
  REQUIRE(sentence(table, 2, 2, true) == "expar: route: names(1) is 2; the table has 2 rows");
  expar::tensor_view<std::int32_t const, 2> const columns{ids.data(), {2, 2}, {1, 2}};
  REQUIRE(sentence(expar::given_ids{columns}, 2, 2, false).find("expar: route: given ids ") == 0);
  REQUIRE(router_test::sentence_of([] { expar::top_p{-1}.validate("route", 4, 4, 1); }) ==
          "expar: route: p is -1; it is at least 0 and finite");
  REQUIRE(router_test::sentence_of([] { expar::top_k_per_group{3}.validate("route", 6, 4, 1); }) ==
          "expar: route: groups is 3; it divides the 6 experts and top_k, 4");
}
