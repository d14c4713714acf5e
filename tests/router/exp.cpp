// SPDX-License-Identifier: Apache-2.0
#include <expar/router/exp.hpp>

#include <cmath>
#include <cstring>

#include "../support/catch.hpp"
#include "../support/random.hpp"

using expar::detail::exponential;

namespace {

constexpr double inf = std::numeric_limits<double>::infinity();

template <class A>
double error_in_ulps(A x) {
  long double const exact = std::exp(static_cast<long double>(x));
  int exponent = 0;
  std::frexp(exact, &exponent);
  auto const ulp = std::ldexp(1.L, exponent - std::numeric_limits<A>::digits);
  return static_cast<double>(std::fabs(static_cast<long double>(exponential(x)) - exact) / ulp);
}

}  // namespace

TEST_CASE("the exponential is within 2 units in the last place", "[router]") {
  expar_test::random rng(1);
  double worst = 0;
  for (int i = 0; i < 200000; ++i) {
    double const near = rng.uniform(-2, 2), far = rng.uniform(-87.3365, 88.7228);
    worst = std::max({worst, error_in_ulps(static_cast<float>(near)),
                      error_in_ulps(static_cast<float>(far)), error_in_ulps(near),
                      error_in_ulps(far), error_in_ulps(rng.uniform(-708.396, 709.782))});
  }
  REQUIRE(worst <= 2);
}

TEST_CASE("the exponential at its ends", "[router]") {
  REQUIRE(exponential(0.f) == 1);
  REQUIRE(exponential(-0.) == 1);
  REQUIRE(exponential(-inf) == 0);
  REQUIRE(exponential(static_cast<float>(-inf)) == 0);
  REQUIRE(exponential(inf) == inf);
  REQUIRE(exponential(static_cast<float>(inf)) == static_cast<float>(inf));
  REQUIRE(exponential(88.72284f) == static_cast<float>(inf));
  REQUIRE(std::isfinite(exponential(88.722832f)));
  REQUIRE(exponential(-87.3366f) == 0);
  REQUIRE(exponential(-87.3365f) >= 0x1p-126f);
  REQUIRE(exponential(709.783) == inf);
  REQUIRE(std::isfinite(exponential(709.782)));
  REQUIRE(exponential(-708.397) == 0);
  REQUIRE(exponential(-708.396) >= 0x1p-1022);
  REQUIRE(exponential(-1e30f) == 0);
  REQUIRE(exponential(1e300) == inf);
}
