// SPDX-License-Identifier: Apache-2.0
#include <expar/plan/placement.hpp>

#include <vector>

#include "support/catch.hpp"
#include "support/random.hpp"

using expar::placement;

namespace {

/// The slots of each rank as the numbers of their experts.
std::vector<std::vector<int>> held(placement const& p) {
  std::vector<std::vector<int>> all;
  for (int r = 0; r < p.ranks(); ++r) {
    auto& of_rank = all.emplace_back();
    for (int s = p.first(r); s < p.first(r + 1); ++s) of_rank.push_back(p.expert_of(s));
  }
  return all;
}
using ranks = std::vector<std::vector<int>>;

/// What holds for every placement, of whose slots some may be of no copy.
void check(placement const& p) {
  REQUIRE(p.first(0) == 0);
  REQUIRE(p.first(p.ranks()) == p.slot_count());
  int most = 0, slots = 0;
  for (int r = 0; r < p.ranks(); ++r) {
    REQUIRE(p.count(r) == p.first(r + 1) - p.first(r));
    most = p.count(r) > most ? p.count(r) : most;
    for (int s = p.first(r); s < p.first(r + 1); ++s) {
      REQUIRE(p.rank_of(s) == r);
      REQUIRE((p.shard_of(s) >= 0 && p.shard_of(s) < p.shards()));
      slots += p.copy_of(s) < 0;
    }
  }
  REQUIRE(p.most() == most);
  for (int e = 0; e < p.experts(); ++e)
    for (int c = 0; c < p.copies(e); ++c)
      for (int i = 0; i < p.shards(); ++i, ++slots) {
        int const s = p.slot(e, c, i);
        REQUIRE(p.expert_of(s) == e);
        REQUIRE(p.copy_of(s) == c);
        REQUIRE(p.shard_of(s) == i);
      }
  REQUIRE(slots == p.slot_count());
}

}  // namespace

TEST_CASE("placement: the ready ones") {
  CHECK(held(placement::blocks(5, 3)) == ranks{{0, 1}, {2, 3}, {4}});
  CHECK(held(placement::blocks(2, 4)) == ranks{{0}, {1}, {}, {}});
  CHECK(held(placement::replicated(3, 2, 2)) == ranks{{0, 1, 2}, {0, 1, 2}});
  CHECK(held(placement::replicated(2, 3, 2)) == ranks{{0, 1}, {0}, {1}});
  CHECK(held(placement::sharded(2, 4, 2)) == ranks{{0}, {0}, {1}, {1}});
  CHECK(held(placement::whole(2, 3)) == ranks{{0, 1}, {0, 1}, {0, 1}});
  CHECK(placement::whole(2, 3).ranks_per_node() == 1);
  CHECK(placement::blocks(5, 3).is_identity());
  CHECK(placement::replicated(5, 3, 1) == placement::blocks(5, 3));
  CHECK_FALSE(placement::sharded(2, 4, 2).is_identity());
  auto const shards = placement::sharded(2, 4, 2);
  CHECK(shards.slot(1, 0, 1) == 3);
  CHECK(shards.copies(1) == 1);
}

TEST_CASE("placement: a table says everything") {
  auto const p = placement::table(3, {{2, 0}, {}, {1, 2, 2}});
  CHECK(held(p) == ranks{{2, 0}, {}, {1, 2, 2}});
  CHECK(p.copies(2) == 3);
  CHECK(p.slot(2, 0) == 0);
  CHECK(p.slot(2, 2) == 4);
  CHECK(p.count(1) == 0);
  auto const s = placement::table(2, {{0, 1}, {1, 0}, {0, 0}}, 2);
  CHECK(s.copies(0) == 2);
  CHECK(s.copies(1) == 1);
  CHECK(s.slot(0, 1, 1) == 5);
}

