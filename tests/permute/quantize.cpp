// SPDX-License-Identifier: Apache-2.0
#include <expar/permute/quantize.hpp>

#include <cmath>
#include <limits>
#include <vector>

#include "../support/catch.hpp"
#include "../support/one_rank.hpp"

using namespace expar_test;
using expar::float8_e4m3;
using expar::index_t;

namespace {

index_t blocks_of(index_t columns) {
  return (columns + 127) / 128;
}

// One token of these values through one expert: its codes, and its scales.
struct one_token {
  std::vector<float8_e4m3> codes;
  std::vector<float> scales, back;

  explicit one_token(std::vector<float> x)
      : codes(x.size()),
        scales(static_cast<std::size_t>(blocks_of(std::ssize(x)))),
        back(x.size()) {
    expar::host_context const ctx;
    std::vector<std::int32_t> const ids{0};
    auto const p = expar::make_plan(ctx, expar::make_view(ids.data(), 1, 1), 1);
    auto const row = [](auto& v) { return expar::make_view(v.data(), 1, std::ssize(v)); };
    expar::encode_quantized(ctx, p, row(x), row(codes), row(scales));
    expar::decode_quantized(ctx, p, row(codes), row(scales), row(back));
  }
};

}  // namespace

TEMPLATE_TEST_CASE("a quantized element is within half a step of its block", "", double, float,
                   expar::half, expar::bfloat16) {
  for (std::uint64_t seed = 0; seed < 60; ++seed) {
    one_rank<TestType> r(seed);
    INFO("seed " << seed);
    expar_test::random rng(seed + 1000);
    r.hidden = static_cast<int>(rng.integer(1, 300));
    r.x = grid<TestType>(r.tokens, r.hidden, r.gap);
    for (int t = 0; t < r.tokens; ++t)
      for (int h = 0; h < r.hidden; ++h) r.x.set(t, h, 100 * rng.normal());
    auto const p = r.plan();
    index_t const blocks = blocks_of(r.hidden);
    grid<float8_e4m3> rows(p.rows(), r.hidden, r.gap);
    grid<float> scales(p.rows(), blocks, r.gap);
    expar::encode_quantized(r.ctx, p, r.x.view(), rows.view(), scales.view());
    std::vector<int> taken(static_cast<std::size_t>(p.rows()));
    for (int t = 0; t < r.tokens; ++t)
      for (int j = 0; j < r.k; ++j) {
        auto const row = p.row(t, j);
        if (row < 0) continue;
        ++taken[static_cast<std::size_t>(row)];
        for (index_t b = 0; b < blocks; ++b) {
          double most = 0;
          index_t const end = std::min<index_t>(r.hidden, 128 * b + 128);
          for (index_t h = 128 * b; h < end; ++h) most = std::max(most, std::abs(r.x.get(t, h)));
          double const scale = scales.get(row, b);
          REQUIRE(std::abs(scale - most / 448) <= 0x1p-23 * scale);
          double largest = 0;
          for (index_t h = 128 * b; h < end; ++h) {
            // Half a unit in the last of 4 bits, or half of the smallest number, and what three
            // roundings in float move.
            double const x = r.x.get(t, h), code = rows.get(row, h);
            double const step = std::max(0x1p-4 * std::abs(x), 0x1p-10 * scale);
            REQUIRE(std::abs(code * scale - x) <= step + 0x1p-21 * std::abs(x));
            largest = std::max(largest, std::abs(code));
          }
          REQUIRE(largest == 448);
        }
      }
    for (index_t row = 0; row < p.rows(); ++row)
      if (taken[static_cast<std::size_t>(row)] == 0) {
        for (int h = 0; h < r.hidden; ++h) REQUIRE(rows.get(row, h) == 0);
        for (index_t b = 0; b < blocks; ++b) REQUIRE(scales.get(row, b) == 1);
      }
    REQUIRE(scales.gaps_intact());
  }
}

