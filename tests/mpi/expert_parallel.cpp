// SPDX-License-Identifier: Apache-2.0
#include <expar/expert_parallel.hpp>

#include <chrono>
#include <string>
#include <thread>
#include <vector>

#include <expar/comm/mpi_node.hpp>
#include <expar/exchange/hops.hpp>
#include <expar/router/routes.hpp>

#include "../support/catch.hpp"
#include "../support/engine_run.hpp"
#include "../support/thrown_by.hpp"

using namespace expar_test;

namespace {

/// What every rank says, on every rank: an assertion that failed on one alone would leave the
/// others waiting.
template <class Comm>
std::vector<std::string> of_all(Comm& comm, std::string const& mine) {
  constexpr std::size_t room = 256;
  std::vector<char> line(room), all(room * static_cast<std::size_t>(comm.size()));
  mine.copy(line.data(), room - 1);
  expar::all_gather(expar::host_context{}, comm, line.data(), all.data(), room);
  std::vector<std::string> said;
  for (std::size_t at = 0; at < all.size(); at += room) said.emplace_back(&all[at]);
  return said;
}
template <class Comm>
std::vector<std::string> repeated(Comm& comm, std::string const& s) {
  return std::vector<std::string>(static_cast<std::size_t>(comm.size()), s);
}

template <template <class> class Transport, class Comm>
struct over {
  using comm = Comm;
  using transport = Transport<Comm>;
};
using expar::messages, expar::mpi_communicator, expar::mpi_node_communicator, expar::windows;

}  // namespace

TEMPLATE_TEST_CASE(
    "MPI: drawn problems against a float64 reference, with ranks that come late at random", "",
    (over<messages, mpi_communicator>), (over<messages, mpi_node_communicator>),
    (over<windows, mpi_node_communicator>)) {
  using table = element_table<0, elements<double, double>, elements<float>,
                              elements<expar::bfloat16, float, float>>;
  typename TestType::comm comm(MPI_COMM_WORLD);
  expar_test::random late(static_cast<std::uint64_t>(comm.rank()));
  covered_pairs covered;
  for (std::uint64_t const seed : {20u, 21u, 22u}) {
    auto const all = draw_problems(comm.size(), seed);
    for (auto const& d : all) covered.count(d->what);
    typename TestType::transport transport(comm);
    auto const wrong = check_in_turn<table>(transport, all, comm.rank(), [&] {
      if (late.chance(.1))
        std::this_thread::sleep_for(std::chrono::microseconds(late.integer(0, 400)));
    });
    INFO("seed " << seed);
    REQUIRE(of_all(comm, wrong) == repeated(comm, ""));
  }
  REQUIRE(covered.missing({comm.size()}) == std::vector<std::string>());
}

TEST_CASE("MPI: drawn problems over chains of hops") {
  using table = element_table<0, elements<double, double>, elements<float>,
                              elements<expar::bfloat16, float, float>>;
  expar::mpi_communicator comm(MPI_COMM_WORLD);
  auto const nodes = expar::topology::blocks(comm.size(), 2);
  for (auto const& way :
       {expar::chain::once_per_node(nodes), expar::chain::once_per_rank(comm.size()),
        expar::chain::aggregated(nodes), expar::chain::gathered(nodes),
        expar::chain::once_per_node(nodes, expar::sum::per_hop)}) {
    auto all = draw_problems(comm.size(), 30 + way.hash() % 7);
    if (way.sums() == expar::sum::per_hop)
      std::erase_if(all, [](auto const& d) { return d->what.site == weighed::at_encode; });
    expar::hops transport(comm, way);
    auto const wrong = check_in_turn<table>(transport, all, comm.rank(), [] {});
    REQUIRE(of_all(comm, wrong) == repeated(comm, ""));
  }
}

TEMPLATE_TEST_CASE("a wrong argument on one MPI rank is the same sentence on all, and nobody waits",
                   "", mpi_communicator, mpi_node_communicator) {
  TestType comm(MPI_COMM_WORLD);
  expar::host_context const ctx;
  bool const culprit = comm.rank() == comm.size() - 1;
  auto const rank = " (rank " + std::to_string(comm.size() - 1) + ")";
  expar::expert_parallel moe(comm, {8, 2, 4});
  std::vector<std::int32_t> ids{0, 3, 5, culprit ? 8 : 7};
  std::vector<float> w(4, 1.f), x(8, 1.f), out(8);
  expar::routes_view<float> const routes{expar::make_view(ids.data(), 2, 2),
                                         expar::make_view(w.data(), 2, 2)};
  auto const rows = expar::make_view(x.data(), 2, 4);
  expar::expert_batch<float> batch;
  REQUIRE(of_all(comm, thrown_by([&] { moe.dispatch(ctx, rows, routes, batch); })) ==
          repeated(comm,
                   "expar: plan: ids(1, 1) is 8; an expert id is -1 (no expert) or 0 to 7" + rank));
  ids[3] = 7;
  moe.dispatch(ctx, rows, routes, batch);
  REQUIRE(of_all(comm, thrown_by([&] {
                   moe.combine(ctx, batch, batch.rows(),
                               expar::make_view(out.data(), culprit ? 1 : 2, 4));
                 })) ==
          repeated(comm,
                   "expar: combine: out has extent 1 in dimension 0, but the number of tokens "
                   "in the batch is 2" +
                       rank));
  REQUIRE(of_all(comm, thrown_by([&] {
                   moe.combine(ctx, batch, batch.rows(), expar::make_view(out.data(), 2, 4));
                 })) == repeated(comm, "nothing was thrown"));
  REQUIRE(of_all(comm, thrown_by([&] {
                   expar::expert_batch<float> none;
                   moe.combine(ctx, culprit ? none : batch, batch.rows(),
                               expar::make_view(out.data(), 2, 4));
                 })) == repeated(comm,
                                 "expar: combine: the batch has no routes; dispatch or prepare it "
                                 "first" +
                                     rank));
  REQUIRE(of_all(comm, thrown_by([&] {
                   expar::expert_parallel odd(comm, {culprit ? 9 : 8, 2, 4});
                 })) ==
          repeated(comm, "expar: expert_parallel: experts is 8 on rank 0 but 9 on rank " +
                             std::to_string(comm.size() - 1) + "; all ranks must pass the same"));
}
