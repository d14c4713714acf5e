// SPDX-License-Identifier: Apache-2.0
// Two ranks that are processes and share memory: dispatch and combine through windows, beside two
// processes that push the same rows straight into each other's memory and pull them from there, and
// beside the same operations over the messages of MPI. See direct.hpp and rounds.hpp.
#include <direct.hpp>

#include <expar/comm/mpi_node.hpp>

namespace {

using namespace benchmarks;
using expar::mpi_communicator, expar::mpi_node_communicator, expar::messages, expar::windows;

template <class T, bool Home>
void time_ranks(benchmark::State& state) {
  mpi_node_communicator comm(MPI_COMM_WORLD);
  windows transport(comm);
  rank_of_two<T, mpi_node_communicator, decltype(transport)> rank(comm, transport, shape_of(state));
  mpi_communicator mpi(MPI_COMM_WORLD);
  messages by_messages(mpi);
  rank_of_two<T, mpi_communicator, decltype(by_messages)> other(mpi, by_messages, shape_of(state));

  auto& reached = Home ? rank.y : rank.rows;
  auto const memory = comm.allocate_window(reached.bytes());
  T* base[ranks];
  for (int p = 0; p < ranks; ++p) base[p] = static_cast<T*>(memory.view().peer(p, 0));
  reached = array<T>(base[comm.rank()], reached.size());

  rank_rounds<mpi_node_communicator> in(comm);
  if constexpr (Home)
    in.add(
        kind::peer, "messages", [&] { other.combine(); }, [&] { return other.combine_is_right(); },
        [&] { other.fill_y(), other.out.poison(); });
  else
    in.add(
        kind::peer, "messages", [&] { other.dispatch(); },
        [&] { return other.dispatch_is_right(); });
  int disturbed = 0;
  auto const rounds = static_cast<index_t>(state.max_iterations);
  auto const timings = Home ? time_combine(rank, in, base, rounds, disturbed)
                            : time_dispatch(rank, in, base, rounds, disturbed);
  report(state, timings, disturbed);
}

using expar::bfloat16;
BENCHMARK_TEMPLATE(time_ranks, float, false)->Name("dispatch<float, mpi_node>")->Apply(float_ranks);
BENCHMARK_TEMPLATE(time_ranks, bfloat16, false)
    ->Name("dispatch<bfloat16, mpi_node>")
    ->Apply(bfloat16_ranks);
BENCHMARK_TEMPLATE(time_ranks, float, true)->Name("combine<float, mpi_node>")->Apply(float_ranks);
BENCHMARK_TEMPLATE(time_ranks, bfloat16, true)
    ->Name("combine<bfloat16, mpi_node>")
    ->Apply(bfloat16_ranks);

}  // namespace
