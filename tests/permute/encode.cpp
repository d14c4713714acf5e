// SPDX-License-Identifier: Apache-2.0
#include <expar/permute/encode.hpp>

#include <cmath>
#include <vector>

#include "../support/catch.hpp"
#include "../support/one_rank.hpp"

using namespace expar_test;

TEMPLATE_TEST_CASE("encode puts every kept route's row at its place, zero elsewhere", "", double,
                   float, expar::half, expar::bfloat16) {
  for (std::uint64_t seed = 0; seed < 120; ++seed) {
    one_rank<TestType> r(seed);
    INFO("seed " << seed);
    auto const p = r.plan();
    grid<TestType> rows(p.rows(), r.hidden, r.gap), weighted(p.rows(), r.hidden, r.gap);
    expar::encode(r.ctx, p, r.x.view(), rows.view());
    expar::encode(r.ctx, p, r.x.view(), r.weights.view(), weighted.view());
    std::vector<int> taken(static_cast<std::size_t>(p.rows()));
    for (int t = 0; t < r.tokens; ++t)
      for (int j = 0; j < r.k; ++j) {
        auto const row = p.row(t, j);
        if (row < 0) continue;
        ++taken[static_cast<std::size_t>(row)];
        for (int h = 0; h < r.hidden; ++h) {
          REQUIRE(rows.get(row, h) == r.x.get(t, h));
          double const exact = r.weights.get(t, j) * r.x.get(t, h);
          REQUIRE(std::abs(weighted.get(row, h) - exact) <= rounding<TestType>() * std::abs(exact));
        }
      }
    for (expar::index_t row = 0; row < p.rows(); ++row) {
      REQUIRE(taken[static_cast<std::size_t>(row)] <= 1);
      for (int h = 0; h < r.hidden && taken[static_cast<std::size_t>(row)] == 0; ++h) {
        REQUIRE(rows.get(row, h) == 0);
        REQUIRE(weighted.get(row, h) == 0);
      }
    }
    REQUIRE(rows.gaps_intact());
  }
}

TEMPLATE_TEST_CASE("encode_backward is the adjoint of encode", "", double, float, expar::half,
                   expar::bfloat16) {
  for (std::uint64_t seed = 0; seed < 120; ++seed) {
    one_rank<TestType> r(seed);
    INFO("seed " << seed);
    auto const p = r.plan();
    auto d_rows = r.random_rows(p);
    grid<TestType> d_x(r.tokens, r.hidden, r.gap), d_x_weighted(r.tokens, r.hidden);
    grid<double> d_w(r.tokens, r.k, 1);
    expar::encode_backward(r.ctx, p, d_rows.view(), d_x.view());
    expar::encode_backward(r.ctx, p, d_rows.view(), r.x.view(), r.weights.view(),
                           d_x_weighted.view(), d_w.view());
    for (int t = 0; t < r.tokens; ++t) {
      for (int h = 0; h < r.hidden; ++h) {
        exact_sum plain, weighted;
        for (int j = 0; j < r.k; ++j)
          if (p.row(t, j) >= 0) {
            plain.add(d_rows.get(p.row(t, j), h));
            weighted.add(r.weights.get(t, j) * d_rows.get(p.row(t, j), h));
          }
        REQUIRE(plain.holds(d_x.get(t, h), rounding<TestType>(), sum_rounding<TestType>()));
        REQUIRE(
            weighted.holds(d_x_weighted.get(t, h), rounding<TestType>(), sum_rounding<TestType>()));
      }
      for (int j = 0; j < r.k; ++j) {
        exact_sum dot;
        for (int h = 0; h < r.hidden && p.row(t, j) >= 0; ++h)
          dot.add(d_rows.get(p.row(t, j), h) * r.x.get(t, h));
        REQUIRE(dot.holds(d_w.get(t, j), 0, sum_rounding<TestType>()));
      }
    }
    REQUIRE(d_x.gaps_intact());
    REQUIRE(d_w.gaps_intact());
  }
}

TEST_CASE("weights carried along are those of encode_weights beside plain rows") {
  for (std::uint64_t seed = 0; seed < 60; ++seed) {
    one_rank<float> r(seed);
    INFO("seed " << seed);
    auto const p = r.plan();
    grid<float> rows(p.rows(), r.hidden, r.gap), wanted(p.rows(), r.hidden, r.gap);
    std::vector<double> w(static_cast<std::size_t>(p.rows()), 5), wanted_w = w;
    expar::encode(r.ctx, p, r.x.view(), r.weights.view(), rows.view(), w);
    expar::encode(r.ctx, p, r.x.view(), wanted.view());
    expar::encode_weights(r.ctx, p, r.weights.view(), wanted_w);
    REQUIRE(rows == wanted);
    REQUIRE(w == wanted_w);
  }
}

