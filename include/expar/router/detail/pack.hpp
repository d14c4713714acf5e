// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include <expar/detail/arithmetic.hpp>
#include <expar/router/exp.hpp>
#include <expar/tensor.hpp>

namespace expar {
inline namespace v0 {
namespace detail {

// Vectors of the compiler, which GCC and Clang have on every target: of the width that the target
// has, so that a vector is one register.
#if defined(__AVX512F__)
inline constexpr int vector_bytes = 64;
#elif defined(__AVX__)
inline constexpr int vector_bytes = 32;
#else
inline constexpr int vector_bytes = 16;
#endif

/// One number of each of `lanes` tokens. What it is computed by has the bits of the scalar
/// functions of the same name.
template <class A>
struct pack {
  using integer = std::conditional_t<sizeof(A) == 4, std::int32_t, std::int64_t>;
  typedef A vector __attribute__((vector_size(vector_bytes)));
  typedef integer mask __attribute__((vector_size(vector_bytes)));  // a lane is 0 or -1
  static constexpr int lanes = vector_bytes / static_cast<int>(sizeof(A));

  vector v;

  static pack all(A x) { return {x - vector{}}; }
  static pack load(A const* from) {
    pack p;
    std::memcpy(&p.v, from, sizeof p.v);
    return p;
  }
  void store(A* to) const { std::memcpy(to, &v, sizeof v); }
};

template <class A>
using mask_of = typename pack<A>::mask;

template <class A>
inline pack<A> add(pack<A> a, pack<A> b) {
  return {a.v + b.v};
}
template <class A>
inline pack<A> subtract(pack<A> a, pack<A> b) {
  return {a.v - b.v};
}
template <class A>
inline pack<A> multiply(pack<A> a, pack<A> b) {
  return {a.v * b.v};
}
template <class A>
inline pack<A> divide(pack<A> a, pack<A> b) {
  return {a.v / b.v};
}
template <class A>
inline pack<A> select(mask_of<A> m, pack<A> a, pack<A> b) {
  return {m ? a.v : b.v};
}
template <class A>
inline pack<A> zero_unless(mask_of<A> keep, pack<A> x) {
  return {(typename pack<A>::vector)((mask_of<A>)x.v & keep)};
}
/// The larger of a key and what was the largest before; a key of NaN is not larger.
template <class A>
inline pack<A> larger(pack<A> key, pack<A> before) {
  return {key.v > before.v ? key.v : before.v};
}
template <class A>
inline bool any(mask_of<A> m) {
  typename pack<A>::integer set = 0;
  for (int l = 0; l < pack<A>::lanes; ++l) set |= m[l];
  return set != 0;
}

/// As small_exponential(float); 0 where x is NaN.
inline pack<float> small_exponential(pack<float> x) {
  using p = pack<float>;
  p const shift = p::all(0x1.8p23f);
  p const shifted = add(multiply(x, p::all(1.44269504f)), shift);
  p const n = subtract(shifted, shift);
  p const r = add(add(x, multiply(n, p::all(-0.693359375f))), multiply(n, p::all(2.12194440e-4f)));
  p y = p::all(1.9875691500e-4f);
  y = add(multiply(y, r), p::all(1.3981999507e-3f));
  y = add(multiply(y, r), p::all(8.3334519073e-3f));
  y = add(multiply(y, r), p::all(4.1665795894e-2f));
  y = add(multiply(y, r), p::all(1.6666665459e-1f));
  y = add(multiply(y, r), p::all(5.0000001201e-1f));
  y = add(add(multiply(multiply(r, r), y), r), p::all(1.f));
  p const power = {(p::vector)((p::mask)y.v + ((p::mask)shifted.v << 23))};
  return zero_unless(x.v >= p::all(-87.336544f).v, power);
}
/// As exponential(float); 1 or 0 where x is NaN.
inline pack<float> exponential(pack<float> x) {
  using p = pack<float>;
  return select(x.v > p::all(largest_exponent<float>).v, p::all(infinity<float>),
                small_exponential(x));
}

/// Comparators that sort n numbers, n a power of 2 (Batcher's odd-even merge sort).
template <int N>
struct sorting_network {
  struct comparator {
    int first, second;
  };
  struct list {
    comparator at[N * 6];
    int count = 0;
  };
  static constexpr list make() {
    list all{};
    for (int p = 1; p < N; p *= 2)
      for (int k = p; k >= 1; k /= 2)
        for (int j = k % p; j + k < N; j += 2 * k)
          for (int i = j; i < j + k && i + k < N; ++i)
            if (i / (2 * p) == (i + k) / (2 * p)) all.at[all.count++] = {i, i + k};
    return all;
  }
  static constexpr list comparators = make();
};

/// Sorts N rows of vectors in every lane, the largest first. No entry is NaN.
template <int N, class Vector>
inline void sort_rows(Vector* rows) {
  Vector r[N];
  for (int i = 0; i < N; ++i) r[i] = rows[i];
  auto const compare = [&r](auto step) {
    constexpr auto c = sorting_network<N>::comparators.at[step()];
    Vector const a = r[c.first], b = r[c.second];
    r[c.first] = a > b ? a : b;
    r[c.second] = a > b ? b : a;
  };
  [&]<int... I>(std::integer_sequence<int, I...>) {
    (compare(std::integral_constant<int, I>{}), ...);
  }
  (std::make_integer_sequence<int, sorting_network<N>::comparators.count>{});
  for (int i = 0; i < N; ++i) rows[i] = r[i];
}

#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
#define EXPAR_DETAIL_SHUFFLES 1
#endif
#endif

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

/// Rows of `columns` numbers, one of each lane, to packs, one of each column. Whoever reads rows
/// that are `ahead` numbers further next finds them near.
template <class A>
inline void transpose(A const* const* rows, index_t columns, A* to, index_t ahead) {
  constexpr int lanes = pack<A>::lanes;
  index_t done = 0;
#ifdef EXPAR_DETAIL_SHUFFLES
  if constexpr (std::is_same_v<A, float>) {
    done = columns / 4 * 4;
    for (index_t c = 0; c < done; c += 4) {
      if (ahead != 0 && c % 16 == 0)
        for (int l = 0; l < lanes; ++l) __builtin_prefetch(rows[l] + c + ahead);
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
