// SPDX-License-Identifier: Apache-2.0
#include <expar/router/detail/column_slots.hpp>

#include <algorithm>
#include <limits>
#include <vector>

#include "../../support/catch.hpp"
#include "../../support/random.hpp"

using namespace expar::detail;

namespace {

constexpr float inf = std::numeric_limits<float>::infinity();

/// By the principle of 0 and 1 a network that sorts those sorts everything.
template <int N, int Sorted = N>
void require_sorts(std::uint64_t first, std::uint64_t last) {
  using d = pack<double>;
  for (std::uint64_t bits = first; bits < last; ++bits) {
    typename d::vector rows[N];
    int ones = 0;
    for (int i = 0; i < N; ++i) {
      bool const one = (bits >> i & 1) != 0;
      ones += one;
      rows[i] = d::all(one ? 1 : 0).v;
    }
    sort_rows<N, Sorted>(static_cast<typename d::vector*>(rows));
    bool sorted = true;
    for (int i = 0; i < Sorted; ++i)
      for (int l = 0; l < d::lanes; ++l) sorted = sorted && rows[i][l] == (i < ones ? 1 : 0);
    REQUIRE(sorted);
  }
}

template <int N>
void require_kth_largest(std::uint64_t seed) {
  using p = pack<float>;
  expar_test::random rng(seed);
  for (int round = 0; round < 300; ++round) {
    float numbers[N * p::lanes];
    for (float& x : numbers) x = rng.chance(.1) ? -inf : static_cast<float>(rng.integer(-3, 2 * N));
    int const k = static_cast<int>(rng.integer(1, N / 2));
    typename p::vector rows[N];
    for (int i = 0; i < N; ++i) rows[i] = p::load(numbers + i * p::lanes).v;
    p const found = kth_largest<N>(static_cast<typename p::vector*>(rows), k);
    for (int l = 0; l < p::lanes; ++l) {
      std::vector<float> mine;
      for (int i = 0; i < N; ++i) mine.push_back(numbers[i * p::lanes + l]);
      std::sort(mine.rbegin(), mine.rend());
      CAPTURE(round, k, l);
      REQUIRE(found.v[l] == mine[static_cast<std::size_t>(k - 1)]);
    }
  }
}

template <int Slots>
void require_order(std::uint64_t seed) {
  constexpr int lanes = column_slots<Slots>::lanes;
  expar_test::random rng(seed);
  float const special[] = {0.f,
                           -0.f,
                           inf,
                           -inf,
                           1e-45f,
                           -1e-45f,
                           std::numeric_limits<float>::max(),
                           std::numeric_limits<float>::lowest()};
  for (int round = 0; round < 300; ++round) {
    column_slots<Slots> slots;
    int filled_slots[lanes];
    std::vector<std::vector<std::pair<float, int>>> expected(lanes);
    for (int l = 0; l < lanes; ++l) {
      int const filled = static_cast<int>(rng.integer(0, Slots));
      for (int i = 0; i < filled; ++i) {
        int const id = i * 3 + static_cast<int>(rng.integer(0, 2)) + (rng.chance(.1) ? 100000 : 0);
        float const key = rng.chance(.3)   ? special[rng.integer(0, 7)]
                          : rng.chance(.5) ? static_cast<float>(rng.integer(-2, 2))
                                           : static_cast<float>(rng.normal());
        slots.put(i, l, key, id);
        if (key > -inf) expected[static_cast<std::size_t>(l)].push_back({key, id});
      }
      filled_slots[l] = filled;
      auto& mine = expected[static_cast<std::size_t>(l)];
      std::sort(mine.begin(), mine.end(), [](auto a, auto b) {
        return a.first > b.first || (a.first == b.first && a.second < b.second);
      });
    }
    constexpr int k = Slots / 2;
    std::int32_t ids[k * lanes];
    float keys[k * lanes];
    slots.sort(filled_slots, k, ids, keys);
    for (int l = 0; l < lanes; ++l)
      for (int j = 0; j < k; ++j) {
        auto const& mine = expected[static_cast<std::size_t>(l)];
        auto const at = static_cast<std::size_t>(j);
        CAPTURE(round, l, j);
        REQUIRE(ids[j * lanes + l] == (at < mine.size() ? mine[at].second : -1));
        float const key = at < mine.size() ? mine[at].first : -inf;
        REQUIRE(keys[j * lanes + l] == key);
      }
  }
}

}  // namespace

TEST_CASE("sorting networks sort", "[router]") {
  require_sorts<8>(0, 1 << 8);
  require_sorts<16>(0, 1 << 16);
  require_sorts<32>(0, 1 << 12);
  require_sorts<32>(0xffffff00u - 4096, 0xffffff00u);
  require_sorts<16, 8>(0, 1 << 16);
  require_sorts<32, 16>(0, 1 << 12);
  require_sorts<32, 16>(0xffffff00u - 4096, 0xffffff00u);
}

TEST_CASE("the k-th largest is found in every lane", "[router]") {
  require_kth_largest<16>(4);
  require_kth_largest<32>(5);
}

TEST_CASE("slots are sorted by descending key and ascending id", "[router]") {
  require_order<8>(1);
  require_order<16>(2);
  require_order<32>(3);
}

TEST_CASE("bits are counted", "[router]") {
  REQUIRE(count_bits(0) == 0);
  REQUIRE(count_bits(~std::uint64_t{0}) == 64);
  REQUIRE(count_bits(0x8000000000000001u) == 2);
  REQUIRE(count_bits(0x123456789abcdef0u) == 32);
}
