// SPDX-License-Identifier: Apache-2.0
#include <expar/exchange/seats.hpp>

#include <algorithm>
#include <vector>

#include "support/catch.hpp"
#include "support/random.hpp"

using expar::index_t;
using expar::placement;
using expar::detail::seat_rule;
using expar::detail::seating;
using expar::detail::seats;

namespace {

using table = std::vector<std::vector<index_t>>;  // [rank][slot or expert]
std::size_t at(index_t i) {
  return static_cast<std::size_t>(i);
}
auto* const memory = std::pmr::get_default_resource();

/// The seats of every rank for the routes of `counts`.
std::vector<seats> seat_all(placement const& p, table const& counts, seat_rule rule) {
  std::vector<seats> all;
  std::vector<index_t> packed;
  for (auto const& row : counts) packed.insert(packed.end(), row.begin(), row.end());
  auto const of_all = expar::make_view(static_cast<index_t const*>(packed.data()),
                                       index_t{p.ranks()}, index_t{p.experts()});
  for (int r = 0; r < p.ranks(); ++r) {
    seating s(memory);
    s.reserve(p, rule.capacity >= 0);
    s.take_turns(p, s.kept(of_all, rule.capacity), r);
    auto& mine = all.emplace_back(memory);
    mine.begin(p, r, rule);
    s.seat(mine);
  }
  return all;
}

/// Where each rank's rows of a slot begin, by definition: slots of a rank one behind the other,
/// each at a multiple of the alignment, within one the ranks in order.
void check_ragged(placement const& p, std::vector<seats> const& all, int alignment) {
  index_t fullest = 0;
  for (int r = 0; r < p.ranks(); ++r) {
    seats const& here = all[at(r)];
    index_t row = 0;
    REQUIRE(here.locals() == p.count(r));
    for (int l = 0; l < here.locals(); ++l) {
      int const slot = p.first(r) + l;
      REQUIRE(row % alignment == 0);
      REQUIRE(here.offsets[l] == row);
      index_t sum = 0;
      for (int from = 0; from < p.ranks(); ++from) {
        seats const& there = all[at(from)];
        REQUIRE(there.to[slot] == row + sum);
        REQUIRE(here.first_row[from * here.locals() + l] == row + sum);
        REQUIRE(here.arrived[from * here.locals() + l] == there.sent[slot]);
        sum += there.sent[slot];
      }
      REQUIRE(here.counts[l] == sum);
      row = (row + sum + alignment - 1) / alignment * alignment;
    }
    REQUIRE(here.rows() == row);
    fullest = std::max(fullest, row);
    // What is no row of a rank is padding.
    std::vector<int> seen(at(row), 0);
    for (int b = 0; b < here.blocks(); ++b)
      for (index_t i = 0; i < here.arrived[b]; ++i) ++seen[at(here.first_row[b] + i)];
    here.for_each_gap([&](index_t first, index_t last) {
      REQUIRE(first < last);
      for (index_t i = first; i < last; ++i) ++seen[at(i)];
    });
    for (int const n : seen) REQUIRE(n == 1);
  }
  for (seats const& s : all) REQUIRE(s.room >= fullest);
}

placement draw_placement(expar_test::random& rng, int experts, int ranks) {
  if (rng.chance(0.2))
    return draw_placement(rng, experts, ranks + 1).without(static_cast<int>(rng.integer(0, ranks)));
  int const times = static_cast<int>(rng.integer(1, 3));
  switch (rng.integer(0, 4)) {
    case 0:
      return placement::blocks(experts, ranks);
    case 1:
      return placement::replicated(experts, ranks, times);
    case 2:
      return placement::sharded(experts, ranks, times);
    case 3:
      return placement::whole(experts, ranks);
    default:
      return placement::replicated(experts, ranks, times).nearest(2);
  }
}
table draw_counts(expar_test::random& rng, int ranks, int experts) {
  table t(at(ranks), std::vector<index_t>(at(experts)));
  for (auto& row : t)
    for (auto& n : row) n = rng.chance(0.3) ? 0 : rng.integer(0, 12);
  return t;
}

}  // namespace

TEST_CASE("seats: rows of a slot stand by source rank, and all ranks know where") {
  expar_test::random rng(1);
  for (int problem = 0; problem < 300; ++problem) {
    int const ranks = static_cast<int>(rng.integer(1, 5)),
              experts = static_cast<int>(rng.integer(1, 6)),
              alignment = static_cast<int>(rng.integer(1, 4));
    auto const p = draw_placement(rng, experts, ranks);
    auto const counts = draw_counts(rng, ranks, experts);
    auto const all = seat_all(p, counts, {alignment});
    check_ragged(p, all, alignment);
    // Every route is on one copy and on all its shards, if its expert has one.
    for (int r = 0; r < ranks; ++r)
      for (int e = 0; e < experts; ++e) {
        index_t sum = 0;
        for (int c = 0; c < p.copies(e); ++c) {
          for (int i = 1; i < p.shards(); ++i)
            REQUIRE(all[at(r)].sent[p.slot(e, c, i)] == all[at(r)].sent[p.slot(e, c)]);
          sum += all[at(r)].sent[p.slot(e, c)];
        }
        REQUIRE(sum == (p.copies(e) == 0 ? 0 : counts[at(r)][at(e)]));
      }
  }
}

