// SPDX-License-Identifier: Apache-2.0
#include <expar/report.hpp>

#include <algorithm>
#include <array>
#include <string>
#include <vector>

#include <expar/comm/self.hpp>
#include <expar/comm/thread.hpp>
#include <expar/expert_parallel.hpp>
#include <expar/plan/drop.hpp>

#include "support/catch.hpp"
#include "support/thrown_by.hpp"

namespace {

expar::host_context const ctx;

using counts_type = std::vector<expar::index_t>;

/// Two choices per token of rank r: token t names experts t and t + r + 1, modulo 5.
std::vector<std::int32_t> ids_of(int rank, int tokens) {
  std::vector<std::int32_t> ids;
  for (int t = 0; t < tokens; ++t) {
    ids.push_back(static_cast<std::int32_t>(t % 5));
    ids.push_back(static_cast<std::int32_t>((t + rank + 1) % 5));
  }
  return ids;
}

/// ids_of(rank, tokens) with weights of one.
struct some_routes {
  std::vector<std::int32_t> numbers;
  std::vector<float> ones;
  expar::tensor_view<std::int32_t const, 2> ids;
  expar::tensor_view<float const, 2> weights;

  some_routes(int rank, int tokens)
      : numbers(ids_of(rank, tokens)),
        ones(numbers.size(), 1.f),
        ids(expar::make_view(numbers.data(), tokens, expar::index_t{2})),
        weights(expar::make_view(ones.data(), tokens, expar::index_t{2})) {}
  some_routes(some_routes const&) = delete;
};

/// The reports of all ranks, of which rank r has 4 r tokens for 5 experts.
template <class Layout>
std::vector<expar::routing_report> reports_of(expar::placement const& place, Layout layout) {
  std::vector<expar::routing_report> reports(static_cast<std::size_t>(place.ranks()));
  expar::run_ranks(place.ranks(), [&](expar::thread_communicator& comm) {
    some_routes const routes(comm.rank(), 4 * comm.rank());
    expar::expert_parallel moe(comm, {5, 2, 1}, layout);
    moe.place(place);
    expar::expert_batch<float> batch;
    moe.prepare(ctx, routes, batch);
    reports[static_cast<std::size_t>(comm.rank())] = expar::gather_report(ctx, comm, batch);
  });
  return reports;
}

/// Rows from each rank to each slot where nothing is dropped, [ranks, slots], by what placement
/// says of copies in turn, of its own rank, and of shards.
counts_type rows_to_slots(expar::placement const& place, bool own_rank = false) {
  counts_type sent(static_cast<std::size_t>(place.ranks() * place.slot_count()));
  for (int rank = 0; rank < place.ranks(); ++rank) {
    std::vector<int> seen(5);
    for (std::int32_t e : ids_of(rank, 4 * rank)) {
      int const turn = seen[static_cast<std::size_t>(e)]++;
      for (int slot = 0; slot < place.slot_count(); ++slot) {
        int const copies = place.copies(e);
        bool const taken = copies > 0 && (own_rank ? place.rank_of(slot) == rank
                                                   : place.copy_of(slot) == (turn + rank) % copies);
        if (place.expert_of(slot) == e && taken)
          ++sent[static_cast<std::size_t>(rank * place.slot_count() + slot)];
      }
    }
  }
  return sent;
}

}  // namespace

TEST_CASE("load_bars draws a line per expert") {
  REQUIRE(expar::load_bars(counts_type{8, 4, 3, 0, 1}, 8) ==
          "expert   0  ████████       8   2.50x\n"
          "expert   1  ████           4   1.25x\n"
          "expert   2  ███            3   0.94x\n"
          "expert   3                 0   0.00x\n"
          "expert   4  █              1   0.31x\n");
  REQUIRE(expar::load_bars(counts_type{1, 2}, 4, 16) ==
          "expert   0  ▎          1   0.67x\n"
          "expert   1  ▌          2   1.33x\n");
}

