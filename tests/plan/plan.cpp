// SPDX-License-Identifier: Apache-2.0
#include <expar/plan/plan.hpp>

#include <array>
#include <string>
#include <vector>

#include "../support/catch.hpp"
#include "../support/random.hpp"

namespace {

expar::host_context const ctx;

struct ids_type {
  std::vector<std::int32_t> data;
  expar::index_t tokens, k, pitch;
  expar::tensor_view<std::int32_t const, 2> view() const {
    return expar::make_view(data.data(), tokens, k, pitch);
  }
  std::int32_t at(expar::index_t t, expar::index_t j) const {
    return data[static_cast<std::size_t>(t * pitch + j)];
  }
};

ids_type random_ids(expar_test::random& rng, int experts, int tokens, int k) {
  ids_type ids{{}, tokens, k, k + rng.integer(0, 2)};
  bool const hot = rng.chance(.2);
  double const absent = rng.chance(.1) ? 1 : .15;
  for (expar::index_t i = 0; i < ids.tokens * ids.pitch; ++i)
    ids.data.push_back(rng.chance(absent) ? -1
                       : hot              ? 0
                                          : static_cast<std::int32_t>(rng.integer(0, experts - 1)));
  return ids;
}

/// The place of a route by definition: how many routes to its expert come before it.
expar::index_t location(ids_type const& ids, expar::index_t t, expar::index_t j,
                        bool choice_major) {
  expar::index_t before = 0;
  for (expar::index_t u = 0; u < ids.tokens; ++u)
    for (expar::index_t i = 0; i < ids.k; ++i) {
      bool const earlier = choice_major ? i < j || (i == j && u < t) : u < t || (u == t && i < j);
      before += earlier && ids.at(u, i) == ids.at(t, j);
    }
  return before;
}

std::string thrown_by(std::vector<std::int32_t> const& ids, expar::index_t k, int experts) {
  try {
    expar::make_plan(ctx, expar::make_view(ids.data(), expar::index_t(ids.size()) / k, k), experts);
  } catch (expar::error const& e) {
    return e.what();
  }
  return "nothing was thrown";
}

// Six tokens, two choices: the golden vectors of Tutel's top-2 example.
std::vector<std::int32_t> const tutel{0, 1, 0, 1, 0, 2, 1, 2, 0, 2, 0, 1};

}  // namespace

TEST_CASE("a plan gives every route the row that the definition gives") {
  for (std::uint64_t seed = 0; seed < 300; ++seed) {
    expar_test::random rng(seed);
    int const experts = static_cast<int>(rng.integer(1, 12));
    auto const ids = random_ids(rng, experts, static_cast<int>(rng.integer(0, 30)),
                                static_cast<int>(rng.integer(1, 5)));
    bool const with_capacity = rng.chance(.5);
    int const alignment = static_cast<int>(rng.integer(1, 5));
    double const factors[] = {1, 0, -1, .5, 2};
    expar::fixed_capacity const capacity{factors[rng.integer(0, 4)], alignment,
                                         rng.chance(.7) ? -1 : rng.integer(0, 8)};
    INFO("seed " << seed);
    auto const p = with_capacity
                       ? expar::make_plan(ctx, ids.view(), experts, capacity)
                       : expar::make_plan(ctx, ids.view(), experts, expar::ragged{alignment});
    std::vector<expar::index_t> counts(static_cast<std::size_t>(experts));
    expar::index_t most = 0;
    for (expar::index_t t = 0; t < ids.tokens; ++t)
      for (expar::index_t j = 0; j < ids.k; ++j)
        if (ids.at(t, j) >= 0) {
          auto& count = counts[static_cast<std::size_t>(ids.at(t, j))];
          most = ++count > most ? count : most;
        }
    auto const bound =
        expar::capacity_of(capacity, ids.tokens, experts, static_cast<int>(ids.k), most);
    REQUIRE(p.capacity() == (with_capacity ? bound : -1));
    REQUIRE(p.needed_capacity() == most);
    expar::index_t first = 0, dropped = 0;
    std::vector<expar::index_t> begin;
    for (int e = 0; e < experts; ++e) {
      auto const count = counts[static_cast<std::size_t>(e)];
      REQUIRE(p.counts()[static_cast<std::size_t>(e)] == count);
      REQUIRE(p.offsets()[static_cast<std::size_t>(e)] == first);
      auto const kept = with_capacity && count > bound ? bound : count;
      REQUIRE(p.kept(e) == kept);
      dropped += count - kept;
      begin.push_back(first);
      first += with_capacity ? bound : (count + alignment - 1) / alignment * alignment;
    }
    REQUIRE(p.rows() == first);
    REQUIRE(p.dropped() == dropped);
    for (expar::index_t t = 0; t < ids.tokens; ++t)
      for (int j = 0; j < ids.k; ++j) {
        auto const e = ids.at(t, j);
        auto const place = e < 0 ? -1 : location(ids, t, j, with_capacity);
        bool const has_row = e >= 0 && !(with_capacity && place >= bound);
        REQUIRE(p.row(t, j) == (has_row ? begin[static_cast<std::size_t>(e)] + place : -1));
        REQUIRE(p.locations()(t, j) == (has_row ? place : -1));
      }
  }
}