TEST_CASE("seats: a budget keeps the level of all slots of a rank, the first ranks first") {
  expar_test::random rng(2);
  for (int problem = 0; problem < 300; ++problem) {
    int const ranks = static_cast<int>(rng.integer(1, 5)),
              experts = static_cast<int>(rng.integer(1, 6)),
              alignment = static_cast<int>(rng.integer(1, 4));
    auto const p = draw_placement(rng, experts, ranks);
    auto const counts = draw_counts(rng, ranks, experts);
    auto const free = seat_all(p, counts, {alignment});
    index_t const budget = rng.integer(0, free[0].needed + 1);
    seat_rule rule{alignment};
    rule.budget = budget;
    if (free[0].needed > budget)
      CHECK_THROWS_WITH(
          seat_all(p, counts, rule),
          Catch::Matchers::EndsWith(" rows; the budget has " + std::to_string(budget)));
    rule.drops = true;
    auto const all = seat_all(p, counts, rule);
    check_ragged(p, all, alignment);
    for (int r = 0; r < ranks; ++r) {
      REQUIRE(all[at(r)].rows() <= budget);
      REQUIRE(all[at(r)].room == budget);
      REQUIRE(all[at(r)].needed == free[0].needed);
      if (p.shards() > 1) continue;
      // The level: the largest with which the rank fits.
      auto const padded = [&](index_t level) {
        index_t sum = 0;
        for (int l = 0; l < p.count(r); ++l)
          sum += (std::min(free[at(r)].counts[l], level) + alignment - 1) / alignment * alignment;
        return sum;
      };
      index_t level = 0;
      while (level < free[0].needed && padded(level + 1) <= budget) ++level;
      for (int l = 0; l < p.count(r); ++l) {
        index_t left = level;
        for (int from = 0; from < ranks; ++from) {
          index_t const n = std::min(left, free[at(r)].arrived[from * p.count(r) + l]);
          REQUIRE(all[at(r)].arrived[from * p.count(r) + l] == n);
          left -= n;
        }
      }
    }
  }
}

TEST_CASE("seats: in a message to a rank rows of its slots follow one another") {
  expar_test::random rng(3);
  for (int problem = 0; problem < 200; ++problem) {
    int const ranks = static_cast<int>(rng.integer(1, 5)),
              experts = static_cast<int>(rng.integer(1, 6));
    auto const p = draw_placement(rng, experts, ranks);
    auto const counts = draw_counts(rng, ranks, experts);
    seat_rule rule{static_cast<int>(rng.integer(1, 4))};
    if (rng.chance(0.5)) rule = {.capacity = rng.integer(0, 8), .in_turn = p.ranks_per_node() == 0};
    auto const there = seat_all(p, counts, rule);
    rule.by_message = true;
    auto const all = seat_all(p, counts, rule);
    for (int from = 0; from < ranks; ++from)
      for (int r = 0; r < ranks; ++r) {
        seats const &s = all[at(from)], &other = all[at(r)];
        index_t row = 0;
        for (int slot = p.first(r); slot < p.first(r + 1); ++slot) {
          REQUIRE(s.to[slot] == (from == r ? there[at(from)].to[slot] : row));
          row += rule.capacity < 0 ? s.sent[slot] : s.room_of(slot);
        }
        REQUIRE(s.rows_to(r) == other.rows_from(from));
        if (rule.capacity < 0) REQUIRE(s.rows_to(r) == row);
      }
  }
}

TEST_CASE("seats: with a capacity every slot has the same room for every rank") {
  expar_test::random rng(4);
  for (int problem = 0; problem < 200; ++problem) {
    int const ranks = static_cast<int>(rng.integer(1, 5)),
              experts = static_cast<int>(rng.integer(1, 6));
    auto const p = draw_placement(rng, experts, ranks);
    auto const counts = draw_counts(rng, ranks, experts);
    seat_rule rule;
    rule.capacity = rng.integer(0, 8);
    rule.in_turn = p.ranks_per_node() == 0;
    auto const all = seat_all(p, counts, rule);
    index_t widest = 0;
    for (int r = 0; r < ranks; ++r) {
      index_t row = 0, room_of_rank = 0;
      for (int l = 0; l < p.count(r); ++l) {
        int const slot = p.first(r) + l;
        bool const lost = p.copy_of(slot) < 0;
        index_t const copies = rule.in_turn && !lost ? p.copies(p.expert_of(slot)) : 1;
        index_t const room = lost ? 0 : (rule.capacity + copies - 1) / copies;
        REQUIRE(all[at(r)].offsets[l] == row);
        for (int from = 0; from < ranks; ++from) {
          REQUIRE(all[at(from)].to[slot] == row + from * room);
          REQUIRE(all[at(from)].sent[slot] <= room);
        }
        row += ranks * room, room_of_rank += room;
      }
      REQUIRE(all[at(r)].rows() == row);
      widest = std::max(widest, room_of_rank);
    }
    for (auto const& s : all) REQUIRE(s.equal_rows == widest);
  }
}
