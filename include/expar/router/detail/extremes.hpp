// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <type_traits>

#include <expar/config.hpp>

#ifndef __CUDACC__
#ifdef __SSE2__
#define EXPAR_DETAIL_SSE 1
#endif
#ifdef __AVX__
#define EXPAR_DETAIL_AVX 1
#endif
#ifdef __AVX512F__
#include <immintrin.h>
#define EXPAR_DETAIL_AVX512 1
#endif
#endif

EXPAR_IEEE_BEGIN
namespace expar::inline v0::detail {

template <class V>
inline constexpr bool is_float_vector =
    std::is_same_v<std::remove_cvref_t<decltype(V{}[0])>, float>;

// One instruction of x86, for which compilers do not take a comparison of their vectors. Those of
// 512 bits have a mask of all lanes: without one, GCC 12 warns of its own header.

/// In each lane a > b ? a : b.
template <class V>
inline V larger_lanes(V a, V b) {
  [[maybe_unused]] constexpr bool floats = is_float_vector<V>;
#ifdef EXPAR_DETAIL_AVX512
  if constexpr (sizeof(V) == 64 && floats) return (V)_mm512_maskz_max_ps(0xffff, a, b);
  if constexpr (sizeof(V) == 64 && !floats) return (V)_mm512_maskz_max_pd(0xff, a, b);
#endif
#ifdef EXPAR_DETAIL_AVX
  if constexpr (sizeof(V) == 32 && floats) return __builtin_ia32_maxps256(a, b);
  if constexpr (sizeof(V) == 32 && !floats) return __builtin_ia32_maxpd256(a, b);
#endif
#ifdef EXPAR_DETAIL_SSE
  if constexpr (sizeof(V) == 16 && floats) return __builtin_ia32_maxps(a, b);
  if constexpr (sizeof(V) == 16 && !floats) return __builtin_ia32_maxpd(a, b);
#endif
  return a > b ? a : b;
}
/// In each lane a < b ? a : b.
template <class V>
inline V smaller_lanes(V a, V b) {
  [[maybe_unused]] constexpr bool floats = is_float_vector<V>;
#ifdef EXPAR_DETAIL_AVX512
  if constexpr (sizeof(V) == 64 && floats) return (V)_mm512_maskz_min_ps(0xffff, a, b);
  if constexpr (sizeof(V) == 64 && !floats) return (V)_mm512_maskz_min_pd(0xff, a, b);
#endif
#ifdef EXPAR_DETAIL_AVX
  if constexpr (sizeof(V) == 32 && floats) return __builtin_ia32_minps256(a, b);
  if constexpr (sizeof(V) == 32 && !floats) return __builtin_ia32_minpd256(a, b);
#endif
#ifdef EXPAR_DETAIL_SSE
  if constexpr (sizeof(V) == 16 && floats) return __builtin_ia32_minps(a, b);
  if constexpr (sizeof(V) == 16 && !floats) return __builtin_ia32_minpd(a, b);
#endif
  return a < b ? a : b;
}

}  // namespace expar::inline v0::detail
EXPAR_IEEE_END

#undef EXPAR_DETAIL_SSE
#undef EXPAR_DETAIL_AVX
#undef EXPAR_DETAIL_AVX512
