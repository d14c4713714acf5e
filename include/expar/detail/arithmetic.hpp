// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include <expar/config.hpp>

EXPAR_IEEE_BEGIN
namespace expar::inline v0::detail {

// Products and sums that are rounded one by one, so that host and device give the same bits. A
// device never contracts a product and a sum of these into one operation. A host compiler may,
// where its target has such an operation: GCC and Clang do not with -ffp-contract=off.

EXPAR_HD inline float multiply(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}
EXPAR_HD inline double multiply(double a, double b) {
#if defined(__CUDA_ARCH__)
  return __dmul_rn(a, b);
#else
  return a * b;
#endif
}
EXPAR_HD inline float add(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fadd_rn(a, b);
#else
  return a + b;
#endif
}
EXPAR_HD inline double add(double a, double b) {
#if defined(__CUDA_ARCH__)
  return __dadd_rn(a, b);
#else
  return a + b;
#endif
}
EXPAR_HD inline float divide(float a, float b) {
#if defined(__CUDA_ARCH__)
  return __fdiv_rn(a, b);
#else
  return a / b;
#endif
}
EXPAR_HD inline double divide(double a, double b) {
#if defined(__CUDA_ARCH__)
  return __ddiv_rn(a, b);
#else
  return a / b;
#endif
}

// x, or 0 unless `keep`, whatever x is. Without a branch, also where compilers prefer one to a
// selection, so that loops become vector code.
EXPAR_HD inline float zero_unless(bool keep, float x) {
  return __builtin_bit_cast(
      float, __builtin_bit_cast(std::uint32_t, x) & (0u - static_cast<std::uint32_t>(keep)));
}
EXPAR_HD inline double zero_unless(bool keep, double x) {
  return __builtin_bit_cast(double, __builtin_bit_cast(std::uint64_t, x) &
                                        (std::uint64_t{0} - static_cast<std::uint64_t>(keep)));
}

EXPAR_HD inline bool is_nan(double x) {
  return x != x;
}
EXPAR_HD inline bool is_finite(double x) {
  return x - x == 0;
}

}  // namespace expar::inline v0::detail
EXPAR_IEEE_END