TEST_CASE("load_bars keeps to its width, whatever it is given") {
  REQUIRE(expar::load_bars(counts_type{}) == "");
  REQUIRE(expar::load_bars(counts_type{0}, 2) == "expert   0           0   0.00x\n");
  REQUIRE(expar::load_bars(counts_type{9}, 2, 3) == "expert   0  ██       9   1.00x\n");
}

TEST_CASE("traffic_matrix has a row per sender") {
  expar::routing_report r;
  r.ranks = 2;
  r.traffic = {40, 0, 20, 10};
  REQUIRE(expar::traffic_matrix(r) ==
          "rows from      to 0      to 1\n"
          "rank   0  █      40         0\n"
          "rank   1  ▒      20 ░      10\n");
}

TEST_CASE("placement_chart has a line per rank, darker where more rows go") {
  using expar::placement;
  REQUIRE(expar::placement_chart(placement::blocks(3, 2), counts_type{8, 2, 0}) ==
          "rank   0  █0 ░1        10 rows\n"
          "rank   1   2            0 rows\n");
  REQUIRE(expar::placement_chart(placement::blocks(1, 2), counts_type{3}) ==
          "rank   0  █0         3 rows\n"
          "rank   1             0 rows\n");
  REQUIRE(expar::placement_chart(placement::replicated(2, 2, 2)) ==
          "rank   0   0.0  1.0\n"
          "rank   1   0.1  1.1\n");
  REQUIRE(expar::placement_chart(placement::sharded(2, 3, 2)) ==
          "rank   0   0/0  0/1\n"
          "rank   1   1/0\n"
          "rank   2   1/1\n");
  REQUIRE(expar::placement_chart(placement::table(2, {{0, 1, 1}, {0}, {}})) ==
          "rank   0   0.0  1.0  1.1\n"
          "rank   1   0.1\n"
          "rank   2\n");
  REQUIRE(expar::slot_name(placement::table(1, {{0, 0}, {0, 0}}, 2), 3) == "0.1/1");
}

TEST_CASE("placement_chart names what is lost") {
  using expar::placement;
  REQUIRE(expar::placement_chart(placement::blocks(5, 3).without(1), counts_type{1, 4, 4}) ==
          "rank   0  ░0 █1         5 rows\n"
          "rank   1  █4            4 rows\n"
          "lost       2  3\n");
  REQUIRE(expar::placement_chart(placement::table(2, {{0, 1}, {0}, {1, 0, 0}}, 2).without(1)) ==
          "rank   0   0.-/0  1/0\n"
          "rank   1   1/1    0/0    0/1\n");
}

TEST_CASE("placement_chart refuses counts that are not those of the slots") {
  auto const place = expar::placement::blocks(3, 2);
  REQUIRE_THROWS_WITH(expar::placement_chart(place, counts_type{1, 2}),
                      Catch::Matchers::Equals(
                          "expar: placement_chart: slot_counts has 2 numbers; there are 3 slots"));
  REQUIRE_THROWS_WITH(
      expar::placement_chart(place, counts_type{1, 2, -1}),
      Catch::Matchers::Equals("expar: placement_chart: a count is -1; it is at least 0"));
}

TEST_CASE("to_text says what was dropped") {
  expar::routing_report r;
  r.ranks = 1;
  r.tokens = 4, r.routes = 8, r.dropped = 2, r.capacity = 3, r.needed_capacity = 5;
  r.counts = {5, 3};
  r.traffic = {6};
  REQUIRE(expar::to_text(r) ==
          "4 tokens, 8 routes, 2 dropped (25.00%), capacity 3 of the 5 needed\n" +
              expar::load_bars(r.counts) + expar::traffic_matrix(r));
  r.dropped = 0, r.capacity = -1;
  REQUIRE_THAT(expar::to_text(r),
               Catch::Matchers::StartsWith("4 tokens, 8 routes, 0 dropped (0.00%)\n"));
}

TEST_CASE("A report without routes has no share of dropped ones") {
  REQUIRE(expar::routing_report{}.dropped_share() == 0);
}

