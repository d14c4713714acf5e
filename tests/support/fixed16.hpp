// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include <expar/element.hpp>

namespace expar_test {

/// A 16-bit type that the library has never seen: 9 bits of integer, 7 of fraction.
struct fixed16 {
  std::int16_t bits;
};

}  // namespace expar_test

template <>
struct expar::element_traits<expar_test::fixed16> {
  using accumulator = float;
  static float widen(expar_test::fixed16 x) { return static_cast<float>(x.bits) / 128; }
  static expar_test::fixed16 narrow(float x) {
    float const scaled = x * 128;
    return {static_cast<std::int16_t>(scaled > 32767    ? 32767.f
                                      : scaled < -32768 ? -32768.f
                                                        : scaled)};
  }
};
