// SPDX-License-Identifier: Apache-2.0
#include <expar/router/detail/select_rows.hpp>

#include <vector>

#include "../../support/catch.hpp"
#include "../support.hpp"

namespace {

template <int Slots>
void require_top_k(std::uint64_t seed, int rounds) {
  constexpr int lanes = expar::detail::key_rows::lanes;
  router_test::random rng(seed);
  for (int round = 0; round < rounds; ++round) {
    int const experts = static_cast<int>(
        rng.integer(Slots + 1, rng.chance(.1) ? (expar::detail::fills_fast ? 1024 : 1200) : 300));
    int const k = static_cast<int>(rng.integer(1, Slots / 2));
    std::vector<std::vector<float>> rows(lanes,
                                         std::vector<float>(static_cast<std::size_t>(experts)));
    expar::detail::key_rows keys;
    keys.experts = experts;
    for (int l = 0; l < lanes; ++l) {
      auto& mine = rows[static_cast<std::size_t>(l)];
      auto const row = router_test::random_row(rng, experts);
      bool const ties = rng.chance(.5);
      for (std::size_t e = 0; e < mine.size(); ++e)
        mine[e] = static_cast<float>(ties ? row[e] : rng.normal());
      keys.row[l] = mine.data();
    }
    keys.make_tails();
    std::vector<std::int32_t> ids(static_cast<std::size_t>(k * lanes)), mine(ids);
    std::vector<float> best(static_cast<std::size_t>(k)), best_keys(ids.size());
    float largest[lanes];
    expar::detail::select_rows<Slots>(keys, k, ids.data(), best_keys.data()).store(largest);
    for (int l = 0; l < lanes; ++l) {
      expar::select_top_k(keys.row[l], experts, k, mine.data(), best.data());
      CAPTURE(round, experts, k, l);
      REQUIRE(largest[l] == expar::detail::largest_logit(keys.row[l], experts));
      for (int j = 0; j < k; ++j) {
        auto const at = static_cast<std::size_t>(j * lanes + l);
        REQUIRE(ids[at] == mine[static_cast<std::size_t>(j)]);
        float const key = ids[at] < 0 ? -expar::detail::infinity<float> : keys.row[l][ids[at]];
        REQUIRE(best_keys[at] == key);
      }
    }
  }
}

}  // namespace

TEST_CASE("rows are selected as single tokens are", "[router]") {
  require_top_k<16>(1, 600);
  require_top_k<32>(2, 300);
}
