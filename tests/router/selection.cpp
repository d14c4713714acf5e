// SPDX-License-Identifier: Apache-2.0
#include <expar/router/selection.hpp>

#include <expar/router/transform.hpp>

#include "../support/catch.hpp"
#include "support.hpp"

using router_test::inf;
using router_test::qnan;
using router_test::row_type;
using ids_type = std::vector<std::int32_t>;

namespace {

template <class Selection>
ids_type select(Selection const& x, row_type const& keys, int k, row_type const& scores = {}) {
  STATIC_REQUIRE(expar::selection_policy<Selection>);
  int const experts = static_cast<int>(keys.size());
  int room = 0;
  if constexpr (requires { x.scratch(1, 1); }) room = x.scratch(experts, k);
  ids_type ids(static_cast<std::size_t>(k), 77);
  row_type scratch(static_cast<std::size_t>(room) + 1, 77);
  x.select(keys.data(), scores.empty() ? keys.data() : scores.data(), experts, k, ids.data(),
           scratch.data());
  REQUIRE(scratch.back() == 77);
  return ids;
}

}  // namespace

TEST_CASE("the largest keys of every group", "[router]") {
  expar::top_k_per_group const x{4};
  REQUIRE(select(x, {1, 0, 3, 2, 5, 7, 2, 2}, 4) == ids_type{0, 2, 5, 6});
  REQUIRE(select(expar::top_k_per_group{2}, {1, 4, 3, 2, -inf, 7, qnan, -inf}, 4) ==
          ids_type{1, 2, 5, -1});
}

TEST_CASE("top p takes experts until they exceed p", "[router]") {
  row_type const p{.1, .4, .2, .3};
  REQUIRE(select(expar::top_p{.35}, p, 4) == ids_type{1, -1, -1, -1});
  REQUIRE(select(expar::top_p{.5}, p, 4) == ids_type{1, 3, -1, -1});
  REQUIRE(select(expar::top_p{.8}, p, 4) == ids_type{1, 3, 2, -1});
  REQUIRE(select(expar::top_p{.8}, p, 2) == ids_type{1, 3});
  REQUIRE(select(expar::top_p{1}, p, 4) == ids_type{1, 3, 2, 0});
  REQUIRE(select(expar::top_p{0}, p, 4) == ids_type{1, -1, -1, -1});
  REQUIRE(select(expar::top_p{0}, {-inf, qnan}, 2) == ids_type{-1, -1});
}

TEST_CASE("every expert with a positive key, or the best score", "[router]") {
  expar::positive_keys const fires{}, best{.or_best = true};
  REQUIRE(select(fires, {-inf, 2, qnan, 1, 0}, 5) == ids_type{1, 3, -1, -1, -1});
  REQUIRE(select(fires, {0, -1}, 2) == ids_type{-1, -1});
  REQUIRE(select(best, {1, -1}, 2) == ids_type{0, -1});
  // The fallback compares scores, not keys.
  REQUIRE(select(best, {-.05, -.2}, 2, {.3, .4}) == ids_type{1, -1});
  REQUIRE(select(best, {-.05, -inf}, 2, {.3, .4}) == ids_type{0, -1});
  REQUIRE(select(best, {-1, -2}, 2, {.3, .3}) == ids_type{0, -1});
  REQUIRE(select(best, {-inf, qnan}, 2, {.3, .4}) == ids_type{-1, -1});
  REQUIRE(router_test::sentence_of([] { expar::positive_keys{}.check("route", 4, 3, 1); }) ==
          "expar: route: top_k is 3, but any number of the 4 experts may have a positive key");
}

TEST_CASE("experts that the caller names", "[router]") {
  ids_type const ids{1, 2, 2, -1, 0, 3}, names{2, 0};
  auto const table = expar::make_view(ids.data(), 3, 2);
  row_type const keys(4);
  REQUIRE(select(expar::given_ids{table}.at(1), keys, 2) == ids_type{2, -1});
  expar::table_ids const hash{table, expar::make_view(names.data(), 2)};
  REQUIRE(select(hash.at(0), keys, 2) == ids_type{0, 3});
  REQUIRE(select(hash.at(1), keys, 2) == ids_type{1, 2});
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
      x.check("route", 4, k, tokens);
      if (entries) x.check_entries("route", 4, k, tokens);
    });
  };
  expar::given_ids const given{view};
  REQUIRE(sentence(given, 2, 1, false) ==
          "expar: route: given ids are 2 x 2, but 1 x 2 are needed");
  REQUIRE(sentence(given, 2, 2, false) == "nothing was thrown");
  REQUIRE(sentence(given, 2, 2, true) ==
          "expar: route: given ids(1, 0) is 4; an expert id is -1 (no expert) or 0 to 3");
  expar::table_ids const table{view, expar::make_view(names.data(), 2)};
  REQUIRE(sentence(table, 3, 2, false) == "expar: route: table has 2 ids in a row, but top_k is 3");
  REQUIRE(sentence(table, 2, 5, false) ==
          "expar: route: names has 2 entries, but there are 5 tokens");
  REQUIRE(sentence(table, 2, 2, true) == "expar: route: names(1) is 2; the table has 2 rows");
  expar::tensor_view<std::int32_t const, 2> const columns{ids.data(), {2, 2}, {1, 2}};
  REQUIRE(sentence(expar::given_ids{columns}, 2, 2, false).find("expar: given ids") == 0);
  REQUIRE(router_test::sentence_of([] { expar::top_p{-1}.check("route", 4, 4, 1); }) ==
          "expar: route: p is -1; it is at least 0 and finite");
  REQUIRE(router_test::sentence_of([] { expar::top_k_per_group{3}.check("route", 6, 4, 1); }) ==
          "expar: route: groups is 3; it divides the 6 experts and top_k, 4");
}

TEST_CASE("the first expert by its key, the others by perturbed keys", "[router]") {
  std::vector<double> const noise{0, 0, 5, 0, 9, 0};
  auto const add = expar::add_rows{expar::make_view(noise.data(), 1, 6)};
  auto const x = expar::perturbed_rest{add}.at(0);
  REQUIRE(select(x, {1, 4, 0, 3, -inf, 2}, 2) == ids_type{1, 2});
  REQUIRE(select(x, {1, 4, 0, 3, qnan, 2}, 3) == ids_type{1, 2, 3});
  REQUIRE(select(x, {1, 4, 0, 3, -inf, 2}, 1) == ids_type{1});
  REQUIRE(select(x, {-inf, -inf, -inf, -inf, -inf, qnan}, 2) == ids_type{-1, -1});
  REQUIRE(select(expar::perturbed_rest{expar::temperature{-1}}.at(0), {1, 2, 3}, 3) ==
          ids_type{2, 0, 1});
}
