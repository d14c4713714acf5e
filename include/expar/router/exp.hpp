// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <limits>

#include <expar/config.hpp>
#include <expar/detail/arithmetic.hpp>

EXPAR_IEEE_BEGIN
namespace expar::inline v0::detail {

// Variables, because kernels may read constants but not call what computes them.
template <class A>
inline constexpr A infinity = std::numeric_limits<A>::infinity();
template <class A>
inline constexpr A largest_number = std::numeric_limits<A>::max();
template <class A>
inline constexpr A smallest_normal = std::numeric_limits<A>::min();

// x = n ln 2 + r with |r| <= ln 2 / 2; the product of n with the upper part of ln 2 is exact. The
// polynomial in r is Taylor's for double; for float, one of degree 6, within a relative 5e-9. Free
// of branches, so that loops over it become vector code.

/// exponential() of an x that is not so large that the result is infinite.
EXPAR_HD inline float small_exponential(float x) {
  constexpr float shift = 0x1.8p23f;  // adding it rounds to an integer, in the low bits
  float const shifted = add(multiply(x, 1.44269504f), shift);
  float const n = add(shifted, -shift);
  float const r = add(add(x, multiply(n, -0.693359375f)), multiply(n, 2.12194440e-4f));
  float p = 1.4037225628e-3f;
  p = add(multiply(p, r), 8.3723356947e-3f);
  p = add(multiply(p, r), 4.1665550321e-2f);
  p = add(multiply(p, r), 1.6666488349e-1f);
  p = add(multiply(p, r), .5f);
  p = add(multiply(p, r), 1.f);
  p = add(multiply(p, r), 1.f);
  auto const bits =
      __builtin_bit_cast(std::uint32_t, p) + (__builtin_bit_cast(std::uint32_t, shifted) << 23);
  return zero_unless(x >= -87.336544f, __builtin_bit_cast(float, bits));
}
EXPAR_HD inline double small_exponential(double x) {
  constexpr double shift = 0x1.8p52;
  double const shifted = add(multiply(x, 1.4426950408889634), shift);
  double const n = add(shifted, -shift);
  double const r = add(add(x, multiply(n, -6.93147180369123816490e-01)),
                       multiply(n, -1.90821492927058770002e-10));
  double p = 1. / 6227020800;
  p = add(multiply(p, r), 1. / 479001600);
  p = add(multiply(p, r), 1. / 39916800);
  p = add(multiply(p, r), 1. / 3628800);
  p = add(multiply(p, r), 1. / 362880);
  p = add(multiply(p, r), 1. / 40320);
  p = add(multiply(p, r), 1. / 5040);
  p = add(multiply(p, r), 1. / 720);
  p = add(multiply(p, r), 1. / 120);
  p = add(multiply(p, r), 1. / 24);
  p = add(multiply(p, r), 1. / 6);
  p = add(multiply(p, r), .5);
  p = add(add(multiply(multiply(r, r), p), r), 1.);
  auto const bits =
      __builtin_bit_cast(std::uint64_t, p) + (__builtin_bit_cast(std::uint64_t, shifted) << 52);
  return zero_unless(x >= -708.39641853226411, __builtin_bit_cast(double, bits));
}

template <class A>
inline constexpr A largest_exponent = sizeof(A) == 4 ? A(88.722832) : A(709.78271289338397);

/// e^x within 2 units in the last place, with the same bits on host and device where the host's
/// compiler contracts no product and sum into one. Below the smallest normal number: 0; too large:
/// infinity. x is not NaN.
template <class A>
EXPAR_HD A exponential(A x) {
  bool const large = x > largest_exponent<A>;
  return add(zero_unless(!large, small_exponential(x)), zero_unless(large, infinity<A>));
}

}  // namespace expar::inline v0::detail
EXPAR_IEEE_END