TEST_CASE("placement: slots and experts name each other, whatever the placement") {
  for (int experts : {1, 2, 5, 8})
    for (int n : {1, 2, 3, 7}) {
      check(placement::blocks(experts, n));
      check(placement::whole(experts, n));
      for (int times : {1, 2, 3}) {
        check(placement::replicated(experts, n, times));
        check(placement::sharded(experts, n, times));
      }
    }
  expar_test::random rng(3);
  for (int problem = 0; problem < 100; ++problem) {
    int const experts = static_cast<int>(rng.integer(1, 6)),
              n = static_cast<int>(rng.integer(1, 5)), shards = static_cast<int>(rng.integer(1, 3));
    ranks table(static_cast<std::size_t>(n));
    for (int e = 0; e < experts; ++e)
      for (auto i = rng.integer(1, 3) * shards; i > 0; --i)
        table[static_cast<std::size_t>(rng.integer(0, n - 1))].push_back(e);
    auto const p = placement::table(experts, table, shards);
    check(p);
    REQUIRE(held(p) == table);
    for (auto left = p; left.ranks() > 1;) {
      int const lost = static_cast<int>(rng.integer(0, left.ranks() - 1));
      auto const before = left;
      left = left.without(lost);
      table.erase(table.begin() + lost);
      check(left);
      REQUIRE(held(left) == table);
      for (int e = 0; e < experts; ++e) {
        int whole = 0;
        for (int c = 0; c < before.copies(e); ++c) {
          bool here = true;
          for (int i = 0; i < shards; ++i)
            here = here && before.rank_of(before.slot(e, c, i)) != lost;
          whole += here;
        }
        REQUIRE(left.copies(e) == whole);
      }
    }
  }
}

TEST_CASE("placement: without a rank the others keep their slots, and copies are fewer") {
  auto const p = placement::table(3, {{2, 0}, {}, {1, 2, 2}, {0}}).without(0);
  CHECK(held(p) == ranks{{}, {1, 2, 2}, {0}});
  CHECK(p.copies(0) == 1);
  CHECK(p.copies(2) == 2);
  CHECK(p.slot(0, 0) == 3);
  CHECK(p == placement::table(3, {{}, {1, 2, 2}, {0}}));
  CHECK(p.hash() == placement::table(3, {{}, {1, 2, 2}, {0}}).hash());
  CHECK(placement::whole(4, 3).without(1) == placement::whole(4, 2));
  auto const blocks = placement::blocks(4, 2).without(1);
  CHECK_FALSE(blocks.is_identity());
  CHECK(blocks.copies(1) == 1);
  CHECK(blocks.copies(2) == 0);
  auto const none = placement::blocks(1, 3).without(0);
  CHECK(none.slot_count() == 0);
  CHECK(none.ranks() == 2);
  CHECK(none.most() == 0);
}

TEST_CASE("placement: a copy is lost with one of its shards, whose other slots stay") {
  auto const all = placement::table(2, {{0, 1}, {0, 1}, {0}, {0}}, 2), p = all.without(1);
  CHECK(held(p) == ranks{{0, 1}, {0}, {0}});
  CHECK(p.copies(0) == 1);
  CHECK(p.copies(1) == 0);
  CHECK(p.copy_of(0) == -1);
  CHECK(p.shard_of(0) == 0);
  CHECK(p.copy_of(2) == 0);
  CHECK(p.slot(0, 0, 1) == 3);
  CHECK(all.without(0).shard_of(0) == 1);
  // Other copies of the same slots.
  auto const four = placement::table(1, {{0}, {0}, {0}, {0}}, 2);
  CHECK(held(four.without(0)) == held(four.without(3)));
  CHECK(four.without(0) != four.without(3));
  CHECK(four.without(0).hash() != four.without(3).hash());
  CHECK(four.without(0) != four.without(1));
  CHECK(four.without(0).without(0) == placement::table(1, {{0}, {0}}, 2));
  CHECK(four.without(0).without(2).copies(0) == 0);
}

TEST_CASE("placement: nodes stay where a rank of the last one is lost, else ranks are alone") {
  auto const p = placement::replicated(3, 5, 2);
  CHECK(p.without(0).ranks_per_node() == 0);
  CHECK(p.nearest().without(0).ranks_per_node() == 1);
  CHECK(p.nearest(2).without(4).ranks_per_node() == 2);
  CHECK(p.nearest(2).without(3).ranks_per_node() == 1);
  CHECK(p.nearest(3).without(3).ranks_per_node() == 3);
  CHECK(p.nearest(8).without(0).ranks_per_node() == 8);
}

