// SPDX-License-Identifier: Apache-2.0
#include <expar/permute/decode.hpp>

#include <cmath>
#include <vector>

#include <expar/permute/encode.hpp>

#include "../support/catch.hpp"
#include "../support/one_rank.hpp"
#include "../support/sparse.hpp"

using namespace expar_test;

TEMPLATE_TEST_CASE("decode is the weighted sum of the kept routes, rounded once", "", double, float,
                   expar::half, expar::bfloat16) {
  for (std::uint64_t seed = 0; seed < 120; ++seed) {
    one_rank<TestType> r(seed);
    INFO("seed " << seed);
    auto const p = r.plan();
    auto rows = r.random_rows(p);
    grid<TestType> out(r.tokens, r.hidden, r.gap), plain(r.tokens, r.hidden);
    grid<double> wide(r.tokens, r.hidden);
    expar::decode(r.ctx, p, rows.view(), r.weights.view(), out.view());
    expar::decode(r.ctx, p, rows.view(), r.weights.view(), wide.view());
    expar::decode(r.ctx, p, rows.view(), plain.view());
    for (int t = 0; t < r.tokens; ++t)
      for (int h = 0; h < r.hidden; ++h) {
        exact_sum weighted, sum;
        for (int j = 0; j < r.k; ++j)
          if (p.row(t, j) >= 0) {
            weighted.add(r.weights.get(t, j) * rows.get(p.row(t, j), h));
            sum.add(rows.get(p.row(t, j), h));
          }
        REQUIRE(weighted.holds(out.get(t, h), rounding<TestType>(), sum_rounding<TestType>()));
        REQUIRE(weighted.holds(wide.get(t, h), 0, sum_rounding<TestType>()));
        REQUIRE(sum.holds(plain.get(t, h), rounding<TestType>(), sum_rounding<TestType>()));
      }
    REQUIRE(out.gaps_intact());
  }
}

TEMPLATE_TEST_CASE("a sum begins with the residual", "", double, float, expar::half,
                   expar::bfloat16) {
  for (std::uint64_t seed = 0; seed < 60; ++seed) {
    one_rank<TestType> r(seed);
    INFO("seed " << seed);
    auto const p = r.plan();
    auto rows = r.random_rows(p);
    grid<TestType> out(r.tokens, r.hidden, r.gap), in_place = r.x;
    expar::decode(r.ctx, p, rows.view(), r.weights.view(), r.x.view(), out.view());
    expar::decode(r.ctx, p, rows.view(), r.weights.view(), in_place.view(), in_place.view());
    REQUIRE(out == in_place);
    REQUIRE(out.gaps_intact());
    for (int t = 0; t < r.tokens; ++t)
      for (int h = 0; h < r.hidden; ++h) {
        exact_sum sum;
        sum.add(r.x.get(t, h));
        for (int j = 0; j < r.k; ++j)
          if (p.row(t, j) >= 0) sum.add(r.weights.get(t, j) * rows.get(p.row(t, j), h));
        REQUIRE(sum.holds(out.get(t, h), rounding<TestType>(), sum_rounding<TestType>()));
      }
  }
}

TEST_CASE("the residual is the first term, so that its rounding is known") {
  expar::host_context const ctx;
  std::vector<std::int32_t> const ids{0, 0};
  auto const p = expar::make_plan(ctx, expar::make_view(ids.data(), 1, 2), 1);
  float rows[2] = {0x1p-24f, 0x1p-24f}, weights[2] = {1, 1}, residual[1] = {1}, out[1];
  expar::decode(ctx, p, expar::make_view(rows, 2, 1), expar::make_view(weights, 1, 2),
                expar::make_view(residual, 1, 1), expar::make_view(out, 1, 1));
  CHECK(out[0] == 1);  // 1 + 2^-24 is 1, twice; the sum of the rows first would give 1 + 2^-23
}

