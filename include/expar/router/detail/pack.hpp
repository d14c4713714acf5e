// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include <expar/detail/vectors.hpp>
#include <expar/router/detail/extremes.hpp>
#include <expar/router/exp.hpp>

#if defined(__AVX512F__) && !defined(__CUDACC__)
#include <immintrin.h>
#define EXPAR_DETAIL_AVX512 1
#endif

EXPAR_IEEE_BEGIN
namespace expar::inline v0::detail {
inline namespace EXPAR_VECTORS {

/// One number of each of `lanes` tokens. What it is computed by has the bits of the scalar
/// functions of the same name.
template <class A>
struct pack {
  using integer = std::conditional_t<sizeof(A) == 4, std::int32_t, std::int64_t>;
  typedef A vector __attribute__((vector_size(vector_bytes)));
  typedef std::make_unsigned_t<integer> bits __attribute__((vector_size(vector_bytes)));
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
  return {larger_lanes(key.v, before.v)};
}
/// The smaller of both; the second one if either is NaN.
template <class A>
inline pack<A> smaller(pack<A> a, pack<A> b) {
  return {smaller_lanes(a.v, b.v)};
}
template <class A>
inline bool any(mask_of<A> m) {
#ifdef EXPAR_DETAIL_AVX512
  return _mm512_test_epi32_mask((__m512i)m, (__m512i)m) != 0;
#else
  std::uint64_t words[vector_bytes / 8], set = 0;
  std::memcpy(words, &m, sizeof m);
  for (std::uint64_t word : words) set |= word;
  return set != 0;
#endif
}

/// As small_exponential(float); 0 where x is NaN.
EXPAR_ALWAYS_INLINE pack<float> small_exponential(pack<float> x) {
  using p = pack<float>;
  p const shift = p::all(0x1.8p23f);
  p const shifted = add(multiply(x, p::all(1.44269504f)), shift);
  p const n = subtract(shifted, shift);
  p const r = add(add(x, multiply(n, p::all(-0.693359375f))), multiply(n, p::all(2.12194440e-4f)));
  p y = p::all(1.4037225628e-3f);
  y = add(multiply(y, r), p::all(8.3723356947e-3f));
  y = add(multiply(y, r), p::all(4.1665550321e-2f));
  y = add(multiply(y, r), p::all(1.6666488349e-1f));
  y = add(multiply(y, r), p::all(.5f));
  y = add(multiply(y, r), p::all(1.f));
  y = add(multiply(y, r), p::all(1.f));
  p const power = {(p::vector)((p::bits)y.v + ((p::bits)shifted.v << 23))};
  return zero_unless(x.v >= p::all(-87.336544f).v, power);
}
/// As exponential(float); 1 or 0 where x is NaN.
inline pack<float> exponential(pack<float> x) {
  using p = pack<float>;
  return select(x.v > p::all(largest_exponent<float>).v, p::all(infinity<float>),
                small_exponential(x));
}

}  // namespace EXPAR_VECTORS
}  // namespace expar::inline v0::detail
EXPAR_IEEE_END

#undef EXPAR_DETAIL_AVX512