TEST_CASE("placement: equal ones have one hash, others another") {
  std::vector<placement> const different{
      placement::blocks(4, 2),           placement::blocks(4, 3),
      placement::blocks(5, 2),           placement::replicated(4, 2, 2),
      placement::sharded(4, 2, 2),       placement::whole(4, 2),
      placement::whole(4, 2).nearest(2), placement::table(4, {{0, 1, 3}, {2}})};
  for (std::size_t i = 0; i < different.size(); ++i)
    for (std::size_t j = 0; j < different.size(); ++j) {
      REQUIRE((different[i] == different[j]) == (i == j));
      REQUIRE((different[i].hash() == different[j].hash()) == (i == j));
    }
  CHECK(placement::table(4, {{0, 1}, {2, 3}}) == placement::blocks(4, 2));
  CHECK(placement::table(4, {{0, 1}, {2, 3}}).hash() == placement::blocks(4, 2).hash());
}

TEST_CASE("placement: a copy is the same placement, and outlives the first") {
  placement p = placement::blocks(1, 1);
  {
    auto const first = placement::sharded(3, 2, 2);
    p = first;
    auto moved = std::move(p);
    CHECK(moved == first);
    CHECK(p == first);
  }
  CHECK(p.slot_count() == 6);
}

TEST_CASE("placement: what is impossible is said") {
  CHECK_THROWS_WITH(placement::blocks(0, 1),
                    "expar: placement: experts is 0; at least 1 is needed");
  CHECK_THROWS_WITH(placement::blocks(1, 0), "expar: placement: ranks is 0; at least 1 is needed");
  CHECK_THROWS_WITH(placement::replicated(1, 1, 0),
                    "expar: placement: copies is 0; at least 1 is needed");
  CHECK_THROWS_WITH(placement::sharded(1, 1, -1),
                    "expar: placement: shards is -1; at least 1 is needed");
  CHECK_THROWS_WITH(placement::table(2, {{0}, {}}),
                    "expar: placement: expert 1 has no slot; it needs one");
  CHECK_THROWS_WITH(placement::table(2, {{0, 2}, {1}}),
                    "expar: placement: slot 1 holds expert 2; there are 2 experts");
  CHECK_THROWS_WITH(placement::table(2, {{0, 0}, {1}}, 2),
                    "expar: placement: expert 1 has 1 slots; with shards it has a multiple of 2");
  CHECK_THROWS_WITH(
      placement::sharded(1 << 20, 1, 1 << 20),
      "expar: placement: 1048576 experts have 1099511627776 slots; at most 2147483647 "
      "are possible");
  auto const p = placement::blocks(4, 2);
  CHECK_THROWS_WITH(p.first(3), "expar: placement: rank is 3; it lies between 0 and 2");
  CHECK_THROWS_WITH(p.count(2), "expar: placement: rank is 2; it lies between 0 and 1");
  CHECK_THROWS_WITH(p.rank_of(-1), "expar: placement: slot is -1; it lies between 0 and 3");
  CHECK_THROWS_WITH(p.expert_of(4), "expar: placement: slot is 4; it lies between 0 and 3");
  CHECK_THROWS_WITH(p.copies(4), "expar: placement: expert is 4; it lies between 0 and 3");
  CHECK_THROWS_WITH(p.slot(0, 1), "expar: placement: copy is 1; it lies between 0 and 0");
  CHECK_THROWS_WITH(p.slot(0, 0, 1), "expar: placement: shard is 1; it lies between 0 and 0");
  CHECK_THROWS_WITH(p.without(2), "expar: placement: rank is 2; it lies between 0 and 1");
  CHECK_THROWS_WITH(p.without(0).without(0),
                    "expar: placement: ranks is 1; without one, none is left");
  CHECK_THROWS_WITH(p.without(0).slot(1, 0),
                    "expar: placement: expert 1 has no copy; its ranks are lost");
  CHECK_THROWS_WITH(p.nearest(0), "expar: placement: ranks_per_node is 0; it is at least 1");
}