TEST_CASE("a plan does not depend on the number of threads") {
  expar_test::random rng(5);
  for (int experts : {1, 7, 64}) {
    auto const ids = random_ids(rng, experts, 40000, 3);
    for (auto order :
         {expar::route_plan::order::token_major, expar::route_plan::order::choice_major}) {
      expar::route_plan one, many;
      one.place(ctx, ids.view(), experts, order);
      for (int threads : {2, 3, 8}) {
        many.place(expar::host_context(threads), ids.view(), experts, order);
        bool same = true;
        for (expar::index_t t = 0; t < ids.tokens; ++t)
          for (int j = 0; j < 3; ++j)
            same = same && one.locations()(t, j) == many.locations()(t, j);
        REQUIRE(same);
      }
    }
  }
}

TEST_CASE("first choices take their places first: Tutel's golden vectors") {
  auto const ids = expar::make_view(tutel.data(), 6, 2);
  auto const keep = expar::make_plan(ctx, ids, 4, expar::fixed_capacity{0});
  int const places[6][2] = {{0, 1}, {1, 2}, {2, 0}, {0, 1}, {3, 2}, {4, 3}};
  for (int t = 0; t < 6; ++t)
    for (int j = 0; j < 2; ++j) CHECK(keep.locations()(t, j) == places[t][j]);
  auto const drop = expar::make_plan(ctx, ids, 4, expar::fixed_capacity{1});
  CHECK(drop.capacity() == 4);
  CHECK(drop.row(5, 0) == -1);
  CHECK(drop.row(5, 1) == 7);
  CHECK(drop.dropped() == 1);
  CHECK(drop.needed_capacity() == 5);
  // top-1
  std::vector<std::int32_t> const first{0, 0, 0, 1, 0, 0};
  auto const one =
      expar::make_plan(ctx, expar::make_view(first.data(), 6, 1), 4, expar::fixed_capacity{0});
  int const loc[] = {0, 1, 2, 0, 3, 4};
  for (int t = 0; t < 6; ++t) CHECK(one.locations()(t, 0) == loc[t]);
  CHECK(one.counts()[0] == 5);
}

TEST_CASE("a capacity may be a number") {
  auto const ids = expar::make_view(tutel.data(), 6, 2);
  auto const p = expar::make_plan(ctx, ids, 4, expar::fixed_capacity{.rows = 3});
  CHECK(p.capacity() == 3);
  CHECK(p.rows() == 12);
  CHECK(p.kept(0) == 3);
  CHECK(p.kept(3) == 0);
  CHECK(p.row(0, 1) == 3 + 1);
  CHECK(p.row(4, 0) == -1);
  CHECK(expar::make_plan(ctx, ids, 4, expar::fixed_capacity{.alignment = 4, .rows = 3}).rows() ==
        16);
  auto const none = expar::make_plan(ctx, ids, 4, expar::fixed_capacity{.rows = 0});
  CHECK(none.rows() == 0);
  CHECK(none.dropped() == 12);
}

TEST_CASE("places of routes by Switch Transformer and Tutel") {
  // Switch Transformer, top 1 with capacity 1. Tutel, top 2 with a capacity factor of 1.
  std::vector<std::int32_t> const top1{0, 1, 0, 2}, top2{0, 1, 1, 0, 0, 2, 0, 1};
  auto const a =
      expar::make_plan(ctx, expar::make_view(top1.data(), 4, 1), 4, expar::fixed_capacity{1});
  CHECK(a.capacity() == 1);
  int const kept1[] = {0, 0, -1, 0};
  for (int t = 0; t < 4; ++t) CHECK(a.locations()(t, 0) == kept1[t]);
  auto const b =
      expar::make_plan(ctx, expar::make_view(top2.data(), 4, 2), 4, expar::fixed_capacity{1});
  CHECK(b.capacity() == 2);
  int const kept2[4][2] = {{0, 1}, {0, -1}, {1, 0}, {-1, -1}};
  for (int t = 0; t < 4; ++t)
    for (int j = 0; j < 2; ++j) CHECK(b.locations()(t, j) == kept2[t][j]);
}

