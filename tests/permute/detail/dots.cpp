// SPDX-License-Identifier: Apache-2.0
#include <expar/permute/detail/dots.hpp>

#include <cstring>
#include <vector>

#include "../../support/catch.hpp"
#include "../../support/random.hpp"

using namespace expar::detail;
using expar::index_t;

TEMPLATE_TEST_CASE("a dot product is 16 interleaved sums and a tree, to the bit", "[permute]",
                   float, double, expar::bfloat16, expar::half, expar::float8_e4m3) {
  using A = expar::accumulator_t<TestType>;
  expar_test::random draw(4);
  for (int round = 0; round < 600; ++round) {
    auto const n = static_cast<std::size_t>(draw.integer(0, 200));
    auto const begin = static_cast<std::size_t>(draw.integer(0, 17));
    std::vector<TestType> x(begin + n), y(n);
    for (auto* v : {&x, &y})
      for (TestType& e : *v) e = expar::narrow<TestType>(static_cast<A>(draw.uniform(-2, 2)));
    A sum[16] = {};
    for (std::size_t c = 0; c < n; ++c)
      sum[c % 16] += expar::widen(x[begin + c]) * expar::widen(y[c]);
    for (int half : {8, 4, 2, 1})
      for (int l = 0; l < half; ++l) sum[l] += sum[l + half];
    A const dot = dot_rows(x.data() + begin, y.data(), static_cast<index_t>(n),
                           draw.chance(.5) ? rows_ahead : 0);
    INFO(n << " columns");
    REQUIRE(std::memcmp(&dot, sum, sizeof dot) == 0);
  }
}