TEST_CASE("gather_report describes the plan of a rank that is alone") {
  expar::self_communicator comm;
  std::vector<std::int32_t> const ids{0, 1, 0, -1, 0, 2};
  auto const plan = expar::make_plan(ctx, expar::make_view(ids.data(), 3, expar::index_t{2}), 3,
                                     expar::fixed_capacity{1.0});
  auto const r = expar::gather_report(ctx, comm, plan);
  REQUIRE(r.ranks == 1);
  REQUIRE(r.tokens == 3);
  REQUIRE(r.routes == 5);
  REQUIRE(r.capacity == 2);
  REQUIRE(r.needed_capacity == 3);
  REQUIRE(r.dropped == 1);
  REQUIRE(r.counts == counts_type{3, 1, 1});
  REQUIRE(r.traffic == counts_type{4});
}

TEST_CASE("gather_report gives every rank the same sums, of plans and of batches") {
  constexpr int ranks = 3, experts = 5;
  double const factor = GENERATE(0.0, 0.5);
  std::array<expar::routing_report, ranks> by_plan, by_batch;
  expar::run_ranks(ranks, [&](expar::thread_communicator& comm) {
    int const tokens = 4 * comm.rank();
    some_routes const routes(comm.rank(), tokens);
    expar::expert_parallel moe(comm, {experts, 2, 1}, expar::fixed_capacity{factor});
    expar::expert_batch<float> batch;
    moe.prepare(ctx, routes, batch);
    auto const at = static_cast<std::size_t>(comm.rank());
    by_plan[at] = expar::gather_report(ctx, comm, batch.plan());
    by_batch[at] = expar::gather_report(ctx, comm, batch);
  });

  counts_type counts(experts), rows(experts), traffic(ranks * ranks);
  expar::index_t const most_rows = by_plan[0].capacity;
  expar::index_t dropped = 0;
  expar::block_placement const place{experts, ranks};
  for (int rank = 0; rank < ranks; ++rank) {
    counts_type own(experts);
    for (std::int32_t id : ids_of(rank, 4 * rank)) ++own[static_cast<std::size_t>(id)];
    for (int e = 0; e < experts; ++e) {
      auto const n = own[static_cast<std::size_t>(e)], kept = n < most_rows ? n : most_rows;
      counts[static_cast<std::size_t>(e)] += n;
      dropped += n - kept;
      rows[static_cast<std::size_t>(e)] += kept;
      traffic[static_cast<std::size_t>(rank * ranks + place.owner(e))] += kept;
    }
  }
  REQUIRE((dropped > 0) == (factor > 0));
  for (auto const* reports : {&by_plan, &by_batch})
    for (auto const& r : *reports) {
      REQUIRE(r.ranks == ranks);
      REQUIRE(r.tokens == 12);
      REQUIRE(r.routes == 24);
      REQUIRE(r.counts == counts);
      REQUIRE(r.traffic == traffic);
      REQUIRE(r.dropped == dropped);
      REQUIRE(r.capacity == most_rows);
      REQUIRE(r.slot_counts == rows);
      REQUIRE(r.place == expar::placement::blocks(experts, ranks));
    }
}

TEST_CASE("gather_report follows the placement of a batch") {
  using expar::placement;
  for (auto const& place :
       {placement::blocks(5, 4), placement::blocks(5, 7), placement::replicated(5, 4, 2),
        placement::sharded(5, 4, 3), placement::whole(5, 4),
        placement::table(5, {{0, 1}, {}, {2, 3, 4, 0}, {0}}),
        placement::table(5, {{0, 1}, {}, {2, 3, 4, 0}, {0}}).without(2)}) {
    bool const own_rank = place == placement::whole(5, 4);
    auto const sent = rows_to_slots(place, own_rank);
    auto const ranks = static_cast<std::size_t>(place.ranks());
    auto const slots = static_cast<std::size_t>(place.slot_count());
    counts_type traffic(ranks * ranks), rows(slots), counts(5);
    expar::index_t dropped = 0;
    for (std::size_t i = 0; i < sent.size(); ++i) {
      rows[i % slots] += sent[i];
      traffic[i / slots * ranks +
              static_cast<std::size_t>(place.rank_of(static_cast<int>(i % slots)))] += sent[i];
    }
    for (int rank = 0; rank < place.ranks(); ++rank)
      for (std::int32_t e : ids_of(rank, 4 * rank)) {
        ++counts[static_cast<std::size_t>(e)];
        dropped += place.copies(e) == 0;
      }
    CAPTURE(place.ranks(), place.slot_count(), place.shards());
    for (auto const& r : reports_of(place, expar::ragged{})) {
      REQUIRE(r.place == place);
      REQUIRE(r.slot_counts == rows);
      REQUIRE(r.traffic == traffic);
      REQUIRE(r.counts == counts);
      REQUIRE(r.dropped == dropped);
      REQUIRE_THAT(expar::to_text(r),
                   Catch::Matchers::Contains(expar::placement_chart(place, rows)));
    }
  }
}

