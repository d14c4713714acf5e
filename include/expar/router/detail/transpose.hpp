// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstring>
#include <type_traits>

#include <expar/router/detail/pack.hpp>
#include <expar/tensor.hpp>

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define EXPAR_DETAIL_SHUFFLES 1
#endif
#endif

namespace expar {
inline namespace v0 {
namespace detail {

#ifdef EXPAR_DETAIL_SHUFFLES
typedef float four_floats __attribute__((vector_size(16)));
typedef float eight_floats __attribute__((vector_size(32)));

/// Four numbers of the rows i, i + 4, i + 8, ..., as many as fit.
template <class V>
inline V load_quads(float const* const* rows, index_t at, int i) {
  if constexpr (sizeof(V) == 16) {
    V quad;
    std::memcpy(&quad, rows[i] + at, sizeof quad);
    return quad;
  } else {
    using part = std::conditional_t<sizeof(V) == 32, four_floats, eight_floats>;
    constexpr int further = static_cast<int>(sizeof(V)) / 8;
    auto const a = load_quads<part>(rows, at, i), b = load_quads<part>(rows, at, i + further);
    if constexpr (sizeof(V) == 32)
      return __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7);
    else
      return __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  }
}
/// Of each quad: a0 b0 a1 b1.
template <class V>
inline V low_pairs(V a, V b) {
  if constexpr (sizeof(V) == 16)
    return __builtin_shufflevector(a, b, 0, 4, 1, 5);
  else if constexpr (sizeof(V) == 32)
    return __builtin_shufflevector(a, b, 0, 8, 1, 9, 4, 12, 5, 13);
  else
    return __builtin_shufflevector(a, b, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29);
}
/// Of each quad: a2 b2 a3 b3.
template <class V>
inline V high_pairs(V a, V b) {
  if constexpr (sizeof(V) == 16)
    return __builtin_shufflevector(a, b, 2, 6, 3, 7);
  else if constexpr (sizeof(V) == 32)
    return __builtin_shufflevector(a, b, 2, 10, 3, 11, 6, 14, 7, 15);
  else
    return __builtin_shufflevector(a, b, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15,
                                   31);
}
/// Of each quad: a0 a1 b0 b1.
template <class V>
inline V first_halves(V a, V b) {
  if constexpr (sizeof(V) == 16)
    return __builtin_shufflevector(a, b, 0, 1, 4, 5);
  else if constexpr (sizeof(V) == 32)
    return __builtin_shufflevector(a, b, 0, 1, 8, 9, 4, 5, 12, 13);
  else
    return __builtin_shufflevector(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29);
}
/// Of each quad: a2 a3 b2 b3.
template <class V>
inline V last_halves(V a, V b) {
  if constexpr (sizeof(V) == 16)
    return __builtin_shufflevector(a, b, 2, 3, 6, 7);
  else if constexpr (sizeof(V) == 32)
    return __builtin_shufflevector(a, b, 2, 3, 10, 11, 6, 7, 14, 15);
  else
    return __builtin_shufflevector(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30,
                                   31);
}
#endif

/// Rows of `columns` numbers, one of each lane, to packs, one of each column.
template <class A>
inline void transpose(A const* const* rows, index_t columns, A* to) {
  constexpr int lanes = pack<A>::lanes;
  index_t done = 0;
#ifdef EXPAR_DETAIL_SHUFFLES
  if constexpr (std::is_same_v<A, float>) {
    done = columns / 4 * 4;
    for (index_t c = 0; c < done; c += 4) {
      using V = typename pack<A>::vector;
      V const a = load_quads<V>(rows, c, 0), b = load_quads<V>(rows, c, 1);
      V const p = load_quads<V>(rows, c, 2), q = load_quads<V>(rows, c, 3);
      V const ab = low_pairs(a, b), pq = low_pairs(p, q);
      V const ab_high = high_pairs(a, b), pq_high = high_pairs(p, q);
      pack<A>{first_halves(ab, pq)}.store(to + c * lanes);
      pack<A>{last_halves(ab, pq)}.store(to + (c + 1) * lanes);
      pack<A>{first_halves(ab_high, pq_high)}.store(to + (c + 2) * lanes);
      pack<A>{last_halves(ab_high, pq_high)}.store(to + (c + 3) * lanes);
    }
  }
#endif
  for (index_t c = done; c < columns; ++c)
    for (int l = 0; l < lanes; ++l) to[c * lanes + l] = rows[l][c];
}

}  // namespace detail
}  // namespace v0
}  // namespace expar

#undef EXPAR_DETAIL_SHUFFLES
