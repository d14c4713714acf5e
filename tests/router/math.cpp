// SPDX-License-Identifier: Apache-2.0
#include <expar/router/math.hpp>

#include "../support/catch.hpp"
#include "support.hpp"

using Catch::Matchers::WithinAbs;
using Catch::Matchers::WithinRel;
namespace detail = expar::detail;

namespace {

template <class A>
void compare_with_the_library(double accuracy) {
  router_test::random rng(3);
  for (int round = 0; round < 5000; ++round) {
    // Of all magnitudes, down to where the power series alone counts.
    A const size = static_cast<A>(std::exp(rng.uniform(-25, 4)));
    A const x = rng.chance(.5) ? size : -size;
    double const exact = static_cast<double>(x), large = static_cast<double>(size);
    CAPTURE(exact);
    REQUIRE_THAT(static_cast<double>(detail::hyperbolic_tangent(x)),
                 WithinRel(std::tanh(exact), accuracy));
    REQUIRE_THAT(static_cast<double>(detail::one_minus_exp(size)),
                 WithinRel(-std::expm1(-large), accuracy));
    REQUIRE_THAT(static_cast<double>(detail::softplus(x)),
                 WithinRel(exact > 40 ? exact : std::log1p(std::exp(exact)), accuracy));
    if (size <= 1)
      REQUIRE_THAT(static_cast<double>(detail::log_one_plus(size)),
                   WithinRel(std::log1p(large), accuracy));
  }
}

template <class A>
void compare_logarithm_and_cosine(double accuracy) {
  router_test::random rng(4);
  for (int round = 0; round < 20000; ++round) {
    A const x = static_cast<A>(std::exp(rng.uniform(-80, 80)));
    CAPTURE(x);
    REQUIRE_THAT(static_cast<double>(detail::logarithm(x)),
                 WithinRel(std::log(static_cast<double>(x)), accuracy));
    A const size = static_cast<A>(std::exp(rng.uniform(-25, -1.3)));
    A const f = rng.chance(.5) ? size : -size;
    REQUIRE_THAT(static_cast<double>(detail::log_near_one(f)),
                 WithinRel(std::log1p(static_cast<double>(f)), accuracy));
    A const near_one = 1 + f;
    REQUIRE_THAT(static_cast<double>(detail::logarithm(near_one)),
                 WithinRel(std::log(static_cast<double>(near_one)), accuracy));
    A const turns = static_cast<A>(rng.uniform());
    REQUIRE_THAT(static_cast<double>(detail::cosine_of_turns(turns)),
                 WithinAbs(std::cos(6.283185307179586 * static_cast<double>(turns)), accuracy));
  }
  REQUIRE(detail::logarithm(A(1)) == 0);
  REQUIRE_THAT(static_cast<double>(detail::logarithm(std::numeric_limits<A>::min())),
               WithinRel(std::log(static_cast<double>(std::numeric_limits<A>::min())), accuracy));
  REQUIRE_THAT(static_cast<double>(detail::logarithm(std::numeric_limits<A>::max())),
               WithinRel(std::log(static_cast<double>(std::numeric_limits<A>::max())), accuracy));
  REQUIRE(detail::cosine_of_turns(A(0)) == 1);
  REQUIRE(detail::cosine_of_turns(A(.25)) == 0);
  REQUIRE(detail::cosine_of_turns(A(.5)) == -1);
  REQUIRE(detail::cosine_of_turns(A(.75)) == 0);
  REQUIRE(detail::cosine_of_turns(A(1)) == 1);
}

}  // namespace

TEST_CASE("logarithm and cosine are exact to some last places", "[router]") {
  compare_logarithm_and_cosine<double>(1e-15);
  compare_logarithm_and_cosine<float>(3e-7);
}

TEST_CASE("functions of routers are exact to some last places", "[router]") {
  compare_with_the_library<double>(2e-15);
  compare_with_the_library<float>(1e-6);
}

TEST_CASE("functions of routers have limits", "[router]") {
  REQUIRE(detail::hyperbolic_tangent(1e30) == 1);
  REQUIRE(detail::hyperbolic_tangent(-router_test::inf) == -1);
  REQUIRE(detail::hyperbolic_tangent(0.) == 0);
  REQUIRE(detail::one_minus_exp(0.f) == 0);
  REQUIRE(detail::one_minus_exp(200.f) == 1);
  REQUIRE(detail::softplus(router_test::inf) == router_test::inf);
  REQUIRE(detail::softplus(-1000.) == 0);
  REQUIRE(detail::square_root(2.) == std::sqrt(2.));
  REQUIRE(detail::square_root(2.f) == std::sqrt(2.f));
}
