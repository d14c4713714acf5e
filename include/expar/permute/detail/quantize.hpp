// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/detail/arithmetic.hpp>
#include <expar/element.hpp>
#include <expar/tensor.hpp>

EXPAR_IEEE_BEGIN
namespace expar::inline v0::detail {

/// Columns that share a scale.
inline constexpr int quantized_block = 128;

EXPAR_HD constexpr index_t quantized_blocks(index_t columns) {
  return (columns + quantized_block - 1) / quantized_block;
}

/// The scale of a block whose largest magnitude is `most`: it takes that to 448. It has an inverse
/// that is finite, and is one for a block of zeros.
EXPAR_HD inline float block_scale(float most) {
  float const scale = divide(most, 448.0f);
  return most == 0.0f ? 1.0f : scale < 0x1p-126f ? 0x1p-126f : scale;
}

/// The codes of a block of at most 128 columns. Returns its scale.
template <class T>
float quantize_block(T const* x, int width, float8_e4m3* codes) {
  float values[quantized_block], most = 0;
  for (int c = 0; c < width; ++c) {
    values[c] = static_cast<float>(widen(x[c]));
    float const magnitude = values[c] < 0 ? -values[c] : values[c];
    most = magnitude > most ? magnitude : most;
  }
  float const scale = block_scale(most), inverse = divide(1, scale);
  for (int c = 0; c < width; ++c) codes[c] = narrow<float8_e4m3>(values[c] * inverse);
  return scale;
}

}  // namespace expar::inline v0::detail
EXPAR_IEEE_END
