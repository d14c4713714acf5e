// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <concepts>
#include <cstdint>
#include <type_traits>

#include <expar/config.hpp>

namespace expar::inline v0 {

/// Customization point: how an element is widened to the type that sums are made in, and rounded
/// back. A specialization gives
///   using accumulator = float;                       // float or double
///   EXPAR_HD static accumulator widen(T);
///   EXPAR_HD static T narrow(accumulator);           // rounds to nearest, ties to even
/// It may live beside a type that you do not own; T must be trivially copyable.
template <class T>
struct element_traits;

template <>
struct element_traits<float> {
  using accumulator = float;
  EXPAR_HD static constexpr float widen(float x) { return x; }
  EXPAR_HD static constexpr float narrow(float x) { return x; }
};

template <>
struct element_traits<double> {
  using accumulator = double;
  EXPAR_HD static constexpr double widen(double x) { return x; }
  EXPAR_HD static constexpr double narrow(double x) { return x; }
};

/// bfloat16: the upper half of a float. Storage only; arithmetic is done in float.
struct bfloat16 {
  std::uint16_t bits;
};

/// IEEE 754 binary16. Storage only; arithmetic is done in float.
struct half {
  std::uint16_t bits;
};

/// OCP 8-bit floating point E4M3: 4 bits of exponent (bias 7), 3 of mantissa, no infinity, largest
/// 448. Storage only; arithmetic is done in float. What is beyond 448, infinity too, becomes 448.
struct float8_e4m3 {
  std::uint8_t bits;
};

template <>
struct element_traits<bfloat16> {
  using accumulator = float;
  EXPAR_HD static constexpr float widen(bfloat16 x) {
    return __builtin_bit_cast(float, std::uint32_t{x.bits} << 16);
  }
  EXPAR_HD static constexpr bfloat16 narrow(float x) {
    auto const u = __builtin_bit_cast(std::uint32_t, x);
    bool const is_nan = (u & 0x7fffffffu) > 0x7f800000u;
    std::uint32_t const even = u + 0x7fffu + ((u >> 16) & 1u);
    return {static_cast<std::uint16_t>(is_nan ? (u >> 16) | 0x40u : even >> 16)};
  }
};

namespace detail {

/// One number, and its bits. `below`: whether a < b, for a and b below 2^31.
struct of_one {
  using floats = float;
  using bits = std::uint32_t;
  using mask = bool;

  EXPAR_HD static constexpr float as_floats(bits b) { return __builtin_bit_cast(float, b); }
  EXPAR_HD static constexpr bits as_bits(float x) { return __builtin_bit_cast(bits, x); }
  EXPAR_HD static constexpr mask below(bits a, std::uint32_t b) { return a < b; }
  EXPAR_HD static constexpr bits pick(mask m, bits a, bits b) { return m ? a : b; }
  EXPAR_HD static constexpr bits keep(mask m, bits a) { return m ? a : 0u; }
  EXPAR_HD static constexpr bits set_if(mask m, std::uint32_t a) { return m ? a : 0u; }
  EXPAR_HD static constexpr bits set_unless(mask m, std::uint32_t a) { return m ? 0u : a; }
};

// The conversions of binary16 and E4M3, without branches, of one number or of the lanes of a vector
// alike (`Of`). No operand is a subnormal float, which processors may be told to take for 0.

template <class Of>
struct binary16_of {
  using floats = typename Of::floats;
  using bits = typename Of::bits;
  using mask = typename Of::mask;

  EXPAR_HD static constexpr floats widen(bits x) {
    bits const magnitude = x & 0x7fffu;
    // Rebias. Subnormal: one exponent higher the mantissa stands behind 2^-14.
    mask const lowest = Of::below(magnitude, 0x400u);
    floats const finite =
        Of::as_floats((magnitude << 13) + 0x38000000u + Of::set_if(lowest, 0x800000u)) -
        Of::as_floats(Of::set_if(lowest, 0x38800000u));
    bits const special = Of::set_unless(Of::below(magnitude, 0x7c00u), 0x7f800000u);
    return Of::as_floats(Of::as_bits(finite) | special | ((x & 0x8000u) << 16));
  }
  EXPAR_HD static constexpr bits narrow(floats x) {
    bits const u = Of::as_bits(x), sign = (u >> 16) & 0x8000u, magnitude = u & 0x7fffffffu;
    // Normal: rebias (subtract 112 << 23), round at bit 13, ties to even.
    bits const normal = (magnitude - 0x38000000u + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
    // Subnormal: adding 0.5 aligns the bits of the result with the bottom of the mantissa.
    mask const lowest = Of::below(magnitude, 0x38800000u);
    bits const aligned = Of::as_bits(Of::as_floats(Of::keep(lowest, magnitude)) + 0.5f);
    bits const finite = Of::pick(lowest, aligned - 0x3f000000u, normal);
    bits const beyond = Of::set_unless(Of::below(magnitude, 0x7f800001u), 0x200u) | 0x7c00u;
    return sign | Of::pick(Of::below(magnitude, 0x477ff000u), finite, beyond);
  }
};

template <class Of>
struct e4m3_of {
  using floats = typename Of::floats;
  using bits = typename Of::bits;
  using mask = typename Of::mask;

