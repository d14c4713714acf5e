// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include <expar/config.hpp>
#include <expar/detail/arithmetic.hpp>
#include <expar/router/exp.hpp>

EXPAR_IEEE_BEGIN
namespace expar::inline v0::detail {

// What routers need besides e^x, made of single products, sums and quotients as exponential() is,
// so that host and device give the same bits.

EXPAR_HD inline float square_root(float x) {
#if defined(__CUDA_ARCH__)
  return __fsqrt_rn(x);
#else
  return __builtin_sqrtf(x);
#endif
}
EXPAR_HD inline double square_root(double x) {
#if defined(__CUDA_ARCH__)
  return __dsqrt_rn(x);
#else
  return __builtin_sqrt(x);
#endif
}

/// Terms of a power series that reach the last place of A.
template <class A>
inline constexpr int atanh_terms = sizeof(A) == 4 ? 8 : 18;
template <class A>
inline constexpr int exp_terms = sizeof(A) == 4 ? 9 : 15;

/// 2 atanh(w) for |w| <= 1/3: what log((1 + w) / (1 - w)) is.
template <class A>
EXPAR_HD A twice_atanh(A w) {
  A const square = multiply(w, w);
  A sum = 0;
  for (int n = atanh_terms<A>; n > 0; --n)
    sum = multiply(square, add(sum, divide(A(1), static_cast<A>(2 * n + 1))));
  return multiply(A(2), add(w, multiply(w, sum)));
}

/// log(1 + y) for 0 <= y <= 1.
template <class A>
EXPAR_HD A log_one_plus(A y) {
  return twice_atanh(divide(y, add(A(2), y)));
}

/// 1 - e^-x for x >= 0.
template <class A>
EXPAR_HD A one_minus_exp(A x) {
  if (x > A(0.5)) return add(A(1), -small_exponential(-x));
  A sum = 0;  // x - x^2/2 + x^3/6 - ...
  for (int n = exp_terms<A>; n > 1; --n)
    sum = multiply(divide(-x, static_cast<A>(n)), add(A(1), sum));
  return multiply(x, add(A(1), sum));
}

/// tanh(x), also where it is small.
template <class A>
EXPAR_HD A hyperbolic_tangent(A x) {
  A const size = x < A(0) ? -x : x;
  A const part = one_minus_exp(multiply(A(2), size));
  A const t = divide(part, add(A(2), -part));
  return x < A(0) ? -t : t;
}

/// log(1 + e^x). Where e^x is below the smallest normal number: 0.
template <class A>
EXPAR_HD A softplus(A x) {
  A const tail = log_one_plus(small_exponential(x < A(0) ? x : -x));
  return x > A(0) ? add(x, tail) : tail;
}

/// log(1 + f) where 1 + f is between sqrt(1/2) and sqrt(2), to some last places of the result also
/// where f is small. The polynomials here and in cosine_of_turns() are those of the Cephes library
/// for float and of fdlibm for double.
EXPAR_HD inline float log_near_one(float f) {
  float const square = multiply(f, f);
  float p = 7.0376836292e-2f;
  p = add(multiply(p, f), -1.1514610310e-1f);
  p = add(multiply(p, f), 1.1676998740e-1f);
  p = add(multiply(p, f), -1.2420140846e-1f);
  p = add(multiply(p, f), 1.4249322787e-1f);
  p = add(multiply(p, f), -1.6668057665e-1f);
  p = add(multiply(p, f), 2.0000714765e-1f);
  p = add(multiply(p, f), -2.4999993993e-1f);
  p = add(multiply(p, f), 3.3333331174e-1f);
  p = multiply(multiply(p, f), square);
  return add(f, add(p, multiply(-.5f, square)));
}
EXPAR_HD inline double log_near_one(double f) {
  double const s = divide(f, add(2., f)), square = multiply(s, s);
  double p = 1.479819860511658591e-01;
  p = add(multiply(p, square), 1.531383769920937332e-01);
  p = add(multiply(p, square), 1.818357216161805012e-01);
  p = add(multiply(p, square), 2.222219843214978396e-01);
  p = add(multiply(p, square), 2.857142874366239149e-01);
  p = add(multiply(p, square), 3.999999999940941908e-01);
  p = multiply(add(multiply(p, square), 6.666666666666735130e-01), square);
  double const half_square = multiply(.5, multiply(f, f));
  return add(f, -add(half_square, -multiply(s, add(half_square, p))));
}

/// log(x) of a normal number x > 0.
EXPAR_HD inline float logarithm(float x) {
  constexpr std::uint32_t one = 0x3f800000, root = 0x3f3504f3;  // sqrt(1/2)
  std::uint32_t const bits = __builtin_bit_cast(std::uint32_t, x) + (one - root);
  float const n = static_cast<float>(static_cast<std::int32_t>(bits >> 23) - 127);
  float const m = __builtin_bit_cast(float, (bits & 0x7fffffu) + root);
  float const rest = add(log_near_one(add(m, -1.f)), multiply(n, -2.12194440e-4f));
  return add(rest, multiply(n, 0.693359375f));
}
EXPAR_HD inline double logarithm(double x) {
  constexpr std::uint64_t one = 0x3ff0000000000000, root = 0x3fe6a09e667f3bcd;
  std::uint64_t const bits = __builtin_bit_cast(std::uint64_t, x) + (one - root);
  double const n = static_cast<double>(static_cast<std::int32_t>(bits >> 52) - 1023);
  double const m = __builtin_bit_cast(double, (bits & 0xfffffffffffffu) + root);
  double const rest = add(log_near_one(add(m, -1.)), multiply(n, 1.90821492927058770002e-10));
  return add(rest, multiply(n, 6.93147180369123816490e-01));
}

/// sin(a) and cos(a) for |a| <= pi / 4.
EXPAR_HD inline float small_sine(float a) {
  float const square = multiply(a, a);
  float p = -1.9515295891e-4f;
  p = add(multiply(p, square), 8.3321608736e-3f);
  p = add(multiply(p, square), -1.6666654611e-1f);
  return add(a, multiply(multiply(p, square), a));
}
EXPAR_HD inline double small_sine(double a) {
  double const square = multiply(a, a);
  double p = 1.58969099521155010221e-10;
  p = add(multiply(p, square), -2.50507602534068634195e-08);
  p = add(multiply(p, square), 2.75573137070700676789e-06);
  p = add(multiply(p, square), -1.98412698298579493134e-04);
  p = add(multiply(p, square), 8.33333333332248946124e-03);
  p = add(multiply(p, square), -1.66666666666666324348e-01);
  return add(a, multiply(multiply(p, square), a));
}
EXPAR_HD inline float small_cosine(float a) {
  float const square = multiply(a, a);
  float p = 2.443315711809948e-5f;
  p = add(multiply(p, square), -1.388731625493765e-3f);
  p = add(multiply(p, square), 4.166664568298827e-2f);
  return add(1.f, add(multiply(multiply(p, square), square), multiply(-.5f, square)));
}
EXPAR_HD inline double small_cosine(double a) {
  double const square = multiply(a, a);
  double p = -1.13596475577881948265e-11;
  p = add(multiply(p, square), 2.08757232129817482790e-09);
  p = add(multiply(p, square), -2.75573143513906633035e-07);
  p = add(multiply(p, square), 2.48015872894767294178e-05);
  p = add(multiply(p, square), -1.38888888888741095749e-03);
  p = add(multiply(p, square), 4.16666666666666019037e-02);
  return add(1., add(multiply(multiply(p, square), square), multiply(-.5, square)));
}

/// cos(2 pi x) for 0 <= x <= 1.
template <class A>
EXPAR_HD A cosine_of_turns(A x) {
  A const quarters = multiply(A(4), x);
  int const n = static_cast<int>(add(quarters, A(.5)));
  A const angle = multiply(add(quarters, -static_cast<A>(n)), A(1.57079632679489661923));
  A const value = n % 2 == 0 ? small_cosine(angle) : small_sine(angle);
  return n == 1 || n == 2 ? -value : value;
}

}  // namespace expar::inline v0::detail
EXPAR_IEEE_END
