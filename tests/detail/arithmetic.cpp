// SPDX-License-Identifier: Apache-2.0
#include <expar/detail/arithmetic.hpp>

#include <limits>

#include "../support/catch.hpp"

namespace detail = expar::detail;

TEMPLATE_TEST_CASE("a product and a sum are rounded one by one", "", float, double) {
  using A = TestType;
  A const e = std::numeric_limits<A>::epsilon();
  volatile A const x = 1 + e;  // the compiler does not know it
  // The square of x is 1 + 2e + e^2, which rounds to 1 + 2e.
  REQUIRE(detail::add(detail::multiply(x, x), -(1 + 2 * e)) == 0);
  REQUIRE(detail::divide(A(1), A(4)) == A(.25));
}

TEMPLATE_TEST_CASE("zero_unless keeps a number or drops whatever it is", "", float, double) {
  using A = TestType;
  A const inf = std::numeric_limits<A>::infinity(), nan = std::numeric_limits<A>::quiet_NaN();
  for (A const x : {A(0), A(-3), A(1.5), inf, -inf}) REQUIRE(detail::zero_unless(true, x) == x);
  for (A const x : {A(-3), inf, nan}) REQUIRE(detail::zero_unless(false, x) == 0);
}
