// SPDX-License-Identifier: Apache-2.0
#include <expar/element.hpp>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "support/catch.hpp"
#include "support/random.hpp"

namespace {

using expar::bfloat16;
using expar::float8_e4m3;
using expar::half;

// Of somebody else, with the bits of half.
struct foreign_half {
  std::uint16_t code;
};

float float_of(std::uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// A 16-bit float by its definition: an exponent of `exponent_bits` bits above `mantissa_bits` bits.
template <int exponent_bits, int mantissa_bits>
struct definition {
  static constexpr int bias = (1 << (exponent_bits - 1)) - 1;

  static double value(std::uint16_t bits) {
    int const exponent = (bits >> mantissa_bits) & ((1 << exponent_bits) - 1);
    double const mantissa = bits & ((1 << mantissa_bits) - 1);
    double const sign = (bits & 0x8000) != 0 ? -1 : 1;
    if (exponent == (1 << exponent_bits) - 1)
      return mantissa != 0 ? std::nan("") : sign * std::numeric_limits<double>::infinity();
    if (exponent == 0) return sign * std::ldexp(mantissa, 1 - bias - mantissa_bits);
    return sign * std::ldexp((1 << mantissa_bits) + mantissa, exponent - bias - mantissa_bits);
  }

  // Rounds the magnitude to a whole number of units in the last place, ties to even.
  static std::uint16_t round(float x) {
    std::uint16_t const sign = std::signbit(x) ? 0x8000 : 0;
    double const magnitude = std::fabs(static_cast<double>(x));
    int exponent = 0;
    std::frexp(magnitude, &exponent);
    int const lowest = 1 - bias;
    int const unit =
        (magnitude == 0 || exponent - 1 < lowest ? lowest : exponent - 1) - mantissa_bits;
    double const units = std::nearbyint(std::ldexp(magnitude, -unit));
    double const rounded = std::ldexp(units, unit);
    double const largest =
        value(static_cast<std::uint16_t>((((1 << exponent_bits) - 1) << mantissa_bits) - 1));
    std::uint16_t const infinity = ((1 << exponent_bits) - 1) << mantissa_bits;
    if (rounded > largest) return sign | infinity;
    int const field = unit + mantissa_bits + bias;
    // Counting units from the lowest subnormal makes the bits, with every carry.
    auto const bits = static_cast<std::uint32_t>(units) +
                      (static_cast<std::uint32_t>(field - 1) << mantissa_bits);
    return static_cast<std::uint16_t>(sign | bits);
  }
};

template <class T>
struct definition_of;
template <>
struct definition_of<half> : definition<5, 10> {};
template <>
struct definition_of<bfloat16> : definition<8, 7> {};

// The value of a code of OCP E4M3, by its definition.
double value_of(float8_e4m3 x) {
  int const exponent = (x.bits >> 3) & 15;
  double const mantissa = x.bits & 7, sign = x.bits >= 0x80 ? -1 : 1;
  if ((x.bits & 0x7f) == 0x7f) return std::nan("");
  if (exponent == 0) return sign * std::ldexp(mantissa, -9);
  return sign * std::ldexp(8 + mantissa, exponent - 10);
}

// The code nearest to x, found by looking at all: the even one of two, at most 448.
float8_e4m3 nearest(float x) {
  std::uint8_t const sign = std::signbit(x) ? 0x80 : 0;
  if (std::isnan(x)) return {0x7f};  // one code for every NaN
  double const magnitude = std::fabs(static_cast<double>(x));
  std::uint8_t best = 0;
  for (std::uint8_t code = 1; code < 0x7f; ++code) {
    double const old = std::fabs(value_of({best}) - magnitude);
    double const now = std::fabs(value_of({code}) - magnitude);
    if (now < old || (now == old && code % 2 == 0)) best = code;
  }
  return {static_cast<std::uint8_t>(sign | best)};
}

// A type of the reader's own: the upper byte of a half, rounded there.
struct quarter {
  std::uint8_t bits;
};

}  // namespace

template <>
struct expar::element_traits<foreign_half> : expar::traits_of_same_bits<foreign_half, half> {};

template <>
struct expar::element_traits<quarter> {
  using accumulator = float;
  static constexpr float widen(quarter x) {
    return expar::widen(half{static_cast<std::uint16_t>(x.bits << 8)});
  }
  static constexpr quarter narrow(float x) {
    std::uint32_t const b = expar::narrow<half>(x).bits;
    return {static_cast<std::uint8_t>((b + 0x7f + ((b >> 8) & 1)) >> 8)};
  }
};

TEST_CASE("element: what can stand in a row") {
  STATIC_REQUIRE(expar::element<float>);
  STATIC_REQUIRE(expar::element<double>);
  STATIC_REQUIRE(expar::element<half>);
  STATIC_REQUIRE(expar::element<bfloat16>);
  STATIC_REQUIRE(expar::element<float8_e4m3>);
  STATIC_REQUIRE(expar::element<quarter>);
  STATIC_REQUIRE_FALSE(expar::element<int>);
  STATIC_REQUIRE_FALSE(expar::element<void*>);
  STATIC_REQUIRE(std::is_same_v<expar::accumulator_t<double const>, double>);
  STATIC_REQUIRE(std::is_same_v<expar::accumulator_t<half>, float>);
  STATIC_REQUIRE(sizeof(half) == 2);
  STATIC_REQUIRE(sizeof(bfloat16) == 2);
  STATIC_REQUIRE(sizeof(float8_e4m3) == 1);
  CHECK(expar::widen(expar::narrow<quarter>(1.75f)) == 1.75f);
}

TEST_CASE("element: a type of others may have the bits of one of the library's") {
  STATIC_REQUIRE(expar::element<foreign_half>);
  STATIC_REQUIRE(std::is_same_v<expar::accumulator_t<foreign_half>, float>);
  for (float x : {0.0f, -1.5f, 65504.0f, 1e-7f, 1e9f}) {
    CHECK(expar::narrow<foreign_half>(x).code == expar::narrow<half>(x).bits);
    CHECK(expar::widen(expar::narrow<foreign_half>(x)) == expar::widen(expar::narrow<half>(x)));
  }
}

TEST_CASE("element: conversions work at compile time") {
  STATIC_REQUIRE(expar::narrow<half>(1.0f).bits == 0x3c00);
  STATIC_REQUIRE(expar::narrow<half>(65520.0f).bits == 0x7c00);
  STATIC_REQUIRE(expar::narrow<half>(0x1p-24f).bits == 1);
  STATIC_REQUIRE(expar::widen(half{0x7bff}) == 65504.0f);
  STATIC_REQUIRE(expar::widen(half{1}) == 0x1p-24f);
  STATIC_REQUIRE(expar::narrow<bfloat16>(1.0f).bits == 0x3f80);
  STATIC_REQUIRE(expar::widen(bfloat16{0xc000}) == -2.0f);
  STATIC_REQUIRE(expar::narrow<float8_e4m3>(1.0f).bits == 0x38);
  STATIC_REQUIRE(expar::narrow<float8_e4m3>(-1e9f).bits == 0xfe);
  STATIC_REQUIRE(expar::widen(float8_e4m3{0x7e}) == 448.0f);
  STATIC_REQUIRE(expar::widen(float8_e4m3{1}) == 0x1p-9f);
  STATIC_REQUIRE(expar::narrow<double>(expar::widen(0.1)) == 0.1);
  STATIC_REQUIRE(expar::narrow<float>(expar::widen(0.1f)) == 0.1f);
}

TEMPLATE_TEST_CASE("element: all 65536 values widen by definition and come back", "", half,
                   bfloat16) {
  int wrong = 0;
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    TestType const x{static_cast<std::uint16_t>(bits)};
    float const wide = expar::widen(x);
    double const wanted = definition_of<TestType>::value(x.bits);
    TestType const back = expar::narrow<TestType>(wide);
    if (std::isnan(wanted)) {
      bool const still = std::isnan(wide) && std::isnan(definition_of<TestType>::value(back.bits));
      wrong += !(still && (back.bits & 0x8000) == (x.bits & 0x8000));
    } else {
      wrong += !(static_cast<double>(wide) == wanted &&
                 std::signbit(wide) == std::signbit(wanted) && back.bits == x.bits);
    }
  }
  CHECK(wrong == 0);
}