TEMPLATE_TEST_CASE("decode_quantized is the weighted sum of codes times scales", "", float,
                   expar::bfloat16) {
  for (std::uint64_t seed = 0; seed < 60; ++seed) {
    one_rank<float> r(seed);
    INFO("seed " << seed);
    expar_test::random rng(seed + 1000);
    r.hidden = static_cast<int>(rng.integer(1, 300));
    auto const p = r.plan();
    index_t const blocks = blocks_of(r.hidden);
    grid<float8_e4m3> rows(p.rows(), r.hidden, r.gap);
    grid<float> scales(p.rows(), blocks, r.gap);
    for (index_t row = 0; row < p.rows(); ++row) {
      for (int h = 0; h < r.hidden; ++h) rows.set(row, h, rng.normal());
      for (index_t b = 0; b < blocks; ++b) scales.set(row, b, rng.uniform(.5, 2));
    }
    grid<TestType> out(r.tokens, r.hidden, r.gap), plain(r.tokens, r.hidden);
    expar::decode_quantized(r.ctx, p, rows.view(), scales.view(), r.weights.view(), out.view());
    expar::decode_quantized(r.ctx, p, rows.view(), scales.view(), plain.view());
    for (int t = 0; t < r.tokens; ++t)
      for (int h = 0; h < r.hidden; ++h) {
        exact_sum weighted, sum;
        for (int j = 0; j < r.k; ++j)
          if (auto const row = p.row(t, j); row >= 0) {
            double const x = rows.get(row, h) * scales.get(row, h / 128);
            weighted.add(r.weights.get(t, j) * x);
            sum.add(x);
          }
        // One rounding more for each product of weight and scale.
        REQUIRE(weighted.holds(out.get(t, h), rounding<TestType>(), 2 * sum_rounding<float>()));
        REQUIRE(sum.holds(plain.get(t, h), rounding<TestType>(), sum_rounding<float>()));
      }
    REQUIRE(out.gaps_intact());
  }
}

TEST_CASE("blocks at the edges of the number range") {
  float const infinity = std::numeric_limits<float>::infinity(), nan = std::nanf("");
  float const largest = std::numeric_limits<float>::max();
  SECTION("zeros have scale one") {
    one_token const z({0, -0.0f, 0});
    CHECK(z.scales[0] == 1);
    CHECK(z.codes[1].bits == 0x80);
  }
  SECTION("what a code holds comes back as it was") {
    one_token const z({448, -3.5f, 0x1p-9f, 0});
    CHECK(z.scales[0] == 1);
    CHECK(z.back == std::vector<float>{448, -3.5f, 0x1p-9f, 0});
  }
  SECTION("the largest float does not overflow") {
    one_token const z({largest, -largest / 2, 1});
    CHECK(std::abs(z.back[0] / largest - 1) < 1e-6);
    CHECK(std::abs(z.back[1] / largest + .5) < 1e-6);
    CHECK(z.back[2] == 0);
  }
  SECTION("the smallest floats stay finite") {
    one_token const z({0x1p-149f, -0x1p-126f, 0});
    CHECK(z.scales[0] == 0x1p-126f);
    CHECK(z.back == std::vector<float>{0, -0x1p-126f, 0});
  }
  SECTION("NaN stays NaN and leaves the others alone") {
    one_token const z({448, nan, 2});
    CHECK(z.scales[0] == 1);
    CHECK(std::isnan(z.back[1]));
    CHECK(z.back[2] == 2);
  }
  SECTION("an infinity is not lost") {
    one_token const z({1, infinity, 2});
    for (float x : z.back) CHECK(std::isnan(x));
  }
  SECTION("blocks are apart") {
    std::vector<float> x(130, 1);
    x[0] = 896, x[128] = infinity;
    one_token const z(x);
    CHECK(z.scales[0] == 2);
    CHECK(z.back[0] == 896);
    CHECK(z.back[127] == 1);
    CHECK(std::isnan(z.back[128]));
  }
}

TEST_CASE("quantized rows refuse what they cannot do, by name") {
  expar::host_context const ctx;
  std::vector<std::int32_t> const ids{0, 1};
  auto const p = expar::make_plan(ctx, expar::make_view(ids.data(), 2, 1), 2);
  std::vector<float> x(400), s(8);
  std::vector<float8_e4m3> y(400);
  auto const view = [](auto& v, int rows, int columns) {
    return expar::make_view(v.data(), rows, columns);
  };
  CHECK_THROWS_WITH(
      expar::encode_quantized(ctx, p, view(x, 2, 130), view(y, 2, 130), view(s, 2, 1)),
      "expar: encode_quantized: scales has extent 1 in dimension 1, but the number of blocks of "
      "128 columns in a row is 2");
  CHECK_THROWS_WITH(
      expar::encode_quantized(ctx, p, view(x, 2, 130), view(y, 3, 130), view(s, 3, 2)),
      "expar: encode_quantized: rows has extent 3 in dimension 0, but the number of rows in the "
      "plan is 2");
  CHECK_THROWS_WITH(
      expar::decode_quantized(ctx, p, view(y, 2, 130), view(s, 1, 2), view(x, 2, 130)),
      "expar: decode_quantized: scales has extent 1 in dimension 0, but the number of rows in the "
      "plan is 2");
  CHECK_THROWS_WITH(
      expar::decode_quantized(ctx, p, view(y, 2, 130), view(s, 2, 2), view(x, 2, 131)),
      "expar: decode_quantized: out has extent 131 in dimension 1, but the row size on the other "
      "side is 130");
}
