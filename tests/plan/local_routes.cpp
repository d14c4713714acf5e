// SPDX-License-Identifier: Apache-2.0
#include <expar/plan/local_routes.hpp>

#include <map>
#include <vector>

#include "support/catch.hpp"
#include "support/random.hpp"

using expar::index_t;
using expar::make_view;
using expar::placement;

TEST_CASE("local_routes: every route is on exactly one rank, and on every shard") {
  expar_test::random rng(5);
  expar::host_context const ctx;
  for (int problem = 0; problem < 100; ++problem) {
    int const experts = static_cast<int>(rng.integer(1, 6)),
              n = static_cast<int>(rng.integer(1, 4)), times = static_cast<int>(rng.integer(1, 3));
    bool const sharded = rng.chance(0.5);
    auto const p =
        sharded ? placement::sharded(experts, n, times) : placement::replicated(experts, n, times);
    index_t const tokens = rng.integer(0, 9), k = rng.integer(1, 3), shards = p.shards();
    std::vector<std::int64_t> ids;
    for (index_t i = 0; i < tokens * k; ++i) ids.push_back(rng.integer(-1, experts - 1));
    // For every route and shard the slots of all ranks.
    std::vector<std::vector<int>> slots(static_cast<std::size_t>(tokens * k * shards));
    for (int r = 0; r < n; ++r) {
      std::vector<std::int16_t> out(slots.size(), 99);
      expar::local_routes(ctx, p, r, make_view(ids.data(), tokens, k),
                          make_view(out.data(), tokens, k * shards));
      for (std::size_t i = 0; i < out.size(); ++i) {
        REQUIRE((out[i] >= -1 && out[i] < p.count(r)));
        if (out[i] >= 0) slots[i].push_back(p.first(r) + out[i]);
      }
    }
    std::map<std::int64_t, int> before;
    for (std::size_t route = 0; route < ids.size(); ++route) {
      int const number = before[ids[route]]++;
      for (int i = 0; i < static_cast<int>(shards); ++i) {
        auto const& found =
            slots[route * static_cast<std::size_t>(shards) + static_cast<std::size_t>(i)];
        if (ids[route] < 0) {
          REQUIRE(found.empty());
          continue;
        }
        REQUIRE(found.size() == 1);
        REQUIRE(p.expert_of(found[0]) == ids[route]);
        REQUIRE(p.shard_of(found[0]) == i);
        REQUIRE(p.copy_of(found[0]) == number % p.copies(static_cast<int>(ids[route])));
      }
    }
  }
}

TEST_CASE("local_routes: routes of an expert without a copy are nowhere") {
  expar::host_context const ctx;
  // Of the two shards of expert 1 one is lost.
  auto const p = placement::table(2, {{0}, {1, 0}, {1}}, 2).without(2);
  std::int32_t const ids[] = {1, 0, -1, 1};
  std::vector<std::int32_t> out(8, 99);
  expar::local_routes(ctx, p, 1, make_view(ids, 2, 2), make_view(out.data(), 2, 4));
  CHECK(out == std::vector<std::int32_t>{-1, -1, -1, 1, -1, -1, -1, -1});
}

TEST_CASE("local_routes: wrong arguments are said") {
  expar::host_context const ctx;
  auto const p = placement::sharded(4, 2, 2);
  std::int32_t ids[4] = {0, 1, 4, 0}, out[8];
  CHECK_THROWS_WITH(
      expar::local_routes(ctx, p, 0, make_view(ids, 2, 2), make_view(out, 2, 4)),
      "expar: local_routes: ids(1, 0) is 4; an expert id is -1 (no expert) or 0 to 3");
  CHECK_THROWS_WITH(
      expar::local_routes(ctx, p, 0, make_view(ids, 2, 2), make_view(out, 4, 2)),
      "expar: local_routes: out has extent 4 in dimension 0, but the number of tokens "
      "is 2");
  CHECK_THROWS_WITH(expar::local_routes(ctx, p, 0, make_view(ids, 1, 2), make_view(out, 1, 2)),
                    "expar: local_routes: out has extent 2 in dimension 1, but top_k times the "
                    "shards of the placement is 4");
  CHECK_THROWS_WITH(expar::local_routes(ctx, p, 2, make_view(ids, 1, 2), make_view(out, 1, 4)),
                    "expar: local_routes: rank is 2; there are 2 ranks");
}
