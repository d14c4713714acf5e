// SPDX-License-Identifier: Apache-2.0
#include <expar/router/detail/pack.hpp>

#include <cstring>
#include <limits>

#include "../../support/catch.hpp"
#include "../../support/random.hpp"

using namespace expar::detail;

namespace {

constexpr int lanes = pack<float>::lanes;
constexpr float inf = std::numeric_limits<float>::infinity();
constexpr float qnan = std::numeric_limits<float>::quiet_NaN();

bool same_bits(float a, float b) {
  return std::memcmp(&a, &b, sizeof a) == 0;
}

}  // namespace

TEST_CASE("packs have the exponentials of their lanes", "[router]") {
  expar_test::random rng(1);
  for (int round = 0; round < 20000; ++round) {
    float x[lanes], small[lanes], all[lanes];
    for (float& v : x) {
      v = static_cast<float>(rng.uniform(-100, 100));
      if (rng.chance(.1)) v = rng.chance(.5) ? -inf : rng.chance(.5) ? inf : 0.f;
      if (rng.chance(.1)) v = rng.chance(.5) ? -87.336544f : 88.722839f;
    }
    for (float& v : x) v = v > 0 ? -v : v;
    small_exponential(pack<float>::load(x)).store(small);
    for (int l = 0; l < lanes; ++l) REQUIRE(same_bits(small[l], small_exponential(x[l])));
    float y[lanes];
    for (int l = 0; l < lanes; ++l) y[l] = l % 2 == 0 ? x[l] : -x[l];
    exponential(pack<float>::load(y)).store(all);
    for (int l = 0; l < lanes; ++l) REQUIRE(same_bits(all[l], exponential(y[l])));
  }
}

TEST_CASE("the exponential of a lane that is no number is 0", "[router]") {
  float x[lanes];
  small_exponential(pack<float>::all(qnan)).store(x);
  for (float v : x) REQUIRE(same_bits(v, 0.f));
}

TEST_CASE("the larger of a lane is what was the largest where the key is no number", "[router]") {
  float x[lanes];
  larger(pack<float>::all(qnan), pack<float>::all(-inf)).store(x);
  for (float v : x) REQUIRE(v == -inf);
  larger(pack<float>::all(2), pack<float>::all(1)).store(x);
  for (float v : x) REQUIRE(v == 2);
  larger(pack<float>::all(1), pack<float>::all(2)).store(x);
  for (float v : x) REQUIRE(v == 2);
}

TEST_CASE("lanes are chosen, cleared and looked for by masks", "[router]") {
  float x[lanes];
  for (int l = 0; l < lanes; ++l) x[l] = static_cast<float>(l);
  auto const p = pack<float>::load(x), one = pack<float>::all(1);
  auto const is_last = p.v == pack<float>::all(lanes - 1).v;
  float chosen[lanes], kept[lanes];
  select(is_last, one, p).store(chosen);
  zero_unless(is_last, one).store(kept);
  for (int l = 0; l < lanes; ++l) {
    REQUIRE(chosen[l] == (l == lanes - 1 ? 1.f : x[l]));
    REQUIRE(same_bits(kept[l], l == lanes - 1 ? 1.f : 0.f));
  }
  REQUIRE(any<float>(is_last));
  REQUIRE(!any<float>(p.v < pack<float>::all(0).v));
  REQUIRE(any<double>(pack<double>::all(1).v > pack<double>::all(0).v));
}
