// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include <expar/detail/vectors.hpp>
#include <expar/element.hpp>
#include <expar/tensor.hpp>

EXPAR_IEEE_BEGIN
namespace expar::inline v0::detail {

/// Whether vectors enter the functions that convert: nvcc has none in what is for devices as well.
#if defined(__CUDACC__)
inline constexpr bool converts_in_lanes = false;
#else
inline constexpr bool converts_in_lanes = true;
#endif
/// Whether numbers of a row are widened in pairs, which moves none: the even ones of a vector, and
/// the odd ones.
template <class T>
inline constexpr bool in_pairs = std::is_same_v<same_bits_t<T>, bfloat16> ||
                                 (converts_in_lanes && std::is_same_v<same_bits_t<T>, half>);
/// Or in fours.
template <class T>
inline constexpr bool in_quads = std::is_same_v<same_bits_t<T>, float8_e4m3>&& converts_in_lanes;
/// Whether columns<T> is there. Any other type is converted in loops over arrays.
template <class T>
inline constexpr bool in_vectors = in_pairs<T> || std::is_same_v<same_bits_t<T>, accumulator_t<T>>;

inline namespace EXPAR_VECTORS {

/// The lanes of a vector, as of_one.
template <int Bytes>
struct of_lanes {
  typedef float floats __attribute__((vector_size(Bytes)));
  typedef std::uint32_t bits __attribute__((vector_size(Bytes)));
  typedef std::int32_t integers __attribute__((vector_size(Bytes)));
  using mask = bits;  // of a lane all or none

  EXPAR_ALWAYS_INLINE static floats as_floats(bits b) { return (floats)b; }
  EXPAR_ALWAYS_INLINE static bits as_bits(floats x) { return (bits)x; }
  EXPAR_ALWAYS_INLINE static mask below(bits a, std::uint32_t b) {
    integers const all = (integers)a < static_cast<std::int32_t>(b) - integers{};
    return (mask)all;
  }
  EXPAR_ALWAYS_INLINE static bits pick(mask m, bits a, bits b) { return (m & a) | (~m & b); }
  EXPAR_ALWAYS_INLINE static bits keep(mask m, bits a) { return m & a; }
  EXPAR_ALWAYS_INLINE static bits set_if(mask m, std::uint32_t a) { return m & a; }
  EXPAR_ALWAYS_INLINE static bits set_unless(mask m, std::uint32_t a) { return ~m & a; }
};

template <int Bytes>
using lanes_of_half = binary16_of<of_lanes<Bytes>>;

/// Some consecutive columns of a row, widened: two vectors, of the even and the odd ones where they
/// are widened in pairs, else one behind the other. Each has the bits of widen() and narrow().
template <class T, int Bytes = vector_bytes>
struct columns {
  static_assert(in_vectors<T>);
  using A = accumulator_t<T>;
  typedef A vector __attribute__((vector_size(Bytes)));
  using bits = typename of_lanes<Bytes>::bits;
  static constexpr bool is_half = std::is_same_v<same_bits_t<T>, half>;
  static constexpr int lanes = Bytes / static_cast<int>(sizeof(A)), count = 2 * lanes;

  vector a, b;

  EXPAR_ALWAYS_INLINE static columns load(T const* from) {
    columns c;
    if constexpr (in_pairs<T>) {
      bits u;
      std::memcpy(&u, from, sizeof u);
      if constexpr (is_half)
        c.a = lanes_of_half<Bytes>::widen(u & 0xffffu), c.b = lanes_of_half<Bytes>::widen(u >> 16);
      else
        c.a = (vector)(u << 16), c.b = (vector)(u & 0xffff0000u);
    } else {
      std::memcpy(&c.a, from, sizeof c.a);
      std::memcpy(&c.b, from + lanes, sizeof c.b);
    }
    return c;
  }
  EXPAR_ALWAYS_INLINE void store(T* to) const {
    if constexpr (in_pairs<T>) {
      bits u;
      if constexpr (is_half)
        u = lanes_of_half<Bytes>::narrow(a) | (lanes_of_half<Bytes>::narrow(b) << 16);
      else
        u = (rounded(a) >> 16) | (rounded(b) & 0xffff0000u);
      std::memcpy(static_cast<void*>(to), &u, sizeof u);
    } else {
      std::memcpy(static_cast<void*>(to), &a, sizeof a);
      std::memcpy(static_cast<void*>(to + lanes), &b, sizeof b);
    }
  }

 private:
  /// In its upper half the bfloat16 that narrow() gives.
  EXPAR_ALWAYS_INLINE static bits rounded(vector x) {
    bits const u = (bits)x, even = u + 0x7fffu + ((u >> 16) & 1u);
    return x != x ? (u | 0x400000u) : even;
  }
};

/// Columns of a row, widened: four vectors. place(c): which of their lanes column c is.
template <class T>
struct block {
  static_assert(in_vectors<T> || in_quads<T>);
  typedef accumulator_t<T> vector __attribute__((vector_size(vector_bytes)));
  static constexpr int lanes = vector_bytes / static_cast<int>(sizeof(accumulator_t<T>)),
                       count = 4 * lanes,
                       apart = in_quads<T>   ? 4
                               : in_pairs<T> ? 2
                                             : 1;

  vector a, b, c, d;

  EXPAR_ALWAYS_INLINE static block load(T const* from) {
    if constexpr (in_quads<T>) {
      using codes = e4m3_of<of_lanes<4 * lanes>>;
      typename codes::bits u;
      std::memcpy(&u, from, sizeof u);
      return {codes::widen(u & 0xffu), codes::widen((u >> 8) & 0xffu),
              codes::widen((u >> 16) & 0xffu), codes::widen(u >> 24)};
    } else {
      auto const first = columns<T>::load(from), second = columns<T>::load(from + 2 * lanes);
      return {first.a, first.b, second.a, second.b};
    }
  }
  EXPAR_ALWAYS_INLINE void store(T* to) const {
    columns<T>{a, b}.store(to);
    columns<T>{c, d}.store(to + 2 * lanes);
  }
  static constexpr int place(int column) {
    int const together = apart * lanes, within = column % together;
    return column - within + within % apart * lanes + within / apart;
  }
};

}  // namespace EXPAR_VECTORS
}  // namespace expar::inline v0::detail
EXPAR_IEEE_END
