// SPDX-License-Identifier: Apache-2.0
#include <expar/router/detail/limit_lanes.hpp>

#include <vector>

#include "../../support/catch.hpp"
#include "../support.hpp"

namespace {

/// In every lane what the policy makes of its token, but for what is masked already.
template <class A>
void require_lanes(std::uint64_t seed) {
  constexpr int lanes = expar::detail::pack<A>::lanes;
  router_test::random rng(seed);
  for (int round = 0; round < 200; ++round) {
    int const groups = static_cast<int>(rng.integer(1, 12));
    int const size = static_cast<int>(rng.integer(2, 9)), experts = groups * size;
    expar::group_limited const step{groups, static_cast<int>(rng.integer(1, groups)),
                                    static_cast<int>(rng.integer(1, 2)), rng.chance(.5)};
    std::vector<A> keys(static_cast<std::size_t>(experts * lanes));
    std::vector<std::vector<A>> rows(lanes);
    for (int l = 0; l < lanes; ++l)
      for (double const x : router_test::random_row(rng, experts)) {
        auto& row = rows[static_cast<std::size_t>(l)];
        keys[row.size() * lanes + static_cast<std::size_t>(l)] = static_cast<A>(x);
        row.push_back(static_cast<A>(x));
      }
    expar::detail::limit_lanes(step, keys.data(), experts);
    for (int l = 0; l < lanes; ++l) {
      auto& row = rows[static_cast<std::size_t>(l)];
      std::vector<A> sums(static_cast<std::size_t>(groups));
      step.limit(row.data(), experts, sums.data());
      for (std::size_t e = 0; e < row.size(); ++e) {
        A const mine = keys[e * lanes + static_cast<std::size_t>(l)];
        CAPTURE(round, groups, size, l, e, mine, row[e]);
        REQUIRE((mine == row[e] || (expar::detail::masked(mine) && expar::detail::masked(row[e]))));
      }
    }
  }
}

}  // namespace

TEST_CASE("groups of all lanes are limited as those of each", "[router]") {
  require_lanes<float>(1);
  require_lanes<double>(2);
}
