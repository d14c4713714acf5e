// SPDX-License-Identifier: Apache-2.0
#include <expar/exchange/routing.hpp>

#include <string>
#include <vector>

#include "../support/catch.hpp"
#include "../support/random.hpp"
#include "../support/thrown_by.hpp"
#include "../support/words_alone.hpp"

using expar::index_t;
using expar::make_view;
using expar::placement;
using expar_test::words_alone;

namespace {

constexpr int ranks = 3, experts = 7, k = 2;
expar::host_context const ctx;

/// The routes of one rank.
struct routes_of_rank {
  index_t tokens = 0;
  std::vector<std::int32_t> id;
  std::vector<float> weight;
  expar::tensor_view<std::int32_t const, 2> ids;
  expar::tensor_view<float const, 2> weights;

  /// `kind`: 0: none; 1: all go to no expert; 2: all to one; else to any, or to none.
  void draw(expar_test::random& from, int kind) {
    tokens = kind == 0 ? 0 : from.integer(1, 9);
    for (index_t i = 0; i < tokens * k; ++i) {
      id.push_back(static_cast<std::int32_t>(kind == 1   ? -1
                                             : kind == 2 ? i % k
                                                         : from.integer(-1, experts - 1)));
      weight.push_back(static_cast<float>(i));
    }
    ids = make_view(id.data(), tokens, index_t{k});
    weights = make_view(weight.data(), tokens, index_t{k});
  }
  index_t for_expert(int e) const {
    index_t n = 0;
    for (auto const i : id) n += i == e;
    return n;
  }
};

/// What is wrong with the seats of a rank; empty: nothing. With blocks, slot e is expert e.
template <class Layout>
std::string wrong_seats(expar::detail::batch_state const& b, std::vector<routes_of_rank> const& all,
                        Layout layout, int rank) {
  auto const at = [&](int r) -> routes_of_rank const& { return all[static_cast<std::size_t>(r)]; };
  auto const kept = [&](int from, int e) {
    index_t const n = at(from).for_expert(e);
    if constexpr (std::is_same_v<Layout, expar::fixed_capacity>)
      return n < layout.rows ? n : index_t{layout.rows};
    return n;
  };
  placement const place = placement::blocks(experts, ranks);
  for (int e = 0; e < experts; ++e)
    if (b.at.sent[e] != kept(rank, e)) return "sent to " + std::to_string(e);
  index_t dropped = 0;
  for (int e = 0; e < experts; ++e) dropped += at(rank).for_expert(e) - kept(rank, e);
  if (b.dropped() != dropped) return "dropped";
  int const locals = place.count(rank);
  for (int from = 0; from < ranks; ++from)
    for (int l = 0; l < locals; ++l)
      if (b.at.arrived[from * locals + l] != kept(from, place.first(rank) + l))
        return "arrived from " + std::to_string(from);
  return "";
}

template <class Layout>
std::string wrong_after(std::uint64_t seed, Layout layout) {
  expar_test::random draw(seed);
  std::vector<routes_of_rank> all(ranks);
  for (auto& r : all) r.draw(draw, static_cast<int>(draw.integer(0, 5)));
  std::vector<std::string> wrong(ranks);
  expar::run_ranks(ranks, [&](expar::thread_communicator& comm) {
    auto* const memory = std::pmr::get_default_resource();
    auto const me = static_cast<std::size_t>(comm.rank());
    words_alone x(comm);
    expar::detail::routing<Layout> routing({experts, k, 4}, layout, memory);
    auto const place = placement::blocks(experts, ranks);
    routing.reserve(place);
    routing.place(place);
    expar::detail::batch_state b(memory);
    expar::detail::buffer<float> weights(memory);
    x.batches() = comm.rank() == 1 ? 40 : 0;  // it has tried more often
    for (std::uint64_t time = 1; time < 3; ++time) {
      routing.seat(ctx, x, 9, all[me], expar::take_turns{}, b, weights, {1, 2, 3}, [] {});
      if (b.number != 40 + time) wrong[me] = "the number of the batch";
    }
    if (wrong[me].empty()) wrong[me] = wrong_seats(b, all, layout, comm.rank());
    for (std::size_t i = 0; i < all[me].weight.size(); ++i)
      if (weights[static_cast<index_t>(i)] != all[me].weight[i]) wrong[me] = "a weight";
  });
  std::string text;
  for (auto const& w : wrong) text += w;
  return text;
}

}  // namespace

TEST_CASE("every rank knows what it sends and what arrives, and all give a batch the same number") {
  for (std::uint64_t seed = 0; seed < 60; ++seed) {
    INFO("seed " << seed);
    CHECK(wrong_after(seed, expar::ragged{}) == "");
    CHECK(wrong_after(seed, expar::fixed_capacity{.rows = 2}) == "");
  }
}

TEST_CASE("ranks whose element types differ all hear which, and no batch is prepared") {
  char const* const names[] = {"rows", "weights", "y"};
  for (int odd = 0; odd < 3; ++odd) {
    std::vector<std::string> said(ranks);
    std::vector<int> prepared(ranks, 1);
    expar::run_ranks(ranks, [&](expar::thread_communicator& comm) {
      auto* const memory = std::pmr::get_default_resource();
      auto const me = static_cast<std::size_t>(comm.rank());
      words_alone x(comm);
      expar::detail::routing<expar::ragged> routing({experts, k, 4}, {}, memory);
      routing.reserve(placement::blocks(experts, ranks));
      routing.place(placement::blocks(experts, ranks));
      expar::detail::batch_state b(memory);
      expar::detail::buffer<float> weights(memory);
      expar_test::random draw(me);
      routes_of_rank mine;
      mine.draw(draw, 3);
      std::uint64_t types[] = {1, 2, 3};
      if (comm.rank() == 2) types[odd] = 77;
      said[me] = expar_test::thrown_by(
          [&] { routing.seat(ctx, x, 9, mine, expar::take_turns{}, b, weights, types, [] {}); });
      prepared[me] = b.prepared;
    });
    CHECK(said == std::vector<std::string>(
                      ranks, std::string("expar: dispatch: ") + names[odd] +
                                 " on rank 2 have another element type than on rank 0; all ranks "
                                 "must use the same"));
    CHECK(prepared == std::vector<int>(ranks, 0));
  }
}