TEMPLATE_TEST_CASE("decode_backward is the adjoint of decode", "", double, float, expar::half,
                   expar::bfloat16) {
  for (std::uint64_t seed = 0; seed < 120; ++seed) {
    one_rank<TestType> r(seed);
    INFO("seed " << seed);
    auto const p = r.plan();
    auto rows = r.random_rows(p);
    grid<TestType> d_rows(p.rows(), r.hidden, r.gap), plain(p.rows(), r.hidden);
    grid<float> d_w(r.tokens, r.k, 2);
    expar::decode_backward(r.ctx, p, r.x.view(), rows.view(), r.weights.view(), d_rows.view(),
                           d_w.view());
    expar::decode_backward(r.ctx, p, r.x.view(), plain.view());
    std::vector<int> taken(static_cast<std::size_t>(p.rows()));
    for (int t = 0; t < r.tokens; ++t)
      for (int j = 0; j < r.k; ++j) {
        exact_sum dot;
        auto const row = p.row(t, j);
        for (int h = 0; h < r.hidden && row >= 0; ++h) {
          double const exact = r.weights.get(t, j) * r.x.get(t, h);
          REQUIRE(std::abs(d_rows.get(row, h) - exact) <= rounding<TestType>() * std::abs(exact));
          REQUIRE(plain.get(row, h) == r.x.get(t, h));
          dot.add(rows.get(row, h) * r.x.get(t, h));
        }
        if (row >= 0) ++taken[static_cast<std::size_t>(row)];
        REQUIRE(dot.holds(d_w.get(t, j), rounding<float>(), sum_rounding<TestType>()));
      }
    for (expar::index_t row = 0; row < p.rows(); ++row)
      for (int h = 0; h < r.hidden && taken[static_cast<std::size_t>(row)] == 0; ++h) {
        REQUIRE(d_rows.get(row, h) == 0);
        REQUIRE(plain.get(row, h) == 0);
      }
    REQUIRE(d_w.gaps_intact());
  }
}

TEST_CASE("identity experts with k = 1 and weight 1 give back the token, bit for bit") {
  for (std::uint64_t seed = 0; seed < 30; ++seed) {
    one_rank<float> r(seed);
    r.k = 1;
    auto const all_kept = expar::make_plan(
        r.ctx, expar::make_view(r.ids.data(), r.tokens, expar::index_t{1}), r.experts);
    std::vector<float> ones(static_cast<std::size_t>(r.tokens), 1.f);
    grid<float> rows(all_kept.rows(), r.hidden), out(r.tokens, r.hidden);
    if (r.tokens > 0) r.x.set(0, 0, -0.0);
    expar::encode(r.ctx, all_kept, r.x.view(), rows.view());
    expar::decode(r.ctx, all_kept, rows.view(),
                  expar::make_view(ones.data(), r.tokens, expar::index_t{1}), out.view());
    for (int t = 0; t < r.tokens; ++t)
      for (int h = 0; h < r.hidden; ++h) {
        bool const here = all_kept.row(t, 0) >= 0;
        REQUIRE(out.get(t, h) == (here ? r.x.get(t, h) : 0));
        REQUIRE(std::signbit(out.get(t, h)) == (here && std::signbit(r.x.get(t, h))));
      }
  }
}

TEST_CASE("the golden vectors of Tutel's top-2 example, forward and backward") {
  expar::host_context const ctx;
  std::vector<std::int32_t> const ids{0, 1, 0, 1, 0, 2, 1, 2, 0, 2, 0, 1};
  double const s[6][4] = {{.50, .30, .15, .05}, {.40, .35, .20, .05}, {.60, .10, .25, .05},
                          {.10, .70, .15, .05}, {.45, .05, .30, .20}, {.55, .25, .05, .15}};
  auto const p =
      expar::make_plan(ctx, expar::make_view(ids.data(), 6, 2), 4, expar::fixed_capacity{1});
  grid<double> x(6, 2), w(6, 2), z(16, 2), y(16, 2), out(6, 2), d_out(6, 2), d_z(16, 2), d_w(6, 2);
  for (int t = 0; t < 6; ++t) {
    double const a = s[t][ids[static_cast<std::size_t>(2 * t)]],
                 b = s[t][ids[static_cast<std::size_t>(2 * t + 1)]];
    w.set(t, 0, a / (a + b)), w.set(t, 1, b / (a + b));
    x.set(t, 0, 2 * t + 1), x.set(t, 1, 2 * t + 2);
    d_out.set(t, 0, 1), d_out.set(t, 1, -1);
  }
  expar::encode(ctx, p, x.view(), z.view());
  double const first[16] = {1, 3, 5, 9, 7, 1, 3, 11, 5, 7, 9, 0, 0, 0, 0, 0};
  for (int row = 0; row < 16; ++row) {
    CHECK(z.get(row, 0) == first[row]);
    CHECK(z.get(row, 1) == (first[row] == 0 ? 0 : first[row] + 1));
    for (int h = 0; h < 2; ++h) y.set(row, h, z.get(row, h) * (row / 4 + 1));
  }
  expar::decode(ctx, p, y.view(), w.view(), out.view());
  double const g = .35 / .75, d = .25 / .85, e = .15 / .85;
  double const wanted[6][2] = {{1.375, 2.75},
                               {3 * (1 + g), 4 * (1 + g)},
                               {5 * (1 + 2 * d), 6 * (1 + 2 * d)},
                               {7 * (2 + e), 8 * (2 + e)},
                               {16.2, 18},
                               {6.875, 7.5}};
  for (int t = 0; t < 6; ++t)
    for (int h = 0; h < 2; ++h) CHECK(std::abs(out.get(t, h) - wanted[t][h]) < 1e-12);
  expar::decode_backward(ctx, p, d_out.view(), y.view(), w.view(), d_z.view(), d_w.view());
  double const gates[6][2] = {{-1, -2}, {-1, -2}, {-1, -3}, {-2, -3}, {-1, -3}, {0, -2}};
  double const rows[16] = {.625,        w.get(1, 0), w.get(2, 0), .6,          w.get(3, 0), .375,
                           w.get(1, 1), .3125,       w.get(2, 1), w.get(3, 1), .4};
  for (int t = 0; t < 6; ++t)
    for (int j = 0; j < 2; ++j) CHECK(std::abs(d_w.get(t, j) - gates[t][j]) < 1e-12);
  for (int row = 0; row < 16; ++row) {
    CHECK(std::abs(d_z.get(row, 0) - rows[row]) < 1e-12);
    CHECK(std::abs(d_z.get(row, 1) + rows[row]) < 1e-12);
  }
}

