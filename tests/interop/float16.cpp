// SPDX-License-Identifier: Apache-2.0
#include <expar/interop/float16.hpp>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include <expar/expar.hpp>

#include "support/catch.hpp"

namespace {

float float_of(std::uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}
bool same(float a, float b) {
  return std::isnan(a) ? std::isnan(b) : std::memcmp(&a, &b, sizeof a) == 0;
}
// All upper halves of a float, with some lower half.
float some_float(std::uint32_t upper) {
  return float_of(upper << 16 | ((upper * 0x9e37u) & 0xffffu));
}

// T has the bits of Same.
template <class T, class Same>
int different_bits() {
  int wrong = 0;
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    auto const code = static_cast<std::uint16_t>(bits);
    wrong += !same(expar::widen(__builtin_bit_cast(T, code)), expar::widen(Same{code}));
    float const x = some_float(bits);
    wrong += __builtin_bit_cast(std::uint16_t, expar::narrow<T>(x)) != expar::narrow<Same>(x).bits;
  }
  return wrong;
}

// A layer on one rank, whose tokens come back twice as large.
template <class T>
bool layer_doubles() {
  expar::host_context const ctx;
  expar::self_communicator const comm;
  std::vector<T> x(12), out(12);
  for (int i = 0; i < 12; ++i)
    x[static_cast<std::size_t>(i)] = expar::narrow<T>(static_cast<float>(i));
  expar::routes<float> routes(4, 1);
  for (int t = 0; t < 4; ++t) routes.ids(t, 0) = t % 2, routes.weights(t, 0) = 2;
  expar::expert_parallel moe(comm, {.experts = 2, .top_k = 1, .hidden = 3});
  auto batch = moe.dispatch(ctx, expar::make_view(x.data(), 4, 3), routes);
  moe.combine(ctx, batch, batch.rows(), expar::make_view(out.data(), 4, 3));
  for (int i = 0; i < 12; ++i)
    if (expar::widen(out[static_cast<std::size_t>(i)]) != static_cast<float>(2 * i)) return false;
  return true;
}

}  // namespace

#ifdef __FLT16_MANT_DIG__
TEST_CASE("_Float16 has the bits of half") {
  CHECK(different_bits<_Float16, expar::half>() == 0);
}

TEST_CASE("_Float16 widens and rounds as the compiler says") {
  int wrong = 0;
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    auto const h = __builtin_bit_cast(_Float16, static_cast<std::uint16_t>(bits));
    wrong += !same(expar::widen(h), static_cast<float>(h));
    float const x = some_float(bits);
    wrong += !same(static_cast<float>(expar::narrow<_Float16>(x)),
                   static_cast<float>(static_cast<_Float16>(x)));
  }
  CHECK(wrong == 0);
}

TEST_CASE("rows of _Float16 go to experts and come back") {
  CHECK(layer_doubles<_Float16>());
}
#endif

#if defined(__BFLT16_MANT_DIG__) || (defined(__clang__) && __clang_major__ >= 15)
TEST_CASE("__bf16 has the bits of bfloat16") {
  CHECK(different_bits<__bf16, expar::bfloat16>() == 0);
}

TEST_CASE("rows of __bf16 go to experts and come back") {
  CHECK(layer_doubles<__bf16>());
}
#endif
