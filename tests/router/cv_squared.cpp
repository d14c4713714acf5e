// SPDX-License-Identifier: Apache-2.0
#include <expar/router/cv_squared.hpp>

#include "../support/catch.hpp"
#include "load_reference.hpp"
#include "support.hpp"

using Catch::Matchers::WithinAbs;
using Catch::Matchers::WithinRel;
using router_test::row_type;
using router_test::sentence_of;
using router_test::variation;

namespace {

expar::host_context const ctx;

}  // namespace

TEST_CASE("the squared variation and its gradient agree with the definition", "[router]") {
  router_test::random rng(320);
  for (int round = 0; round < 200; ++round) {
    row_type x;
    for (int n = static_cast<int>(rng.integer(0, 9)); n > 0; --n) x.push_back(rng.uniform(.1, 9));
    expar::cv_squared_options const o{rng.uniform(.1, 2), rng.chance(.5) ? 0 : 1,
                                      rng.chance(.5) ? 0 : rng.uniform(0, 2)};
    REQUIRE_THAT(expar::cv_squared(ctx, x, o), WithinAbs(variation(x, o), 1e-12));
    row_type d(x.size(), 77);
    expar::cv_squared_backward(ctx, x, o, d);
    row_type added(2 * x.size(), 3);
    expar::cv_squared_backward(
        ctx, x, o, expar::add_to(expar::make_strided_view(added.data(), std::ssize(x), 2)));
    for (std::size_t i = 0; i < x.size(); ++i) {
      row_type up = x, down = x;
      up[i] += 1e-5, down[i] -= 1e-5;
      REQUIRE(added[2 * i] == 3 + d[i]);
      REQUIRE(added[2 * i + 1] == 3);
      REQUIRE_THAT(d[i], WithinAbs((variation(up, o) - variation(down, o)) / 2e-5, 1e-8));
    }
  }
}

TEST_CASE("sums that are equal, all 0, or alone do not vary", "[router]") {
  row_type d(4, 77);
  expar::cv_squared_options const unbiased{.ddof = 1, .epsilon = 0};
  REQUIRE(expar::cv_squared(ctx, row_type{2, 2, 2, 2}, unbiased) == 0);
  REQUIRE(expar::cv_squared(ctx, row_type{0, 0, 0, 0}, unbiased) == 0);
  expar::cv_squared_backward(ctx, row_type{0, 0, 0, 0}, unbiased, d);
  REQUIRE(d == row_type{0, 0, 0, 0});
  REQUIRE(expar::cv_squared(ctx, row_type{3}, unbiased) == 0);
  REQUIRE(expar::cv_squared(ctx, row_type{}, unbiased) == 0);
  // One hot of n: n - 1, or n where unbiased.
  REQUIRE_THAT(expar::cv_squared(ctx, row_type{0, 8, 0, 0}, {.ddof = 0, .epsilon = 0}),
               WithinRel(3., 1e-14));
  REQUIRE_THAT(expar::cv_squared(ctx, row_type{0, 8, 0, 0}, unbiased), WithinRel(4., 1e-14));
}

TEST_CASE("the squared variation refuses what does not fit", "[router]") {
  row_type const x{1, 2};
  row_type d(3);
  REQUIRE(sentence_of([&] { (void)expar::cv_squared(ctx, x, {.ddof = 2, .epsilon = 0}); }) ==
          "expar: cv_squared: ddof is 2; options.ddof must be given, and is 0 or 1");
  REQUIRE(sentence_of([&] { (void)expar::cv_squared(ctx, x, {}); }) ==
          "expar: cv_squared: ddof is -1; options.ddof must be given, and is 0 or 1");
  REQUIRE(sentence_of([&] { (void)expar::cv_squared(ctx, x, {.ddof = 0, .epsilon = -1}); }) ==
          "expar: cv_squared: epsilon is -1; options.epsilon must be given, and is at least 0");
  REQUIRE(sentence_of([&] { expar::cv_squared_backward(ctx, x, {.ddof = 0, .epsilon = 0}, d); }) ==
          "expar: cv_squared_backward: d_sums has extent 3 in dimension 0, but the number of sums "
          "is 2");
  REQUIRE(sentence_of([&] {
            (void)expar::cv_squared(ctx, expar::make_view<double>(nullptr, 2),
                                    {.ddof = 0, .epsilon = 0});
          }) == "expar: cv_squared: sums has 2 elements but its data is null");
}
