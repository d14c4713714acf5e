// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstring>

#include <expar/router/detail/pack.hpp>
#include <expar/router/detail/shuffles.hpp>
#include <expar/tensor.hpp>

#if defined(__AVX512F__) && !defined(__CUDACC__)
#include <immintrin.h>
#define EXPAR_DETAIL_AVX512 1
#endif

EXPAR_IEEE_BEGIN
namespace expar::inline v0::detail {
inline namespace EXPAR_VECTORS {

/// Four numbers of 4 bytes at `row`, and behind each step from there, as many as fit.
template <class T>
EXPAR_ALWAYS_INLINE auto load_quads(T const* row, index_t step) {
#ifdef EXPAR_DETAIL_AVX512
  typedef T V __attribute__((vector_size(vector_bytes)));
  auto const quad = [=](int i) { return _mm_loadu_si128((__m128i const*)(row + i * step)); };
  __m512i quads = _mm512_castsi128_si512(quad(0));
  quads = _mm512_maskz_inserti32x4(0xffff, quads, quad(1), 1);
  quads = _mm512_maskz_inserti32x4(0xffff, quads, quad(2), 2);
  return (V)_mm512_maskz_inserti32x4(0xffff, quads, quad(3), 3);
#else
  typedef T Q __attribute__((vector_size(16)));
  return join_quads<T, vector_bytes>([=](int i) {
    Q quad;
    std::memcpy(&quad, row + i * step, sizeof quad);
    return quad;
  });
#endif
}

/// Rows of `columns` numbers, one of each lane and `stride` numbers apart, to packs, one of each
/// column.
template <class T>
EXPAR_ALWAYS_INLINE void transpose(T const* rows, index_t stride, index_t columns, T* to) {
  typedef T V __attribute__((vector_size(vector_bytes)));
  constexpr int lanes = vector_bytes / static_cast<int>(sizeof(T));
  index_t done = 0;
  if constexpr (sizeof(T) == 4) {
    done = columns / 4 * 4;
    index_t const four = 4 * stride;
    for (index_t c = 0; c < done; c += 4) {
      T const *const first = rows + c, *const third = first + 2 * stride;
      transpose_quads(load_quads(first, four), load_quads(first + stride, four),
                      load_quads(third, four), load_quads(third + stride, four),
                      [=](int i, V v) { std::memcpy(to + (c + i) * lanes, &v, sizeof v); });
    }
  }
  for (index_t c = done; c < columns; ++c)
    for (int l = 0; l < lanes; ++l) to[c * lanes + l] = rows[l * stride + c];
}

/// transpose() of rows of 8 numbers that follow one another.
EXPAR_ALWAYS_INLINE void transpose_eights(float const* rows, float* to) {
#ifdef EXPAR_DETAIL_AVX512
  __m512 two[8], four[8];  // rows of each
  __m512d eight[8];
  for (int i = 0; i < 8; ++i) two[i] = _mm512_loadu_ps(rows + 16 * i);
  for (int i = 0; i < 8; i += 2) {
    four[i] = _mm512_maskz_unpacklo_ps(0xffff, two[i], two[i + 1]);
    four[i + 1] = _mm512_maskz_unpackhi_ps(0xffff, two[i], two[i + 1]);
  }
  for (int i = 0; i < 8; i += 4)
    for (int j = 0; j < 2; ++j) {
      auto const a = (__m512d)four[i + j], b = (__m512d)four[i + j + 2];
      eight[i + 2 * j] = _mm512_maskz_unpacklo_pd(0xff, a, b);
      eight[i + 2 * j + 1] = _mm512_maskz_unpackhi_pd(0xff, a, b);
    }
  for (int half = 0; half < 2; ++half) {
    int const h = 4 * half;
    __m512i const from =
        _mm512_setr_epi32(h, h + 8, h + 1, h + 9, h + 2, h + 10, h + 3, h + 11,  //
                          h + 16, h + 24, h + 17, h + 25, h + 18, h + 26, h + 19, h + 27);
    for (int j = 0; j < 4; ++j)
      _mm512_storeu_ps(to + (h + j) * 16,
                       _mm512_permutex2var_ps((__m512)eight[j], from, (__m512)eight[4 + j]));
  }
#else
  transpose(rows, 8, 8, to);
#endif
}

}  // namespace EXPAR_VECTORS
}  // namespace expar::inline v0::detail
EXPAR_IEEE_END

#undef EXPAR_DETAIL_AVX512
