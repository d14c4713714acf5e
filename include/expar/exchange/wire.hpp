// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <concepts>
#include <cstring>

#include <expar/detail/sizes.hpp>
#include <expar/element.hpp>
#include <expar/permute/detail/quantize.hpp>
#include <expar/plan/layout.hpp>

EXPAR_IEEE_BEGIN
namespace expar::inline v0 {

/// Rows travel in another element type: `expar::wire<expar::bfloat16>{}` halves those of float.
/// Rounded once, to nearest.
template <element E>
struct wire {
  static index_t bytes(index_t columns) { return detail::size_product(columns, sizeof(E)); }
  template <element T>
  static void pack(T const* x, std::byte* to, index_t n) {
    for (index_t c = 0; c < n; ++c) {
      E const e = narrow<E>(static_cast<accumulator_t<E>>(widen(x[c])));
      std::memcpy(to + c * index_t{sizeof e}, &e, sizeof e);
    }
  }
  template <element T>
  static void unpack(std::byte const* from, T* to, index_t n) {
    for (index_t c = 0; c < n; ++c) {
      E e;
      std::memcpy(&e, from + c * index_t{sizeof e}, sizeof e);
      to[c] = narrow<T>(static_cast<accumulator_t<T>>(widen(e)));
    }
  }
};

/// Rows travel as E4M3 codes with a float for every block of 128 columns, as encode_quantized()
/// makes them (DeepSeek-V3, arXiv:2412.19437, section 3.3.2): 33 bytes for 32 columns. An element
/// that comes is code * scale, rounded to the type of the rows: wrong by at most 1/16 of itself, or
/// 2^-10 of its scale where that is more, and that rounding. A row is its codes, padded to 4 bytes,
/// and its scales.
template <>
struct wire<float8_e4m3> {
  static index_t bytes(index_t columns) {
    return scales_at(columns) + detail::quantized_blocks(columns) * index_t{sizeof(float)};
  }
  static index_t scales_at(index_t columns) { return (columns + 3) / 4 * 4; }

  template <element T>
  static void pack(T const* x, std::byte* to, index_t n) {
    std::memset(to + n, 0, static_cast<std::size_t>(scales_at(n) - n));
    for (index_t column = 0; column < n; column += detail::quantized_block) {
      float8_e4m3 codes[detail::quantized_block];
      int const width = width_at(column, n);
      float const scale = detail::quantize_block(x + column, width, codes);
      std::memcpy(to + column, codes, static_cast<std::size_t>(width));
      std::memcpy(scale_of(to, column, n), &scale, sizeof scale);
    }
  }
  template <element T>
  static void unpack(std::byte const* from, T* to, index_t n) {
    for (index_t column = 0; column < n; column += detail::quantized_block) {
      float8_e4m3 codes[detail::quantized_block];
      int const width = width_at(column, n);
      float scale;
      std::memcpy(codes, from + column, static_cast<std::size_t>(width));
      std::memcpy(&scale, scale_of(from, column, n), sizeof scale);
      for (int c = 0; c < width; ++c)
        to[column + c] = narrow<T>(static_cast<accumulator_t<T>>(widen(codes[c]) * scale));
    }
  }

 private:
  static int width_at(index_t column, index_t n) {
    return n - column < detail::quantized_block ? static_cast<int>(n - column)
                                                : detail::quantized_block;
  }
  template <class Byte>
  static Byte* scale_of(Byte* row, index_t column, index_t n) {
    return row + scales_at(n) + column / detail::quantized_block * index_t{sizeof(float)};
  }
};

}  // namespace expar::inline v0
EXPAR_IEEE_END