TEST_CASE("gather_report counts what a budget drops") {
  constexpr expar::index_t room = 7;
  auto const place = expar::placement::blocks(5, 3);
  auto const sent = rows_to_slots(place);
  counts_type rows(5);
  for (std::size_t i = 0; i < sent.size(); ++i) rows[i % 5] += sent[i];
  expar::index_t dropped = 0;
  for (int rank = 0; rank < 3; ++rank) {
    expar::index_t level = 0;
    auto const kept = [&](expar::index_t most) {
      expar::index_t sum = 0;
      for (int slot = place.first(rank); slot < place.first(rank + 1); ++slot)
        sum += std::min(rows[static_cast<std::size_t>(slot)], most);
      return sum;
    };
    while (level < 24 && kept(level + 1) <= room) ++level;
    for (int slot = place.first(rank); slot < place.first(rank + 1); ++slot) {
      auto& n = rows[static_cast<std::size_t>(slot)];
      dropped += n - std::min(n, level);
      n = std::min(n, level);
    }
  }
  REQUIRE(dropped > 0);
  for (auto const& r : reports_of(place, expar::row_budget{.rows = room, .drops = true})) {
    REQUIRE(r.routes == 24);
    REQUIRE(r.dropped == dropped);
    REQUIRE(r.slot_counts == rows);
    REQUIRE(r.capacity == -1);
  }
}

TEST_CASE("gather_report refuses a batch that tells nothing, on all ranks alike") {
  std::vector<std::string> said(4);
  expar::run_ranks(2, [&](expar::thread_communicator& comm) {
    some_routes const routes(comm.rank(), 4);
    expar::expert_batch<float> batch, other;
    expar::expert_parallel moe(comm, {5, 2, 1});
    moe.prepare(ctx, routes, batch);
    auto const me = static_cast<std::size_t>(comm.rank());
    said[me] = expar_test::thrown_by(
        [&] { expar::gather_report(ctx, comm, comm.rank() == 0 ? batch : other); });
    expar::self_communicator alone;
    expar::expert_parallel mine(alone, {5, 2, 1});
    mine.prepare(ctx, routes, other);
    said[2 + me] = expar_test::thrown_by([&] { expar::gather_report(ctx, comm, other); });
  });
  for (std::size_t rank = 0; rank < 2; ++rank) {
    CHECK(said[rank] ==
          "expar: placement: the batch has no routes; dispatch or prepare it first (rank 1)");
    CHECK(said[2 + rank] ==
          "expar: gather_report: the experts of the batch are on 1 ranks; there are 2 (rank 0)");
  }
}

TEST_CASE("gather_report refuses batches of several placements on every rank") {
  std::vector<std::string> said(2);
  expar::run_ranks(2, [&](expar::thread_communicator& comm) {
    some_routes const routes(comm.rank(), 4);
    expar::expert_parallel moe(comm, {5, 2, 1});
    expar::expert_batch<float> one, two;
    moe.prepare(ctx, routes, one);
    moe.place(expar::placement::replicated(5, 2, 2));
    moe.prepare(ctx, routes, two);
    said[static_cast<std::size_t>(comm.rank())] = expar_test::thrown_by(
        [&] { expar::gather_report(ctx, comm, comm.rank() == 0 ? one : two); });
  });
  for (auto const& s : said)
    CHECK_THAT(s,
               Catch::Matchers::StartsWith("expar: gather_report: the hash of the placement is "));
}

