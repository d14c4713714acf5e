// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <bit>
#include <cstdint>
#include <type_traits>

#include <expar/detail/arithmetic.hpp>
#include <expar/element.hpp>
#include <expar/plan/layout.hpp>
#include <expar/tensor.hpp>

namespace expar::inline v0::gpu::detail {

template <class T>
tensor_view<std::remove_const_t<T> const, 2> read_only(tensor_view<T, 2> const& v) {
  return {v.data, {v.extents[0], v.extents[1]}, {v.strides[0], v.strides[1]}};
}

template <int Bytes>
struct word_of;
template <>
struct word_of<16> {
  using type = uint4;
};
template <>
struct word_of<8> {
  using type = uint2;
};
template <>
struct word_of<4> {
  using type = unsigned;
};
template <>
struct word_of<2> {
  using type = unsigned short;
};
template <>
struct word_of<1> {
  using type = unsigned char;
};
/// What one access moves.
template <int Bytes>
using word = typename word_of<Bytes>::type;

/// N elements that a lane works on at once, and their accesses of up to 16 bytes. Rows pass once,
/// so they are not to stay in the caches.
template <class T, int N>
struct pack {
  static_assert(std::has_single_bit(sizeof(T)),
                "expar: on a device an element has 1, 2, 4, 8 or 16 bytes");
  static constexpr int bytes = N * static_cast<int>(sizeof(T));
  static constexpr int access = bytes < 16 ? bytes : 16, words = bytes / access;
  T at[N];

  /// The pack as it was loaded: its elements stay together in registers until they are needed.
  struct loaded {
    word<access> w[words];
    __device__ pack open() const {
      pack p;
      memcpy(p.at, w, sizeof w);
      return p;
    }
  };
  __device__ static loaded load_closed(T const* from) {
    loaded l;
#pragma unroll
    for (int i = 0; i < words; ++i)
      l.w[i] = __ldcs(reinterpret_cast<word<access> const*>(from) + i);
    return l;
  }
  __device__ static pack load(T const* from) {
    return load_closed(from).open();
  }
  __device__ void store(T* to) const {
    word<access> w[words];
    memcpy(w, at, sizeof w);
#pragma unroll
    for (int i = 0; i < words; ++i) __stcs(reinterpret_cast<word<access>*>(to) + i, w[i]);
  }
};

/// The widest N, halved from 16 bytes of T downward, that all of the tests allow, as a constant.
template <int Widest, int Narrowest = 1, class Fits, class F>
void with_width(Fits fits, F f) {
  if constexpr (Widest > Narrowest)
    if (!fits(Widest)) return with_width<Widest / 2, Narrowest>(fits, f);
  f(std::integral_constant<int, Widest>{});
}

/// Zero in the low bits where base, pitch and row size of a view all are multiples.
template <class T>
std::uintptr_t alignment_bits(tensor_view<T, 2> const& v) {
  auto const bytes = [](index_t n) { return static_cast<std::uintptr_t>(n) * sizeof(T); };
  return reinterpret_cast<std::uintptr_t>(v.data) | bytes(v.extents[1]) |
         (v.extents[0] > 1 ? bytes(v.strides[0]) : 0);
}
/// Whether N elements of the view can be one pack.
template <class T>
bool fits(tensor_view<T, 2> const& v, int n) {
  auto const bytes = static_cast<std::uintptr_t>(n) * sizeof(T);
  return v.extents[1] % n == 0 && alignment_bits(v) % (bytes < 16 ? bytes : 16) == 0;
}

/// How the warps of a launch share rows: `parts` warps to a row, each a run of `run` packs.
struct row_split {
  int parts;
  index_t run;
};
/// Runs of about `packs` packs, in whole turns of a warp.
inline row_split split_rows(index_t vectors, index_t packs) {
  index_t const parts = vectors <= packs ? 1 : (vectors + packs - 1) / packs;
  index_t const run = round_up((vectors + parts - 1) / parts, 32);
  return {static_cast<int>(vectors == 0 ? 1 : (vectors + run - 1) / run), run == 0 ? 32 : run};
}

using expar::detail::add;
using expar::detail::multiply;

template <class T>
__device__ accumulator_t<T> widen_fast(T x) {
  if constexpr (std::is_same_v<T, half>) {  // the same number, in one instruction
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(x.bits));
    return f;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
  } else if constexpr (std::is_same_v<T, float8_e4m3>) {
    unsigned both;
    asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(both) : "h"(std::uint16_t{x.bits}));
    return widen_fast(half{static_cast<std::uint16_t>(both)});
#endif
  } else {
    return widen(x);
  }
}

/// The weight of a route: entries of a [T,k] tensor, or ones.
struct unit_weights {
  template <class A>
  __device__ A at(index_t, int) const {
    return A{1};
  }
};
template <class W>
struct matrix_weights {
  tensor_view<W const, 2> matrix;
  template <class A>
  __device__ A at(index_t t, int j) const {
    return static_cast<A>(widen(matrix.row(t)[j]));
  }
};

}  // namespace expar::inline v0::gpu::detail