TEMPLATE_TEST_CASE("element: narrowing rounds to nearest, ties to even", "", half, bfloat16) {
  using definition = definition_of<TestType>;
  auto const agrees = [](float x) {
    std::uint16_t const got = expar::narrow<TestType>(x).bits;
    if (std::isnan(x)) return std::isnan(definition::value(got));
    return got == definition::round(x);
  };

  SECTION("random bits: every exponent, subnormal numbers, infinities, NaN") {
    expar_test::random rng(1);
    int wrong = 0;
    for (int i = 0; i < 2000000; ++i)
      wrong += !agrees(float_of(static_cast<std::uint32_t>(rng.bits())));
    CHECK(wrong == 0);
  }
  SECTION("random values where halves are dense") {
    expar_test::random rng(2);
    int wrong = 0;
    for (int i = 0; i < 1000000; ++i) {
      double const scale = std::ldexp(1.0, static_cast<int>(rng.integer(-27, 17)));
      wrong += !agrees(static_cast<float>(rng.uniform(-1, 1) * scale));
    }
    CHECK(wrong == 0);
  }
  SECTION("the midpoint above each value, and its neighbours") {
    int wrong = 0;
    for (std::uint32_t bits = 0; bits < 0x7fff; ++bits) {
      double const low = definition::value(static_cast<std::uint16_t>(bits));
      double const high = definition::value(static_cast<std::uint16_t>(bits + 1));
      if (!std::isfinite(low) || !std::isfinite(high)) continue;
      auto const middle = static_cast<float>((low + high) / 2);
      for (float x : {middle, std::nextafter(middle, 0.0f), std::nextafter(middle, INFINITY)})
        wrong += !agrees(x) + !agrees(-x);
    }
    CHECK(wrong == 0);
  }
  SECTION("around overflow, zero and the largest float") {
    float const edges[] = {65504.0f,        65519.996f, 65520.0f,    65536.0f,        0.0f,
                           0x1p-24f,        0x1p-25f,   0x1.8p-25f,  0x1p-26f,        0x1p-133f,
                           0x1p-134f,       0x1p-149f,  0x1.fep127f, 0x1.fefffep127f, 0x1.ffp127f,
                           0x1.fffffep127f, INFINITY,   0x1p-14f,    0x1.ffcp-15f,    0x1.ffep-15f};
    for (float x : edges) {
      CAPTURE(x);
      CHECK(agrees(x));
      CHECK(agrees(-x));
    }
    CHECK(agrees(std::nanf("")));
    CHECK(agrees(-std::nanf("")));
    // The payload of this NaN is lost by cutting off; it must not become infinity.
    CHECK(agrees(float_of(0x7f800001u)));
    CHECK(agrees(float_of(0xff800001u)));
  }
}

