// SPDX-License-Identifier: Apache-2.0
#include <expar/exchange/hops.hpp>
#include <expar/expert_parallel.hpp>

#include "../support/fixed16.hpp"
#include "../support/thread_ranks.hpp"

using namespace expar_test;
using expar::chain;
using expar::topology;

namespace {

using table =
    element_table<0, elements<double, double>, elements<expar::half, float, float, std::int64_t>,
                  elements<float>, elements<expar::bfloat16, expar::bfloat16, expar::half>,
                  elements<fixed16>>;

/// Nodes of one rank, of two, of three, one node, and two that are not alike and not in a row.
constexpr int topologies = 5;
topology nodes_of(int number, int ranks) {
  if (number < 3) return topology::blocks(ranks, number + 1);
  if (number == 3) return topology::blocks(ranks, ranks);
  std::vector<int> colours;
  for (int r = 0; r < ranks; ++r) colours.push_back(r % 4 == 1 ? -7 : 9);
  return topology::of_colours(colours);
}

/// Problems of all placements, layouts and ranks on the chain that make(nodes) gives. `no_encode`:
/// without weights at encode.
template <class Make>
void check_chain(Make make, bool no_encode) {
  for (int const ranks : {1, 2, 3, 4, 5, 8})
    for (int number = 0; number < topologies; ++number) {
      auto all = draw_problems(ranks, static_cast<std::uint64_t>(20 + number));
      if (no_encode)
        std::erase_if(all, [](auto const& d) { return d->what.site == weighed::at_encode; });
      INFO("ranks " << ranks << ", topology " << number);
      REQUIRE(on_ranks(ranks, [&](expar::thread_communicator& comm) {
                expar::hops x(comm, make(nodes_of(number, ranks)));
                return check_in_turn<table>(x, all, comm.rank(), [] {});
              }) == "");
    }
}

}  // namespace

TEST_CASE("hops: drawn problems over every topology, placement and layout") {
  SECTION("each token once to every node") {
    check_chain([](topology const& n) { return chain::once_per_node(n); }, false);
  }
  SECTION("each route by itself") {
    check_chain([](topology const& n) { return chain::aggregated(n); }, false);
  }
  SECTION("each token everywhere") {
    check_chain([](topology const& n) { return chain::gathered(n); }, false);
  }
  SECTION("summed at every hop") {
    check_chain([](topology const& n) { return chain::once_per_node(n, expar::sum::per_hop); },
                true);
  }
}

TEST_CASE("hops: sixteen ranks") {
  auto const all = draw_problems(16, 5);
  REQUIRE(on_ranks(16, [&](expar::thread_communicator& comm) {
            expar::hops x(comm, chain::once_per_node(topology::blocks(16, 4)));
            return check_in_turn<table>(x, all, comm.rank(), [] {});
          }) == "");
}

TEST_CASE("hops: each token once to every rank, and a chain that is straight") {
  auto const all = draw_problems(4, 6);
  for (auto const& way : {chain::once_per_rank(4), chain::linear(4)})
    REQUIRE(on_ranks(4, [&](expar::thread_communicator& comm) {
              expar::hops x(comm, way);
              return check_in_turn<table>(x, all, comm.rank(), [] {});
            }) == "");
}

TEST_CASE("hops: a communicator with one member function is enough") {
  auto const all = draw_problems(5, 8);
  REQUIRE(on_ranks(5, [&](expar::thread_communicator& comm) {
            bare_communicator bare(comm);
            expar::hops x(bare, chain::once_per_node(topology::blocks(5, 2)));
            return check_in_turn<table>(x, all, comm.rank(), [] {});
          }) == "");
}

TEST_CASE("hops: several batches are alive at once, and go backward in any order") {
  check_batches_alive<table>([](auto& comm, auto f) {
    expar::hops x(comm, chain::once_per_node(topology::blocks(comm.size(), 2)));
    f(x);
  });
}

TEST_CASE("hops: ranks that come late at random neither hurt nor are hurt") {
  check_late_ranks<table>([](auto& comm, auto f) {
    expar::hops x(comm, chain::once_per_node(topology::blocks(comm.size(), 2)));
    f(x);
  });
}
