// SPDX-License-Identifier: Apache-2.0
#include <expar/router/detail/fill_slots.hpp>

#include <algorithm>
#include <utility>
#include <vector>

#include "../../support/catch.hpp"
#include "../support.hpp"

namespace {

template <int Slots>
void require_filled(std::uint64_t seed) {
  using namespace expar::detail;
  constexpr int lanes = key_rows::lanes;
  router_test::random rng(seed);
  for (int round = 0; round < 300; ++round) {
    int const experts = static_cast<int>(
        rng.integer(Slots + 1, rng.chance(.1) ? (expar::detail::fills_fast ? 1024 : 1200) : 300));
    std::vector<std::vector<float>> rows(lanes);
    key_rows keys;
    keys.experts = experts;
    float thresholds[lanes];
    for (int l = 0; l < lanes; ++l) {
      auto& mine = rows[static_cast<std::size_t>(l)];
      for (int e = 0; e < experts; ++e)
        mine.push_back(static_cast<float>(rng.chance(.05) ? router_test::qnan
                                          : rng.chance(.05)
                                              ? -router_test::inf
                                              : static_cast<double>(rng.integer(0, 2 * experts))));
      keys.row[l] = mine.data();
      thresholds[l] = static_cast<float>(
          rng.chance(.1) ? -router_test::inf
                         : static_cast<double>(2 * experts - rng.integer(0, 3 * Slots)));
    }
    keys.make_tails();
    column_slots<Slots> slots;
    int filled[lanes];
    fill_slots(keys, static_cast<float const*>(thresholds), slots, static_cast<int*>(filled));
    for (int l = 0; l < lanes; ++l) {
      std::vector<std::pair<int, float>> expected, made;
      for (int e = 0; e < experts; ++e)
        if (keys.row[l][e] >= thresholds[l]) expected.push_back({e, keys.row[l][e]});
      CAPTURE(round, experts, l, thresholds[l], expected.size());
      if (!(thresholds[l] > -infinity<float>) || expected.size() > Slots) {
        REQUIRE(filled[l] > Slots);
        continue;
      }
      REQUIRE(filled[l] == static_cast<int>(expected.size()));
      for (int i = 0; i < filled[l]; ++i)
        made.push_back({slots.id[i * lanes + l], slots.key[i * lanes + l]});
      std::sort(made.begin(), made.end());
      REQUIRE(made == expected);
    }
  }
}

}  // namespace

TEST_CASE("slots are filled by what reaches the threshold", "[router]") {
  require_filled<16>(1);
  require_filled<32>(2);
}
