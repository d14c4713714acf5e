// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include <expar/config.hpp>
#include <expar/error.hpp>
#include <expar/tensor.hpp>

namespace expar::inline v0::detail {

// Sizes are at least 0. A sum or a product of them that an index cannot count is `uncountable`
// instead of something small, and so is every sum, and every product but that with 0, which it
// enters: a bound on the result is one on all of it.
inline constexpr index_t uncountable = PTRDIFF_MAX;

EXPAR_HD constexpr index_t size_sum(index_t a, index_t b) {
  return b > uncountable - a ? uncountable : a + b;
}
EXPAR_HD constexpr index_t size_product(index_t a, index_t b) {
#if defined(__CUDA_ARCH__)
  return a != 0 && b > uncountable / a ? uncountable : a * b;
#else  // without a division
  index_t product = 0;
  return __builtin_mul_overflow(a, b, &product) ? uncountable : product;
#endif
}

/// The most rows that experts have together. Half of what an index counts, since fewer experts than
/// twice as many stand in blocks of equal size, one for each rank.
inline constexpr index_t most_rows = uncountable / 2;

inline void check_rows_of_experts(char const* what, int experts, index_t capacity) {
  expects(size_product(experts, capacity) <= most_rows, what, ": ", experts, " experts of ",
          capacity, " rows each are more than memory can hold");
}

}  // namespace expar::inline v0::detail