TEST_CASE("gather_report refuses an empty plan") {
  expar::self_communicator comm;
  REQUIRE_THROWS_WITH(
      expar::gather_report(ctx, comm, expar::route_plan{}),
      Catch::Matchers::Equals("expar: gather_report: the plan is empty; make it first"));
}

TEST_CASE("reports of plans with other numbers of experts are refused on every rank") {
  std::vector<std::string> said(2);
  expar::run_ranks(2, [&](expar::thread_communicator& comm) {
    auto const ids = ids_of(0, 4);
    auto const plan = expar::make_plan(ctx, expar::make_view(ids.data(), 4, 2), 5 + comm.rank());
    try {
      expar::gather_report(ctx, comm, plan);
    } catch (expar::error const& e) {
      said[static_cast<std::size_t>(comm.rank())] = e.what();
    }
  });
  for (auto const& s : said)
    CHECK(s ==
          "expar: gather_report: experts is 5 on rank 0 but 6 on rank 1; all ranks must pass the "
          "same");
}

TEST_CASE("gather_report tells of routes that were dropped before the plan was made") {
  constexpr int ranks = 2, experts = 3, tokens = 10;
  std::array<expar::routing_report, ranks> reports;
  expar::run_ranks(ranks, [&](expar::thread_communicator& comm) {
    // All tokens choose expert 0, those of rank 1 expert 2 as well.
    std::vector<std::int32_t> ids;
    for (int t = 0; t < tokens; ++t) ids.insert(ids.end(), {0, comm.rank() == 1 ? 2 : -1});
    auto const routes = expar::make_view(ids.data(), tokens, 2);
    std::vector<std::int32_t> dropped(experts);
    expar::drop_to_capacity(ctx, routes, experts, 4, expar::by_token{}, routes, dropped);
    auto const plan = expar::make_plan(ctx, routes, experts);
    reports[static_cast<std::size_t>(comm.rank())] = expar::gather_report(ctx, comm, plan, dropped);
  });
  for (auto const& r : reports) {
    CHECK(r.routes == 30);
    CHECK(r.dropped == 18);
    CHECK(r.counts == counts_type{20, 0, 10});
    CHECK(r.needed_capacity == 10);
    CHECK(r.traffic == counts_type{4, 0, 4, 4});
    CHECK_THAT(expar::to_text(r),
               Catch::Matchers::StartsWith("20 tokens, 30 routes, 18 dropped (60.00%)\n"));
  }
}

TEST_CASE("a report refuses numbers of dropped routes that do not fit, on all ranks alike") {
  std::vector<std::string> said(6);
  expar::run_ranks(2, [&](expar::thread_communicator& comm) {
    auto const ids = ids_of(0, 4);
    auto const plan = expar::make_plan(ctx, expar::make_view(ids.data(), 4, 2), 5);
    auto const refused = [&](std::vector<std::int64_t> const& dropped) {
      return expar_test::thrown_by([&] { expar::gather_report(ctx, comm, plan, dropped); });
    };
    auto const me = static_cast<std::size_t>(comm.rank());
    bool const wrong = comm.rank() == 1;
    said[me] = refused(counts_type(wrong ? 4 : 5));
    said[2 + me] = refused({0, 0, 0, 0, wrong ? -1 : 0});
    said[4 + me] = refused({0, 0, 0, 0, wrong ? PTRDIFF_MAX : 0});
  });
  for (std::size_t rank = 0; rank < 2; ++rank) {
    CHECK(said[rank] ==
          "expar: gather_report: dropped has extent 4 in dimension 0, but experts is 5 (rank 1)");
    CHECK(said[2 + rank] ==
          "expar: gather_report: dropped(4) is -1; counts are at least 0 and add up to at most "
          "9223372036854775807 (rank 1)");
    CHECK(said[4 + rank] ==
          "expar: gather_report: dropped adds up to 9223372036854775807; at most "
          "2305843009213693951 are possible (rank 1)");
  }
}
