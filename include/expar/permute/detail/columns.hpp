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

/// Whether numbers of a row are widened in pairs, as bfloat16 is without moving any: the even ones
/// of a vector, and the odd ones.
template <class T>
inline constexpr bool in_pairs = std::is_same_v<same_bits_t<T>, bfloat16>;
/// Whether columns<T> is there. Any other type is converted in loops over arrays.
template <class T>
inline constexpr bool in_vectors = in_pairs<T> || std::is_same_v<same_bits_t<T>, accumulator_t<T>>;

inline namespace EXPAR_VECTORS {

/// Some consecutive columns of a row, widened: two vectors, of the even and the odd ones where they
/// are widened in pairs, else one behind the other. Each has the bits of widen() and narrow().
template <class T, int Bytes = vector_bytes>
struct columns {
  static_assert(in_vectors<T>);
  using A = accumulator_t<T>;
  typedef A vector __attribute__((vector_size(Bytes)));
  typedef std::uint32_t bits __attribute__((vector_size(Bytes)));
  static constexpr int lanes = Bytes / static_cast<int>(sizeof(A)), count = 2 * lanes;

  vector a, b;

  EXPAR_ALWAYS_INLINE static columns load(T const* from) {
    columns c;
    if constexpr (in_pairs<T>) {
      bits u;
      std::memcpy(&u, from, sizeof u);
      c.a = (vector)(u << 16);
      c.b = (vector)(u & 0xffff0000u);
    } else {
      std::memcpy(&c.a, from, sizeof c.a);
      std::memcpy(&c.b, from + lanes, sizeof c.b);
    }
    return c;
  }
  EXPAR_ALWAYS_INLINE void store(T* to) const {
    if constexpr (in_pairs<T>) {
      bits const u = (rounded(a) >> 16) | (rounded(b) & 0xffff0000u);
      std::memcpy(static_cast<void*>(to), &u, sizeof u);
    } else {
      std::memcpy(static_cast<void*>(to), &a, sizeof a);
      std::memcpy(static_cast<void*>(to + lanes), &b, sizeof b);
    }
  }

 private:
  /// In its upper half the bfloat16 that narrow() gives.
  EXPAR_ALWAYS_INLINE static bits rounded(vector x) {
    bits const u = (bits)x, nan = (bits)(x != x);
    bits const even = u + 0x7fffu + ((u >> 16) & 1u);
    return (nan & (u | 0x400000u)) | (~nan & even);
  }
};

}  // namespace EXPAR_VECTORS
}  // namespace expar::inline v0::detail
EXPAR_IEEE_END