TEMPLATE_TEST_CASE("gradients of permutes are added where the caller says so", "", double, float,
                   expar::half, expar::bfloat16) {
  for (std::uint64_t seed = 0; seed < 40; ++seed) {
    one_rank<TestType> r(seed);
    INFO("seed " << seed);
    auto const p = r.plan();
    auto rows = r.random_rows(p);
    grid<TestType> once(p.rows(), r.hidden, r.gap), twice(p.rows(), r.hidden, r.gap);
    grid<TestType> x_once(r.tokens, r.hidden, r.gap), x_twice(r.tokens, r.hidden, r.gap);
    grid<float> w_once(r.tokens, r.k, 2), w_twice(r.tokens, r.k, 2);
    auto const w = r.weights.view();
    expar::decode_backward(r.ctx, p, r.x.view(), rows.view(), w, once.view(), w_once.view());
    expar::encode_backward(r.ctx, p, rows.view(), x_once.view());
    for (int t = 0; t < r.tokens; ++t)
      for (int j = 0; j < r.k; ++j) w_twice.set(t, j, 1);
    for (int t = 0; t < r.tokens; ++t)
      for (int h = 0; h < r.hidden; ++h) x_twice.set(t, h, 2);
    for (expar::index_t i = 0; i < p.rows(); ++i)
      for (int h = 0; h < r.hidden; ++h) twice.set(i, h, -1);
    expar::decode_backward(r.ctx, p, r.x.view(), rows.view(), w, expar::add_to(twice.view()),
                           expar::add_to(w_twice.view()));
    expar::encode_backward(r.ctx, p, rows.view(), expar::add_to(x_twice.view()));
    double const bound = 4 * rounding<TestType>();
    for (int t = 0; t < r.tokens; ++t)
      for (int j = 0; j < r.k; ++j)
        REQUIRE(w_twice.get(t, j) == static_cast<float>(1 + w_once.get(t, j)));
    for (int t = 0; t < r.tokens; ++t)
      for (int h = 0; h < r.hidden; ++h)
        REQUIRE(std::abs(x_twice.get(t, h) - 2 - x_once.get(t, h)) <=
                bound * (4 + r.k * std::abs(x_once.get(t, h))) + r.k * bound * 8);
    for (expar::index_t i = 0; i < p.rows(); ++i)
      for (int h = 0; h < r.hidden; ++h)
        REQUIRE(std::abs(twice.get(i, h) + 1 - once.get(i, h)) <=
                bound * (2 + std::abs(once.get(i, h))));
    REQUIRE(w_twice.gaps_intact());
  }
}

