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

namespace expar {
inline namespace v0 {
namespace detail {
inline namespace EXPAR_VECTORS {

/// Four numbers of 4 bytes of the rows i, i + 4, i + 8, ..., as many as fit.
template <class T>
inline auto load_quads(T const* const* rows, index_t at, int i) {
  typedef T V __attribute__((vector_size(vector_bytes)));
  V v;
#ifdef EXPAR_DETAIL_AVX512
  auto const quad = [=](int l) { return _mm_loadu_si128((__m128i const*)(rows[i + l] + at)); };
  __m512i quads = _mm512_castsi128_si512(quad(0));
  quads = _mm512_maskz_inserti32x4(0xffff, quads, quad(4), 1);
  quads = _mm512_maskz_inserti32x4(0xffff, quads, quad(8), 2);
  v = (V)_mm512_maskz_inserti32x4(0xffff, quads, quad(12), 3);
#else
  T quads[vector_bytes / 4];
  for (int l = 0; l < vector_bytes / 4; l += 4) std::memcpy(quads + l, rows[i + l] + at, 16);
  std::memcpy(&v, quads, sizeof v);
#endif
  return v;
}

/// Rows of `columns` numbers, one of each lane, to packs, one of each column.
template <class T>
inline void transpose(T const* const* rows, index_t columns, T* to) {
  typedef T V __attribute__((vector_size(vector_bytes)));
  constexpr int lanes = vector_bytes / static_cast<int>(sizeof(T));
  index_t done = 0;
  if constexpr (sizeof(T) == 4) {
    done = columns / 4 * 4;
    for (index_t c = 0; c < done; c += 4) {
      V made[4];
      transpose_quads(load_quads(rows, c, 0), load_quads(rows, c, 1), load_quads(rows, c, 2),
                      load_quads(rows, c, 3), static_cast<V*>(made));
      for (int i = 0; i < 4; ++i) std::memcpy(to + (c + i) * lanes, made + i, sizeof made[i]);
    }
  }
  for (index_t c = done; c < columns; ++c)
    for (int l = 0; l < lanes; ++l) to[c * lanes + l] = rows[l][c];
}

}  // namespace EXPAR_VECTORS
}  // namespace detail
}  // namespace v0
}  // namespace expar

#undef EXPAR_DETAIL_AVX512
