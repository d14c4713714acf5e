// SPDX-License-Identifier: Apache-2.0
#include <expar/permute/detail/columns.hpp>

#include <cstring>
#include <vector>

#include "../../support/catch.hpp"
#include "../../support/random.hpp"

using namespace expar::detail;

namespace {

// Also zeros, subnormal numbers, halfway cases, infinities and NaNs.
std::uint32_t any_bits(expar_test::random& draw) {
  auto const exponents = std::vector<std::uint32_t>{0, 1, 0x7f, 0xfe, 0xff};
  auto bits = static_cast<std::uint32_t>(draw.integer(0, 0xffffffffll));
  if (draw.chance(.5))
    bits = (bits & 0x807fffffu) | exponents[static_cast<std::size_t>(draw.integer(0, 4))] << 23;
  if (draw.chance(.3)) bits = (bits & 0xffff0000u) | 0x8000u;
  return bits;
}

template <class T>
bool same(T const* a, T const* b, std::size_t n) {
  return std::memcmp(a, b, n * sizeof(T)) == 0;
}

}  // namespace

TEMPLATE_TEST_CASE("columns of 16 bits are widened and rounded as one by one", "[permute]",
                   expar::bfloat16, expar::half) {
  using some = columns<TestType>;
  constexpr int n = some::count;
  expar_test::random draw(1);
  for (unsigned first = 0; first < 65536; first += n) {
    TestType x[n], back[n];
    for (int i = 0; i < n; ++i) x[i].bits = static_cast<std::uint16_t>(first + unsigned(i));
    some::load(x).store(back);
    for (auto& v : x) v = expar::narrow<TestType>(expar::widen(v));
    REQUIRE(same(x, back, n));
  }
  for (int round = 0; round < 20000; ++round) {
    float wide[n];
    TestType one_by_one[n], all[n];
    for (float& v : wide) v = __builtin_bit_cast(float, any_bits(draw));
    some c;
    for (int i = 0; i < some::lanes; ++i) c.a[i] = wide[2 * i], c.b[i] = wide[2 * i + 1];
    c.store(all);
    for (int i = 0; i < n; ++i) one_by_one[i] = expar::narrow<TestType>(wide[i]);
    REQUIRE(same(all, one_by_one, n));
  }
}

TEMPLATE_TEST_CASE("columns of what sums are made in keep their bits and order", "[permute]", float,
                   double) {
  using some = columns<TestType>;
  expar_test::random draw(2);
  TestType x[some::count + 1], back[some::count + 1] = {};
  for (auto& v : x) v = static_cast<TestType>(draw.uniform(-1, 1));
  some const c = some::load(x + 1);  // aligned for one element
  c.store(back + 1);
  CHECK(same(x + 1, back + 1, some::count));
  for (int i = 0; i < some::lanes; ++i)
    CHECK((c.a[i] <= x[1 + i] && c.a[i] >= x[1 + i] && c.b[i] <= x[1 + some::lanes + i] &&
           c.b[i] >= x[1 + some::lanes + i]));
}

TEST_CASE("every code of e4m3 stands widened in its place of a block", "[permute]") {
  using some = block<expar::float8_e4m3>;
  for (int first = 0; first < 256; first += some::count) {
    expar::float8_e4m3 x[some::count];
    for (int i = 0; i < some::count; ++i) x[i].bits = static_cast<std::uint8_t>(first + i);
    some const wide = some::load(x);
    float lanes[some::count];
    std::memcpy(lanes, &wide, sizeof lanes);
    for (int i = 0; i < some::count; ++i) {
      float const one = expar::widen(x[i]);
      REQUIRE(same(&lanes[some::place(i)], &one, 1));
    }
  }
}

namespace {
struct their_bfloat16 {
  std::uint16_t bits;
};
}  // namespace
template <>
struct expar::element_traits<their_bfloat16>
    : expar::traits_of_same_bits<their_bfloat16, expar::bfloat16> {};

TEST_CASE("a type with the bits of one of the library is converted as that", "[permute]") {
  STATIC_REQUIRE(in_vectors<their_bfloat16>);
  STATIC_REQUIRE(in_pairs<their_bfloat16>);
  STATIC_REQUIRE(in_vectors<float>);
  STATIC_REQUIRE(!in_vectors<expar::float8_e4m3>);
}