TEST_CASE("decode refuses what it cannot do, by name") {
  expar::host_context const ctx;
  std::vector<std::int32_t> const ids{0, 1};
  auto const p = expar::make_plan(ctx, expar::make_view(ids.data(), 2, 1), 2);
  std::vector<float> a(64), b(64), c(64), d(64);
  auto const view = [](std::vector<float>& v, int rows, int columns) {
    return expar::make_view(v.data(), rows, columns);
  };
  CHECK_THROWS_WITH(
      expar::decode(ctx, p, view(a, 3, 4), view(b, 2, 4)),
      "expar: decode: rows has extent 3 in dimension 0, but the number of rows in the plan "
      "is 2");
  CHECK_THROWS_WITH(
      expar::decode(ctx, p, view(a, 2, 4), view(b, 4, 1), view(b, 2, 4)),
      "expar: decode: weights has extent 4 in dimension 0, but the number of tokens in the "
      "plan is 2");
  CHECK_THROWS_WITH(
      expar::decode(ctx, p, view(a, 2, 4), view(b, 2, 3)),
      "expar: decode: out has extent 3 in dimension 1, but the row size on the other side "
      "is 4");
  CHECK_THROWS_WITH(expar::decode(ctx, p, view(a, 2, 4), view(a, 2, 4)),
                    "expar: decode: out overlaps rows in memory; the operation cannot work in "
                    "place");
  CHECK_THROWS_WITH(
      expar::decode(ctx, p, view(a, 2, 4), view(a, 2, 1), view(a, 2, 3), view(b, 2, 4)),
      "expar: decode: residual has extent 3 in dimension 1, but the row size on the other side is "
      "4");
  CHECK_THROWS_WITH(
      expar::decode(ctx, p, view(a, 2, 4), view(a, 2, 1), expar::make_view(b.data() + 1, 2, 4),
                    view(b, 2, 4)),
      "expar: decode: out overlaps residual in memory; it is that very tensor, or apart from it");
  CHECK_THROWS_WITH(
      expar::decode_backward(ctx, p, view(a, 2, 4), view(a, 2, 4), view(a, 2, 1), view(b, 2, 4),
                             view(b, 2, 2)),
      "expar: decode_backward: d_weights has extent 2 in dimension 1, but top_k of the plan is 1");
  CHECK_THROWS_WITH(expar::decode_backward(ctx, p, view(b, 2, 4), view(a, 2, 4), view(c, 2, 1),
                                           view(d, 2, 4), view(a, 2, 1)),
                    "expar: decode_backward: d_weights overlaps rows in memory; the operation "
                    "cannot work in place");
}

TEST_CASE("the gradient of the weights is apart from the weights") {
  expar::host_context const ctx;
  std::vector<std::int32_t> const ids{0, 1};
  auto const p = expar::make_plan(ctx, expar::make_view(ids.data(), 2, 1), 2);
  std::vector<float> a(8), b(8), c(8), w(2);
  auto const rows = [](std::vector<float>& v) { return expar::make_view(v.data(), 2, 4); };
  auto const weights = expar::make_view(w.data(), 2, 1);
  CHECK_THROWS_WITH(expar::decode_backward(ctx, p, rows(a), rows(b), weights, rows(c), weights),
                    "expar: decode_backward: d_weights overlaps weights in "
                    "memory; the operation "
                    "cannot work in place");
  CHECK_THROWS_WITH(expar::encode_backward(ctx, p, rows(a), rows(b), weights, rows(c), weights),
                    "expar: encode_backward: d_weights overlaps weights in "
                    "memory; the operation "
                    "cannot work in place");
}

TEST_CASE("rows of no elements, and no tokens at all, are ordinary") {
  expar::host_context const ctx;
  std::vector<std::int32_t> const ids{0, 1};
  auto const p = expar::make_plan(ctx, expar::make_view(ids.data(), 2, 1), 2);
  expar::tensor_view<float, 2> const narrow{nullptr, {2, 0}, {0, 1}}, none{nullptr, {0, 5}, {5, 1}};
  expar::encode(ctx, p, narrow, narrow);
  expar::decode(ctx, p, narrow, narrow);
  auto const empty = expar::make_plan(
      ctx, expar::tensor_view<std::int32_t const, 2>{nullptr, {0, 3}, {3, 1}}, 2, expar::ragged{4});
  CHECK(empty.rows() == 0);
  expar::encode(ctx, empty, none, none);
  expar::decode(ctx, empty, none, none);
}

TEST_CASE("rows that stand more than 2^31 elements apart") {
  // Three rows in 24 GiB of address space, of which only the touched pages exist.
  expar::index_t const pitch = (expar::index_t{1} << 31) + 64;
  sparse_memory tokens(3 * pitch * 4), rows(3 * pitch * 4);
  if (!tokens.data() || !rows.data()) return;
  expar::host_context const ctx;
  std::vector<std::int32_t> const ids{2, 0, 1};
  auto const p = expar::make_plan(ctx, expar::make_view(ids.data(), 3, 1), 3);
  auto const x = expar::make_view(static_cast<float*>(tokens.data()), 3, 5, pitch);
  auto const z = expar::make_view(static_cast<float*>(rows.data()), 3, 5, pitch);
  for (int t = 0; t < 3; ++t)
    for (int h = 0; h < 5; ++h) x(t, h) = static_cast<float>(10 * t + h);
  expar::encode(ctx, p, x, z);
  for (int t = 0; t < 3; ++t)
    for (int h = 0; h < 5; ++h) REQUIRE(z(ids[static_cast<std::size_t>(t)], h) == x(t, h));
  std::vector<float> out(15);
  expar::decode(ctx, p, z, expar::make_view(out.data(), 3, 5));
  for (int t = 0; t < 3; ++t)
    for (int h = 0; h < 5; ++h) REQUIRE(out[static_cast<std::size_t>(5 * t + h)] == x(t, h));
}