  EXPAR_HD static constexpr floats widen(bits x) {
    bits const magnitude = x & 0x7fu;
    // Normal: rebias. Subnormal: one exponent higher the mantissa stands behind 2^-6.
    mask const lowest = Of::below(magnitude, 8u);
    floats const finite =
        Of::as_floats((magnitude << 20) + 0x3c000000u + Of::set_if(lowest, 0x800000u)) -
        Of::as_floats(Of::set_if(lowest, 0x3c800000u));
    bits const nan = Of::set_unless(Of::below(magnitude, 0x7fu), 0x7fc00000u);
    return Of::as_floats(Of::as_bits(finite) | nan | ((x & 0x80u) << 24));
  }
  EXPAR_HD static constexpr bits narrow(floats x) {
    bits const u = Of::as_bits(x), magnitude = u & 0x7fffffffu;
    // As for binary16: rebias and round at bit 20, or align the bottom bit by adding 2^14.
    bits const normal = (magnitude - 0x3c000000u + 0x7ffffu + ((magnitude >> 20) & 1u)) >> 20;
    mask const lowest = Of::below(magnitude, 0x3c800000u);
    bits const aligned = Of::as_bits(Of::as_floats(Of::keep(lowest, magnitude)) + 0x1p14f);
    bits const finite = Of::pick(lowest, aligned - 0x46800000u, normal);
    mask const number = Of::below(magnitude, 0x7f800001u);
    bits const sign = Of::keep(number, (u >> 24) & 0x80u);  // one code for every NaN
    bits const beyond = Of::set_unless(number, 1u) | 0x7eu;
    return sign | Of::pick(Of::below(magnitude, 0x43e00001u), finite, beyond);
  }
};

}  // namespace detail

template <>
struct element_traits<half> {
  using accumulator = float;
  EXPAR_HD static constexpr float widen(half x) {
    return detail::binary16_of<detail::of_one>::widen(x.bits);
  }
  EXPAR_HD static constexpr half narrow(float x) {
    return {static_cast<std::uint16_t>(detail::binary16_of<detail::of_one>::narrow(x))};
  }
};

template <>
struct element_traits<float8_e4m3> {
  using accumulator = float;
  EXPAR_HD static constexpr float widen(float8_e4m3 x) {
    return detail::e4m3_of<detail::of_one>::widen(x.bits);
  }
  EXPAR_HD static constexpr float8_e4m3 narrow(float x) {
    return {static_cast<std::uint8_t>(detail::e4m3_of<detail::of_one>::narrow(x))};
  }
};

/// The traits of a type of others that has the bits of `Same`, one of the types above:
///   template <>
///   struct expar::element_traits<their::half> : expar::traits_of_same_bits<their::half, half> {};
template <class T, class Same>
struct traits_of_same_bits {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) == sizeof(Same));
  using same = Same;
  using accumulator = typename element_traits<Same>::accumulator;
  EXPAR_HD static constexpr accumulator widen(T x) {
    return element_traits<Same>::widen(__builtin_bit_cast(Same, x));
  }
  EXPAR_HD static constexpr T narrow(accumulator x) {
    return __builtin_bit_cast(T, element_traits<Same>::narrow(x));
  }
};

/// A type that token rows can hold.
template <class T>
concept element = std::is_trivially_copyable_v<T> && requires(T x) {
  typename element_traits<T>::accumulator;
  requires std::floating_point<typename element_traits<T>::accumulator>;
  { element_traits<T>::widen(x) } -> std::same_as<typename element_traits<T>::accumulator>;
  { element_traits<T>::narrow(element_traits<T>::widen(x)) } -> std::same_as<T>;
};

/// The type that sums over T are made in: double for double, float for all that ship with the
/// library.
template <class T>
using accumulator_t = typename element_traits<std::remove_cv_t<T>>::accumulator;

namespace detail {

/// The type of the library whose bits T has, or T.
template <class T>
struct same_bits {
  using type = T;
};
template <class T>
requires requires {
  typename element_traits<T>::same;
}
struct same_bits<T> {
  using type = typename element_traits<T>::same;
};
template <class T>
using same_bits_t = typename same_bits<std::remove_cv_t<T>>::type;

}  // namespace detail

template <class T>
EXPAR_HD constexpr accumulator_t<T> widen(T x) {
  return element_traits<T>::widen(x);
}
template <class T>
EXPAR_HD constexpr T narrow(accumulator_t<T> x) {
  return element_traits<T>::narrow(x);
}

}  // namespace expar::inline v0
