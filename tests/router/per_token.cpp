// SPDX-License-Identifier: Apache-2.0
#include <expar/router/per_token.hpp>

#include "../support/catch.hpp"
#include "support.hpp"

TEST_CASE("every token is visited once, with scratch of its own thread", "[router]") {
  for (int threads : {1, 4}) {
    expar::host_context const ctx(threads);
    for (expar::index_t tokens : {0, 1, 77, 5000}) {
      expar::index_t const size = tokens == 77 ? 20000 : 3;  // more than a stack is asked for
      std::vector<int> visits(static_cast<std::size_t>(tokens));
      std::vector<char> undisturbed(visits.size());
      expar::detail::for_each_token_with<double>(
          ctx, tokens, 7, size, [&](expar::index_t t, double* scratch) {
            auto const at = static_cast<std::size_t>(t);
            for (int i = 0; i < 3; ++i) scratch[i] = static_cast<double>(t);
            ++visits[at];
            undisturbed[at] = scratch[0] == static_cast<double>(t) && scratch[2] == scratch[0];
          });
      REQUIRE(visits == std::vector<int>(visits.size(), 1));
      REQUIRE(undisturbed == std::vector<char>(visits.size(), 1));
    }
  }
}

TEST_CASE("rows are widened and narrowed", "[router]") {
  router_test::matrix<expar::bfloat16> m(std::vector<router_test::row_type>{{1, 2.5, -3}});
  float wide[3];
  expar::detail::widen_row(m.view().row(0), wide, 3);
  REQUIRE(wide[1] == 2.5f);
  wide[2] = 7;
  expar::detail::narrow_row(wide, m.view().row(0), 3);
  REQUIRE(m.get(0, 2) == 7);
}
