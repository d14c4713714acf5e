// SPDX-License-Identifier: Apache-2.0
// Two ranks that are processes, over MPI and in the memory that they share; see small_batches.hpp.
// Each also beside the collectives as MPI itself has them:
//   of_mpi  operation / (MPI_Allgather and two MPI_Alltoallv)
// Run it by `mpiexec -n 2`; rank 0 reports.
#include "small_batches.hpp"

#include <cstdio>

#include <expar/comm/mpi_node.hpp>

#include "mpi_report.hpp"

namespace {

/// The collectives that a small batch needs, and nothing of Expar's.
struct bare_mpi {
  void all_gather(expar::host_context const&, void const* in, void* out, std::size_t n) const {
    MPI_Allgather(in, static_cast<int>(n), MPI_BYTE, out, static_cast<int>(n), MPI_BYTE,
                  MPI_COMM_WORLD);
  }
  void all_to_all_v(expar::host_context const&, void const* in, expar::byte_counts counts,
                    expar::byte_counts from, void* out, expar::byte_counts out_counts,
                    expar::byte_counts to) const {
    int n[4][small_batches::ranks];
    for (std::size_t p = 0; p < small_batches::ranks; ++p) {
      n[0][p] = static_cast<int>(counts[p]), n[1][p] = static_cast<int>(from[p]);
      n[2][p] = static_cast<int>(out_counts[p]), n[3][p] = static_cast<int>(to[p]);
    }
    MPI_Alltoallv(in, n[0], n[1], MPI_BYTE, out, n[2], n[3], MPI_BYTE, MPI_COMM_WORLD);
  }
};

template <class Comm, template <class> class Transport>
void small_batch(benchmark::State& state) {
  Comm comm(MPI_COMM_WORLD);
  Transport<Comm> transport(comm);
  small_batches::rank_of_two rank(comm, transport, static_cast<int>(state.range(0)),
                                  static_cast<int>(state.range(1)));
  bare_mpi const mpi;
  small_batches::report(state,
                        rank.measure(static_cast<expar::index_t>(state.max_iterations), &mpi));
}
BENCHMARK_TEMPLATE(small_batch, expar::mpi_communicator, expar::messages)
    ->Name("small_batch<mpi>")
    ->Apply(small_batches::shapes);
BENCHMARK_TEMPLATE(small_batch, expar::mpi_node_communicator, expar::windows)
    ->Name("small_batch<mpi_node>")
    ->Apply(small_batches::shapes);
BENCHMARK_TEMPLATE(small_batch, expar::mpi_node_communicator, expar::messages)
    ->Name("small_batch<mpi_node, messages>")
    ->Apply(small_batches::shapes);

}  // namespace

int main(int argc, char** argv) {
  MPI_Init(&argc, &argv);
  int rank = 0, size = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank), MPI_Comm_size(MPI_COMM_WORLD, &size);
  bool const fits = size == small_batches::ranks;
  if (!fits)
    std::fprintf(stderr, "expar_mpi_benchmarks needs %d ranks, not %d\n", small_batches::ranks,
                 size);
  else
    benchmarks::run_benchmarks(rank, argc, argv);
  MPI_Finalize();
  return fits ? 0 : 1;
}