TEST_CASE("with fill::none rows that no route has keep what they hold") {
  for (std::uint64_t seed = 0; seed < 60; ++seed) {
    one_rank<float> r(seed);
    INFO("seed " << seed);
    auto const p = r.plan();
    grid<float> zero(p.rows(), r.hidden), none = zero, weighted = zero, carried = zero;
    std::vector<double> w(static_cast<std::size_t>(p.rows()), 77), alone = w;
    auto const keep = expar::fill::none;
    expar::encode(r.ctx, p, r.x.view(), zero.view());
    expar::encode(r.ctx, p, r.x.view(), none.view(), keep);
    expar::encode(r.ctx, p, r.x.view(), r.weights.view(), weighted.view(), keep);
    expar::encode(r.ctx, p, r.x.view(), r.weights.view(), carried.view(), w, keep);
    expar::encode_weights(r.ctx, p, r.weights.view(), alone, keep);
    REQUIRE(carried == none);
    REQUIRE(w == alone);
    std::vector<int> taken(static_cast<std::size_t>(p.rows()));
    for (int t = 0; t < r.tokens; ++t)
      for (int j = 0; j < r.k; ++j)
        if (p.row(t, j) >= 0) ++taken[static_cast<std::size_t>(p.row(t, j))];
    for (expar::index_t row = 0; row < p.rows(); ++row) {
      bool const there = taken[static_cast<std::size_t>(row)] != 0;
      REQUIRE((w[static_cast<std::size_t>(row)] == 77) == !there);
      for (int h = 0; h < r.hidden; ++h) {
        REQUIRE(none.get(row, h) == (there ? zero.get(row, h) : 77));
        REQUIRE((weighted.get(row, h) == 77) == !there);
      }
    }
  }
}

TEST_CASE("moving rows gives the same bytes for any number of threads") {
  for (std::uint64_t seed = 0; seed < 5; ++seed) {
    one_rank<float> r(seed, 3000);
    auto const p = r.plan();
    grid<float> one(p.rows(), r.hidden), many(p.rows(), r.hidden);
    expar::encode(r.ctx, p, r.x.view(), r.weights.view(), one.view());
    expar::encode(expar::host_context(4), p, r.x.view(), r.weights.view(), many.view());
    REQUIRE(one == many);
  }
}

TEST_CASE("encode refuses what it cannot do, by name") {
  expar::host_context const ctx;
  std::vector<std::int32_t> const ids{0, 1};
  auto const p = expar::make_plan(ctx, expar::make_view(ids.data(), 2, 1), 2);
  std::vector<float> a(64), b(64);
  auto const view = [](std::vector<float>& v, int rows, int columns) {
    return expar::make_view(v.data(), rows, columns);
  };
  CHECK_THROWS_WITH(
      expar::encode(ctx, p, view(a, 3, 4), view(b, 2, 4)),
      "expar: encode: tokens has extent 3 in dimension 0, but the number of tokens in the "
      "plan is 2");
  CHECK_THROWS_WITH(
      expar::encode(ctx, p, view(a, 2, 4), view(b, 3, 4)),
      "expar: encode: rows has extent 3 in dimension 0, but the number of rows in the plan "
      "is 2");
  CHECK_THROWS_WITH(
      expar::encode(ctx, p, view(a, 2, 4), view(b, 2, 5)),
      "expar: encode: rows has extent 5 in dimension 1, but the row size on the other side "
      "is 4");
  CHECK_THROWS_WITH(expar::encode(ctx, p, view(a, 2, 4), view(a, 2, 4)),
                    "expar: encode: rows overlaps tokens in memory; the operation cannot work in "
                    "place");
  CHECK_THROWS_WITH(
      expar::encode(ctx, p, view(a, 2, 4), view(a, 2, 2), view(b, 2, 4)),
      "expar: encode: weights has extent 2 in dimension 1, but top_k of the plan is 1");
  CHECK_THROWS_WITH(
      expar::encode_backward(ctx, p, view(a, 2, 4), view(b, 1, 4)),
      "expar: encode_backward: d_tokens has extent 1 in dimension 0, but the number of "
      "tokens in the plan is 2");
  // Two column blocks of one buffer do not overlap.
  auto const left = expar::make_view(a.data(), 2, 4, 8),
             right = expar::make_view(a.data() + 4, 2, 4, 8);
  CHECK_NOTHROW(expar::encode(ctx, p, left, right));
}
