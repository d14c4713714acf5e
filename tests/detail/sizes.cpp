// SPDX-License-Identifier: Apache-2.0
#include <expar/detail/sizes.hpp>

#include "../support/catch.hpp"
#include "../support/random.hpp"

using expar::index_t;
using expar::detail::size_product;
using expar::detail::size_sum;
using expar::detail::uncountable;

TEST_CASE("sums and products of sizes are exact, or uncountable") {
  expar_test::random rng(1);
  for (int i = 0; i < 10000; ++i) {
    index_t const a = static_cast<index_t>(rng.bits() >> rng.integer(1, 63)),
                  b = static_cast<index_t>(rng.bits() >> rng.integer(1, 63));
    index_t sum = 0, product = 0;
    if (__builtin_add_overflow(a, b, &sum)) sum = uncountable;
    if (__builtin_mul_overflow(a, b, &product)) product = uncountable;
    REQUIRE(size_sum(a, b) == sum);
    REQUIRE(size_product(a, b) == product);
  }
  STATIC_REQUIRE(size_product(uncountable, 0) == 0);
  STATIC_REQUIRE(size_product(0, uncountable) == 0);
  STATIC_REQUIRE(size_product(uncountable, 2) == uncountable);
  STATIC_REQUIRE(size_sum(uncountable, 1) == uncountable);
}

TEST_CASE("more rows than memory can hold are refused") {
  CHECK_NOTHROW(expar::detail::check_rows_of_experts("x", 1, expar::detail::most_rows));
  CHECK_THROWS_WITH(expar::detail::check_rows_of_experts("x", 2, expar::detail::most_rows),
                    "expar: x: 2 experts of 4611686018427387903 rows each are more than memory can "
                    "hold");
}
