// SPDX-License-Identifier: Apache-2.0
#include <expar/router/choice_totals.hpp>
#include <expar/router/load_balance_loss.hpp>

#include "../support/catch.hpp"
#include "support.hpp"

using Catch::Matchers::WithinRel;
using router_test::matrix;
using router_test::row_type;
using router_test::sentence_of;

namespace {

expar::host_context const ctx;

}  // namespace

TEST_CASE("totals add up, and are cleared", "[router]") {
  expar::choice_totals totals(3);
  totals.add(ctx, std::vector<std::int32_t>{1, 2, 0}, 3);
  totals.add(ctx, std::vector<std::int64_t>{4, 0, 1}, 5);
  REQUIRE(totals.tokens() == 8);
  auto const n = totals.counts();
  REQUIRE(std::vector<expar::index_t>(n.data, n.data + 3) == std::vector<expar::index_t>{5, 2, 1});
  totals.clear();
  REQUIRE(totals.tokens() == 0);
  REQUIRE((totals.counts()(0) == 0 && totals.counts()(1) == 0 && totals.counts()(2) == 0));
}

TEST_CASE("a loss of totals is the loss of their mean", "[router]") {
  matrix<double> z(std::vector<row_type>{{1, 2, 0}, {0, 1, 3}});
  std::vector<expar::index_t> const first{2, 2, 0}, second{0, 0, 4}, mean{1, 1, 2};
  expar::choice_totals totals(3);
  totals.add(ctx, first, 2);
  totals.add(ctx, second, 2);
  REQUIRE_THAT(expar::load_balance_loss(ctx, z.view(), totals.counts(),
                                        {.choices = 2, .counted_tokens = totals.tokens()}),
               WithinRel(expar::load_balance_loss(ctx, z.view(), mean, {.choices = 2}), 1e-14));
}

TEST_CASE("totals refuse what does not fit", "[router]") {
  expar::choice_totals totals(3);
  std::vector<int> const two(2), three(3);
  REQUIRE(sentence_of([&] { totals.add(ctx, two, 1); }) ==
          "expar: choice_totals: counts has extent 2 in dimension 0, but the number of experts is "
          "3");
  REQUIRE(sentence_of([&] { totals.add(ctx, three, -1); }) ==
          "expar: choice_totals: tokens is -1; it is at least 0");
  totals.add(ctx, std::vector<std::int64_t>{0, 0, INT64_MAX}, PTRDIFF_MAX - 1);
  REQUIRE(sentence_of([&] {
            totals.add(ctx, std::vector<int>{1, 1, 1}, 0);
          }) ==
          "expar: choice_totals: counts(2) is 1; counts are at least 0 and add up to at most "
          "9223372036854775807");
  REQUIRE(sentence_of([&] {
            totals.add(ctx, std::vector<int>{-3, 0, 0}, 0);
          }) ==
          "expar: choice_totals: counts(0) is -3; counts are at least 0 and add up to at most "
          "9223372036854775807");
  REQUIRE(sentence_of([&] { totals.add(ctx, three, 3); }) ==
          "expar: choice_totals: tokens is 3; with the 9223372036854775806 before they are more "
          "than can be counted");
  REQUIRE((totals.counts()(0) == 0 && totals.tokens() == PTRDIFF_MAX - 1));
  REQUIRE(sentence_of([] { expar::choice_totals none(-1); }) ==
          "expar: choice_totals: experts is -1; it is at least 0");
}