TEST_CASE("element: all 256 codes of e4m3 widen by definition and come back") {
  for (int code = 0; code < 256; ++code) {
    CAPTURE(code);
    float8_e4m3 const x{static_cast<std::uint8_t>(code)};
    float const wide = expar::widen(x);
    if (std::isnan(value_of(x)))
      CHECK(std::isnan(wide));
    else
      CHECK(static_cast<double>(wide) == value_of(x));
    CHECK(std::signbit(wide) == (code >= 128));
    CHECK(expar::narrow<float8_e4m3>(wide).bits == (code == 0xff ? 0x7f : code));
  }
}

TEST_CASE("element: narrowing to e4m3 gives the nearest code, the even one of two, at most 448") {
  auto const agrees = [](float x) { return expar::narrow<float8_e4m3>(x).bits == nearest(x).bits; };
  expar_test::random rng(3);
  int wrong = 0;
  for (int i = 0; i < 200000; ++i) {
    wrong += !agrees(float_of(static_cast<std::uint32_t>(rng.bits())));
    double const scale = std::ldexp(1.0, static_cast<int>(rng.integer(-12, 10)));
    wrong += !agrees(static_cast<float>(rng.uniform(-1, 1) * scale));
  }
  for (std::uint8_t code = 0; code < 0x7f; ++code) {
    double const high = code == 0x7e ? 480 : value_of({static_cast<std::uint8_t>(code + 1)});
    auto const middle = static_cast<float>((value_of({code}) + high) / 2);
    for (float x : {middle, std::nextafter(middle, 0.0f), std::nextafter(middle, INFINITY)})
      wrong += !agrees(x) + !agrees(-x);
  }
  CHECK(wrong == 0);
  for (float x :
       {448.0f, 464.0f, 480.0f, 1e30f, INFINITY, 0.0f, 0x1p-10f, 0x1p-149f, std::nanf("")}) {
    CAPTURE(x);
    CHECK(agrees(x));
    CHECK(agrees(-x));
  }
}

#if defined(__SSE2__)
TEST_CASE("subnormal codes keep their bits where the processor flushes subnormal floats") {
  constexpr unsigned flush = 0x8040;  // results to 0, and operands
  std::uint32_t kept_half = 0, kept_e4m3 = 0;
  unsigned const mode = _mm_getcsr();
  _mm_setcsr(mode | flush);
  for (std::uint16_t code = 1; code < 0x400; ++code)
    kept_half += expar::narrow<half>(expar::widen(half{code})).bits == code &&
                 float_of(0x33800000) * static_cast<float>(code) == expar::widen(half{code});
  for (std::uint8_t code = 1; code < 8; ++code)
    kept_e4m3 += expar::narrow<float8_e4m3>(expar::widen(float8_e4m3{code})).bits == code;
  _mm_setcsr(mode);
  CHECK(kept_half == 1023);
  CHECK(kept_e4m3 == 7);
}
#endif
