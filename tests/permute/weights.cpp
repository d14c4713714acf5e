// SPDX-License-Identifier: Apache-2.0
#include <expar/permute/weights.hpp>

#include <vector>

#include "../support/catch.hpp"
#include "../support/one_rank.hpp"

using namespace expar_test;

TEST_CASE("weights go to their rows and their gradients come back") {
  for (std::uint64_t seed = 0; seed < 100; ++seed) {
    one_rank<float> r(seed);
    INFO("seed " << seed);
    auto const p = r.plan();
    std::vector<double> rows(static_cast<std::size_t>(p.rows()), 55);
    grid<double> back(r.tokens, r.k, 2);
    expar::encode_weights(r.ctx, p, r.weights.view(), rows);
    double total = 0, kept = 0;
    for (double x : rows) total += x;
    for (int t = 0; t < r.tokens; ++t)
      for (int j = 0; j < r.k; ++j)
        if (p.row(t, j) >= 0) {
          REQUIRE(rows[static_cast<std::size_t>(p.row(t, j))] == r.weights.get(t, j));
          kept += r.weights.get(t, j);
        }
    REQUIRE(std::abs(total - kept) < 1e-9);
    expar::encode_weights_backward(r.ctx, p, rows, back.view());
    for (int t = 0; t < r.tokens; ++t)
      for (int j = 0; j < r.k; ++j)
        REQUIRE(back.get(t, j) == (p.row(t, j) < 0 ? 0 : r.weights.get(t, j)));
    REQUIRE(back.gaps_intact());
  }
}

TEST_CASE("weights per row are refused by name where the shape is wrong") {
  expar::host_context const ctx;
  std::vector<std::int32_t> const ids{0, 1};
  auto const p = expar::make_plan(ctx, expar::make_view(ids.data(), 2, 1), 2);
  std::vector<float> w(2), out(3);
  CHECK_THROWS_WITH(
      expar::encode_weights(ctx, p, expar::make_view(w.data(), 2, 1), out),
      "expar: encode_weights: out has extent 3 in dimension 0, but the number of rows in "
      "the plan is 2");
  CHECK_THROWS_WITH(
      expar::encode_weights_backward(ctx, p, out, expar::make_view(w.data(), 2, 1)),
      "expar: encode_weights_backward: d_out has extent 3 in dimension 0, but the number "
      "of rows in the plan is 2");
}
