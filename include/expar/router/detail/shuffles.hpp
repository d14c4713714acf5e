// SPDX-License-Identifier: Apache-2.0
#pragma once

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define EXPAR_DETAIL_SHUFFLES 1
#endif
#endif

namespace expar {
inline namespace v0 {
namespace detail {

/// Each quad of 4 entries made of a quad of `a` and the same one of `b`, of which the entries are
/// numbered 0 to 3 and 4 to 7.
template <int I0, int I1, int I2, int I3, class V>
inline V shuffle_quads(V a, V b) {
  constexpr int size = sizeof(V) / 4;
#ifdef EXPAR_DETAIL_SHUFFLES
  constexpr int p = I0 < 4 ? I0 : I0 + size - 4, q = I1 < 4 ? I1 : I1 + size - 4;
  constexpr int r = I2 < 4 ? I2 : I2 + size - 4, s = I3 < 4 ? I3 : I3 + size - 4;
  if constexpr (size == 4)
    return __builtin_shufflevector(a, b, p, q, r, s);
  else if constexpr (size == 8)
    return __builtin_shufflevector(a, b, p, q, r, s, p + 4, q + 4, r + 4, s + 4);
  else
    return __builtin_shufflevector(a, b, p, q, r, s, p + 4, q + 4, r + 4, s + 4, p + 8, q + 8,
                                   r + 8, s + 8, p + 12, q + 12, r + 12, s + 12);
#else
  constexpr int from[] = {I0, I1, I2, I3};
  V all;
  for (int i = 0; i < size; ++i) {
    int const at = i / 4 * 4 + from[i % 4] % 4;
    all[i] = from[i % 4] < 4 ? a[at] : b[at];
  }
  return all;
#endif
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

/// Four vectors a, b, c, d to the quads a0 b0 c0 d0, ..., a3 b3 c3 d3: `to[i]` has those of the
/// entries i, i + 4, ...
template <class V>
inline void transpose_quads(V a, V b, V c, V d, V* to) {
  V const ab = low_pairs(a, b), cd = low_pairs(c, d);
  V const ab_high = high_pairs(a, b), cd_high = high_pairs(c, d);
  to[0] = first_halves(ab, cd), to[1] = last_halves(ab, cd);
  to[2] = first_halves(ab_high, cd_high), to[3] = last_halves(ab_high, cd_high);
}

}  // namespace detail
}  // namespace v0
}  // namespace expar

#undef EXPAR_DETAIL_SHUFFLES