TEST_CASE("a plan is reused, and an error leaves it empty") {
  expar::route_plan p;
  auto const ids = expar::make_view(tutel.data(), 6, 2);
  expar::make_plan(ctx, ids, 4, expar::fixed_capacity{.6}, p);
  CHECK(p.dropped() == 6);
  expar::make_plan(ctx, ids, 3, expar::ragged{4}, p);
  CHECK(p.rows() == 16);
  CHECK(p.dropped() == 0);
  CHECK_THROWS(expar::make_plan(ctx, ids, 2, expar::ragged{}, p));
  CHECK(p.tokens() == 0);
  CHECK(p.rows() == 0);
  expar::make_plan(ctx, ids, 4, expar::ragged{}, p);
  auto const rows = p.rows();
  expar::route_plan const moved = std::move(p);
  CHECK(moved.rows() == rows);
  CHECK(p.rows() == 0);
  CHECK(p.tokens() == 0);
  CHECK(p.experts() == 0);
  CHECK(expar::route_plan().rows() == 0);
}

TEST_CASE("bad ids are named with their place and the bound") {
  CHECK(thrown_by({0, 1, 2, 4}, 2, 4) ==
        "expar: plan: ids(1, 1) is 4; an expert id is -1 (no expert) or 0 to 3");
  CHECK(thrown_by({0, -2, 9, 4}, 2, 4) ==
        "expar: plan: ids(0, 1) is -2; an expert id is -1 (no expert) or 0 to 3");
  CHECK(thrown_by({0}, 1, 0) == "expar: plan: experts is 0; at least 1 is needed");
  CHECK_THROWS_WITH(
      expar::make_plan(ctx, expar::tensor_view<std::int32_t, 2>{nullptr, {2, 3}, {3, 1}}, 4),
      "expar: plan: ids has 6 elements but its data is null");
  CHECK_THROWS_WITH(
      expar::make_plan(ctx, expar::tensor_view<std::int32_t, 2>{nullptr, {1 << 30, 2}, {0, 1}}, 4),
      "expar: plan: ids has 2147483648 elements but its data is null");
  std::int32_t none[2] = {-1, -1};
  CHECK_THROWS_WITH(
      expar::make_plan(ctx, expar::tensor_view<std::int32_t, 2>{none, {1 << 30, 2}, {0, 1}}, 4),
      "expar: plan: ids has 1073741824 x 2 routes; at most 2147483647 are possible");
  CHECK_THROWS_WITH(
      expar::make_plan(ctx, expar::make_view(none, 1, 2), 4, expar::fixed_capacity{1, 0}),
      "expar: plan: alignment is 0; it is at least 1");
  for (expar::index_t const rows : {expar::index_t{-2}, expar::index_t{1} << 31})
    CHECK_THROWS_WITH(
        expar::make_plan(ctx, expar::make_view(none, 1, 2), 4, expar::fixed_capacity{.rows = rows}),
        "expar: plan: capacity rows is " + std::to_string(rows) +
            "; it is at least 0, or -1 for the factor, and at most 2147483647");
}

TEST_CASE("a capacity that gives more rows than memory can hold is refused") {
  constexpr int experts = 1 << 22, k = 1 << 21;
  std::vector<std::int32_t> const ids(k, 7);
  auto const view = expar::make_view(ids.data(), 1, k);
  expar::route_plan p;
  CHECK_THROWS_WITH(expar::make_plan(ctx, view, experts, expar::fixed_capacity{524288}, p),
                    "expar: plan: 4194304 experts of 1099511627776 rows each are more than memory "
                    "can hold");
  CHECK(p.rows() == 0);
  CHECK(p.tokens() == 0);
  CHECK(p.needed_capacity() == 0);
  expar::make_plan(ctx, view, experts, expar::fixed_capacity{0}, p);
  CHECK(p.rows() == expar::index_t{experts} * k);
  p.place(ctx, view, experts, expar::route_plan::order::choice_major);
  CHECK_THROWS_WITH(p.lay_out(ctx, -1), "expar: plan: capacity is -1; it is at least 0");
  CHECK(p.tokens() == 0);
}

TEST_CASE("a plan says so when it is asked for a route or an expert that it has not") {
  auto const p = expar::make_plan(ctx, expar::make_view(tutel.data(), 6, 2), 4);
  std::string const none = " is none of the 6 x 2 routes of the plan";
  CHECK_THROWS_WITH(p.row(6, 0), "expar: route_plan: route (6, 0)" + none);
  CHECK_THROWS_WITH(p.row(-1, 0), "expar: route_plan: route (-1, 0)" + none);
  CHECK_THROWS_WITH(p.row(0, 2), "expar: route_plan: route (0, 2)" + none);
  CHECK_THROWS_WITH(p.kept(4), "expar: route_plan: expert is 4; the plan has 4 experts");
  CHECK_THROWS_WITH(p.kept(-1), "expar: route_plan: expert is -1; the plan has 4 experts");
  expar::route_plan const empty;
  CHECK_THROWS_WITH(empty.row(0, 0),
                    "expar: route_plan: route (0, 0) is none of the 0 x 0 routes of the plan");
  CHECK_THROWS_WITH(empty.kept(0), "expar: route_plan: expert is 0; the plan has 0 experts");
}
