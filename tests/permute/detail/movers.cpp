// SPDX-License-Identifier: Apache-2.0
#include <expar/permute/detail/movers.hpp>

#include <tuple>
#include <vector>

#include <expar/permute/decode.hpp>
#include <expar/permute/encode.hpp>

#include "../../support/catch.hpp"
#include "../../support/one_rank.hpp"

using namespace expar_test;

TEMPLATE_TEST_CASE("past the caches or through them, rows have the same bits", "[permute]", float,
                   double, expar::bfloat16, expar::half) {
  for (std::uint64_t seed = 0; seed < 60; ++seed) {
    one_rank<TestType> r(seed);
    INFO("seed " << seed);
    auto const p = r.plan();
    auto y = r.random_rows(p), rows = y, d_rows = y;
    grid<TestType> out(r.tokens, r.hidden, r.gap), d_x = out;
    grid<float> d_weights[2] = {{r.tokens, r.k}, {r.tokens, r.k}};
    auto const run = [&](expar::index_t cache_bytes) {
      expar::host_context ctx(1 + static_cast<int>(seed % 2));
      ctx.set_cache_bytes(cache_bytes);
      auto const w = r.weights.view();
      expar::encode(ctx, p, r.x.view(), rows.view());
      expar::decode(ctx, p, y.view(), w, out.view());
      expar::decode_backward(ctx, p, r.x.view(), y.view(), w, d_rows.view(), d_weights[0].view());
      expar::encode_backward(ctx, p, y.view(), r.x.view(), w, d_x.view(), d_weights[1].view());
      REQUIRE(
          (rows.gaps_intact() && out.gaps_intact() && d_rows.gaps_intact() && d_x.gaps_intact()));
      return std::tuple(rows, out, d_rows, d_x, d_weights[0], d_weights[1]);
    };
    REQUIRE(run(0) == run(PTRDIFF_MAX));
  }
}

TEST_CASE("a plan without routes moves nothing, in whatever way", "[permute]") {
  for (expar::index_t const tokens : {0, 3})
    for (expar::index_t const cache_bytes : {expar::index_t{0}, expar::index_t{PTRDIFF_MAX}}) {
      expar::host_context ctx;
      ctx.set_cache_bytes(cache_bytes);
      auto const p = expar::make_plan(
          ctx,
          expar::make_view(static_cast<std::int32_t const*>(nullptr), tokens, expar::index_t{0}),
          4);
      grid<float> x(tokens, 100), rows(0, 100), weights(tokens, 0), out = x;
      expar::encode(ctx, p, x.view(), rows.view());
      expar::decode(ctx, p, rows.view(), weights.view(), out.view());
      expar::decode_backward(ctx, p, x.view(), rows.view(), weights.view(), rows.view(),
                             weights.view());
      for (int t = 0; t < tokens; ++t) REQUIRE(out.get(t, 99) == 0);
    }
}

TEST_CASE("more routes of a token than a list of rows has room for", "[permute]") {
  constexpr expar::index_t k = 2 * expar::detail::weighted_rows<float>::most + 3;
  constexpr expar::index_t tokens = 3, hidden = 77;
  constexpr int experts = 70;
  expar_test::random draw(5);
  expar::host_context ctx;
  std::vector<std::int32_t> ids;
  for (int i = 0; i < tokens * k; ++i)
    ids.push_back(static_cast<std::int32_t>(draw.integer(-1, experts - 1)));
  auto const p = expar::make_plan(
      ctx, expar::make_view(static_cast<std::int32_t const*>(ids.data()), tokens, k), experts);
  grid<float> rows(p.rows(), hidden), weights(tokens, k), out(tokens, hidden);
  for (auto* g : {&rows, &weights})
    for (expar::index_t i = 0; i < g->view().extents[0]; ++i)
      for (expar::index_t c = 0; c < g->view().extents[1]; ++c) g->set(i, c, draw.uniform(-1, 1));
  expar::decode(ctx, p, rows.view(), weights.view(), out.view());
  for (int t = 0; t < tokens; ++t)
    for (int h = 0; h < hidden; ++h) {
      float sum = 0;
      bool first = true;
      for (int j = 0; j < k; ++j)
        if (auto const row = p.row(t, j); row >= 0) {
          float const product = weights.view()(t, j) * rows.view()(row, h);
          sum = first ? product : sum + product;
          first = false;
        }
      REQUIRE(out.get(t, h) == static_cast<double>(sum));
    }
}
