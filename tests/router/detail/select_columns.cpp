// SPDX-License-Identifier: Apache-2.0
#include <expar/router/detail/select_columns.hpp>

#include <vector>

#include <expar/router/top_k.hpp>

#include "../../support/catch.hpp"
#include "../support.hpp"

namespace {

template <class A>
void require_top_k(std::uint64_t seed, int rounds) {
  constexpr int lanes = expar::detail::pack<A>::lanes;
  router_test::random rng(seed);
  for (int round = 0; round < rounds; ++round) {
    int const experts = static_cast<int>(rng.integer(1, rng.chance(.5) ? 33 : 300));
    int const most = experts <= 32 ? experts : 16;
    int const k = rng.chance(.3) ? most : static_cast<int>(rng.integer(1, most));
    auto const size = static_cast<std::size_t>(experts);
    std::vector<A> keys(static_cast<std::size_t>(expar::detail::selected_columns(experts) * lanes));
    std::vector<std::vector<A>> rows(lanes, std::vector<A>(size));
    for (int l = 0; l < lanes; ++l) {
      auto const row = router_test::random_row(rng, experts);
      bool const ties = rng.chance(.5);
      for (std::size_t e = 0; e < size; ++e) {
        A const key = static_cast<A>(ties ? row[e] : rng.normal());
        rows[static_cast<std::size_t>(l)][e] = keys[e * lanes + static_cast<std::size_t>(l)] = key;
      }
    }
    std::vector<std::int32_t> ids(static_cast<std::size_t>(k * lanes)), mine(ids);
    std::vector<A> best(static_cast<std::size_t>(k)), best_keys(ids.size());
    A largest[lanes];
    expar::detail::select_columns(static_cast<A const*>(keys.data()), experts, k, ids.data(),
                                  best_keys.data())
        .store(largest);
    for (int l = 0; l < lanes; ++l) {
      A const* const row = rows[static_cast<std::size_t>(l)].data();
      expar::select_top_k(row, experts, k, mine.data(), best.data());
      CAPTURE(round, experts, k, l);
      REQUIRE(largest[l] == expar::detail::largest_logit(row, experts));
      for (int j = 0; j < k; ++j) {
        auto const at = static_cast<std::size_t>(j * lanes + l);
        REQUIRE(ids[at] == mine[static_cast<std::size_t>(j)]);
        A const key = ids[at] < 0 ? -expar::detail::infinity<A> : row[ids[at]];
        REQUIRE(best_keys[at] == key);
      }
    }
  }
}

}  // namespace

TEST_CASE("columns are selected as single tokens are", "[router]") {
  require_top_k<float>(1, 600);
  require_top_k<double>(2, 200);
}
