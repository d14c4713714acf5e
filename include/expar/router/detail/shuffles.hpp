// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/config.hpp>

EXPAR_IEEE_BEGIN
namespace expar::inline v0::detail {

/// Each quad of 4 entries made of a quad of `a` and the same one of `b`, of which the entries are
/// numbered 0 to 3 and 4 to 7.
template <int I0, int I1, int I2, int I3, class V>
inline V shuffle_quads(V a, V b) {
  constexpr int size = sizeof(V) / 4;
  constexpr int p = I0 < 4 ? I0 : I0 + size - 4, q = I1 < 4 ? I1 : I1 + size - 4;
  constexpr int r = I2 < 4 ? I2 : I2 + size - 4, s = I3 < 4 ? I3 : I3 + size - 4;
  if constexpr (size == 4)
    return __builtin_shufflevector(a, b, p, q, r, s);
  else if constexpr (size == 8)
    return __builtin_shufflevector(a, b, p, q, r, s, p + 4, q + 4, r + 4, s + 4);
  else
    return __builtin_shufflevector(a, b, p, q, r, s, p + 4, q + 4, r + 4, s + 4, p + 8, q + 8,
                                   r + 8, s + 8, p + 12, q + 12, r + 12, s + 12);
}
/// a0 b0 a1 b1.
template <class V>
inline V low_pairs(V a, V b) {
  return shuffle_quads<0, 4, 1, 5>(a, b);
}
/// a2 b2 a3 b3.
template <class V>
inline V high_pairs(V a, V b) {
  return shuffle_quads<2, 6, 3, 7>(a, b);
}
/// a0 a1 b0 b1.
template <class V>
inline V first_halves(V a, V b) {
  return shuffle_quads<0, 1, 4, 5>(a, b);
}
/// a2 a3 b2 b3.
template <class V>
inline V last_halves(V a, V b) {
  return shuffle_quads<2, 3, 6, 7>(a, b);
}
/// a0 a2 b0 b2.
template <class V>
inline V even_entries(V a, V b) {
  return shuffle_quads<0, 2, 4, 6>(a, b);
}
/// a1 a3 b1 b3.
template <class V>
inline V odd_entries(V a, V b) {
  return shuffle_quads<1, 3, 5, 7>(a, b);
}

/// to(i, v) for the two vectors that have a and b entry by entry, a0 b0 a1 b1 ...
template <class V, class F>
inline void interleave(V a, V b, F to) {
  if constexpr (sizeof(V) == 16) {
    to(0, low_pairs(a, b));
    to(1, high_pairs(a, b));
  } else if constexpr (sizeof(V) == 32) {
    to(0, V(__builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11)));
    to(1, V(__builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15)));
  } else {
    to(0, V(__builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19,  //
                                    4, 20, 5, 21, 6, 22, 7, 23)));
    to(1, V(__builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27,  //
                                    12, 28, 13, 29, 14, 30, 15, 31)));
  }
}

/// to(i, v) for the four vectors that have the entries i, i + 4, ... of a, b, c and d, in quads:
/// the first has a0 b0 c0 d0, a4 b4 c4 d4, ...
template <class V, class F>
inline void transpose_quads(V a, V b, V c, V d, F to) {
  V const ab = low_pairs(a, b), cd = low_pairs(c, d);
  V const ab_high = high_pairs(a, b), cd_high = high_pairs(c, d);
  to(0, first_halves(ab, cd));
  to(1, last_halves(ab, cd));
  to(2, first_halves(ab_high, cd_high));
  to(3, last_halves(ab_high, cd_high));
}

/// A vector of T that has so many bytes, of the quads load(0), load(1), ..., vectors of 16 bytes.
template <class T, int Bytes, class F>
inline auto join_quads(F load) {
  if constexpr (Bytes == 16) {
    return load(0);
  } else if constexpr (Bytes == 32) {
    return __builtin_shufflevector(load(0), load(1), 0, 1, 2, 3, 4, 5, 6, 7);
  } else {
    auto const low = __builtin_shufflevector(load(0), load(1), 0, 1, 2, 3, 4, 5, 6, 7);
    auto const high = __builtin_shufflevector(load(2), load(3), 0, 1, 2, 3, 4, 5, 6, 7);
    return __builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7,  //
                                   8, 9, 10, 11, 12, 13, 14, 15);
  }
}
/// put(i, quad) for the quads of v.
template <class V, class F>
inline void split_quads(V v, F put) {
  put(0, __builtin_shufflevector(v, v, 0, 1, 2, 3));
  if constexpr (sizeof(V) >= 32) put(1, __builtin_shufflevector(v, v, 4, 5, 6, 7));
  if constexpr (sizeof(V) >= 64) {
    put(2, __builtin_shufflevector(v, v, 8, 9, 10, 11));
    put(3, __builtin_shufflevector(v, v, 12, 13, 14, 15));
  }
}

}  // namespace expar::inline v0::detail
EXPAR_IEEE_END
