// SPDX-License-Identifier: Apache-2.0
#include <expar/permute/detail/products.hpp>

#include <cstring>
#include <vector>

#include "../../support/catch.hpp"
#include "../../support/random.hpp"

using namespace expar::detail;
using expar::index_t;

namespace {

/// Rows of any pitch, that begin anywhere. They are of few bits, or of all: then products with the
/// others are rounded, and the order of their sums shows.
template <class T>
struct rows_anywhere {
  index_t pitch, begin;
  std::vector<T> all;

  rows_anywhere(expar_test::random& draw, index_t rows, index_t n, bool of_all_bits = false)
      : pitch(n + draw.integer(0, 3)), begin(draw.integer(0, 17)) {
    for (index_t i = 0; i < begin + rows * pitch; ++i)
      all.push_back(expar::narrow<T>(static_cast<expar::accumulator_t<T>>(
          of_all_bits ? draw.uniform(-2, 2) : static_cast<double>(draw.integer(-20, 20)) / 8)));
  }
  T* row(index_t i) { return all.data() + begin + i * pitch; }
};

template <class T>
bool equal_bits(std::vector<T> const& a, std::vector<T> const& b) {
  return a.size() == b.size() && (a.empty() || std::memcmp(static_cast<void const*>(a.data()),
                                                           b.data(), a.size() * sizeof(T)) == 0);
}

}  // namespace

TEMPLATE_TEST_CASE("rows and dots of all routes at once are those of each, to the bit", "[permute]",
                   float, double, expar::bfloat16, expar::half, expar::float8_e4m3) {
  using A = expar::accumulator_t<TestType>;
  expar_test::random draw(7);
  for (int round = 0; round < 300; ++round) {
    index_t const tokens = draw.integer(0, 4), n = draw.integer(0, draw.chance(.3) ? 1500 : 300);
    int const k = static_cast<int>(draw.integer(0, draw.chance(.2) ? 40 : 4));
    index_t const routes = tokens * k;
    rows_anywhere<TestType> x(draw, tokens, n), y(draw, routes, n, true), to(draw, routes, n);
    std::vector<std::int32_t> ids(static_cast<std::size_t>(routes)), locations;
    std::vector<char> has_y;
    std::vector<float> weights;
    for (index_t at = 0; at < routes; ++at) {
      locations.push_back(draw.chance(.1) ? -1 : static_cast<std::int32_t>(at));
      has_y.push_back(locations.back() >= 0 && draw.chance(.9));
      weights.push_back(static_cast<float>(draw.integer(-8, 8)) / 4);
    }
    bool const adds = draw.chance(.3);
    auto expected = to;
    std::vector<A> dots(static_cast<std::size_t>(routes), A{-1}), expected_dots = dots;
    for (index_t at = 0; at < routes; ++at) {
      auto const i = static_cast<std::size_t>(at);
      if (!has_y[i]) continue;
      TestType const* const from = x.row(at / k);
      expected_dots[i] = dot_rows(static_cast<TestType const*>(y.row(at)), from, n);
      for (index_t c = 0; c < n; ++c) {
        TestType& there = expected.row(at)[c];
        A const product = static_cast<A>(weights[i]) * expar::widen(from[c]);
        there = expar::narrow<TestType>(adds ? expar::widen(there) + product : product);
      }
    }

    expar::host_context ctx(static_cast<int>(draw.integer(1, 2)));
    if (draw.chance(.7)) ctx.set_cache_bytes(0);
    std::vector<char> taken(static_cast<std::size_t>(routes));
    expar::plan_view const plan{ids.data(), locations.data(), nullptr, tokens, k, 1};
    expar::tensor_view<TestType const, 2> const from{x.row(0), {tokens, n}, {x.pitch, 1}};
    auto const scatter = [&](auto does_add) {
      scatter_products<does_add.value>(
          ctx, plan, from,
          [&](index_t at) -> TestType const* {
            return has_y[static_cast<std::size_t>(at)] ? y.row(at) : nullptr;
          },
          matrix_weights<float>{expar::make_view(weights.data(), tokens, index_t{k})},
          [&](int, index_t location) { return to.row(location); },
          [&](index_t at, A dot) {
            dots[static_cast<std::size_t>(at)] = dot, ++taken[static_cast<std::size_t>(at)];
          },
          [&](index_t at, bool) { taken[static_cast<std::size_t>(at)] += 2; });
    };
    if (adds)
      scatter(std::true_type{});
    else
      scatter(std::false_type{});
    INFO("round " << round << ": " << tokens << " tokens, " << k << " routes, " << n << " columns");
    REQUIRE(equal_bits(to.all, expected.all));
    REQUIRE(equal_bits(dots, expected_dots));
    for (std::size_t i = 0; i < taken.size(); ++i) REQUIRE(taken[i] == (has_y[i] ? 1 : 2));
  }
}
