// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/config.hpp>
#include <expar/detail/arithmetic.hpp>
#include <expar/router/exp.hpp>

namespace expar {
inline namespace v0 {
namespace detail {

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

}  // namespace detail
}  // namespace v0
}  // namespace expar
