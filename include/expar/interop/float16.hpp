// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/element.hpp>

// Clang has no macro for __bf16 on x86: it knows it as storage since 15.
#if defined(__BFLT16_MANT_DIG__) || defined(__ARM_FEATURE_BF16) || \
    (defined(__clang__) && __clang_major__ >= 15 && defined(__SSE2__))
#define EXPAR_DETAIL_BF16
#endif
#if !defined(__FLT16_MANT_DIG__) && !defined(EXPAR_DETAIL_BF16)
#error "expar/interop/float16.hpp: this compiler has neither _Float16 nor __bf16 for this processor"
#endif

namespace expar::inline v0 {

/// The compiler's own 16-bit floats, where it has them: _Float16 has the bits of half, __bf16 those
/// of bfloat16. So have std::float16_t and std::bfloat16_t of C++23, which are the same types. No
/// instruction for them is needed.
#ifdef __FLT16_MANT_DIG__
template <>
struct element_traits<_Float16> : traits_of_same_bits<_Float16, half> {};
#endif
#ifdef EXPAR_DETAIL_BF16
template <>
struct element_traits<__bf16> : traits_of_same_bits<__bf16, bfloat16> {};
#endif

}  // namespace expar::inline v0

#undef EXPAR_DETAIL_BF16
