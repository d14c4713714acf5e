// SPDX-License-Identifier: Apache-2.0
#include <expar/permute/tokens.hpp>

#include <vector>

#include "../support/catch.hpp"
#include "../support/one_rank.hpp"

using namespace expar_test;

TEST_CASE("every row knows its token and its choice") {
  for (std::uint64_t seed = 0; seed < 100; ++seed) {
    one_rank<float> r(seed);
    INFO("seed " << seed);
    auto const p = r.plan();
    std::vector<std::int32_t> tokens(static_cast<std::size_t>(p.rows()), 55), alone = tokens,
                                                                              choices = tokens;
    expar::row_tokens(r.ctx, p, alone);
    expar::row_tokens(r.ctx, p, tokens, choices);
    REQUIRE(alone == tokens);
    int named = 0, kept = 0;
    for (std::size_t row = 0; row < tokens.size(); ++row) {
      REQUIRE((tokens[row] == -1) == (choices[row] == -1));
      if (tokens[row] == -1) continue;
      ++named;
      REQUIRE(p.row(tokens[row], choices[row]) == static_cast<expar::index_t>(row));
    }
    for (int t = 0; t < r.tokens; ++t)
      for (int j = 0; j < r.k; ++j) kept += p.row(t, j) >= 0;
    REQUIRE(named == kept);
  }
}

TEST_CASE("row_tokens refuses what it cannot do, by name") {
  expar::host_context const ctx;
  std::vector<std::int32_t> const ids{0, 1};
  auto const p = expar::make_plan(ctx, expar::make_view(ids.data(), 2, 1), 2);
  std::vector<std::int32_t> two(2), three(3);
  CHECK_THROWS_WITH(expar::row_tokens(ctx, p, three),
                    "expar: row_tokens: tokens has extent 3 in dimension 0, but the number of rows "
                    "in the plan is 2");
  CHECK_THROWS_WITH(expar::row_tokens(ctx, p, two, three),
                    "expar: row_tokens: choices has extent 3 in dimension 0, but the number of "
                    "rows in the plan is 2");
}
