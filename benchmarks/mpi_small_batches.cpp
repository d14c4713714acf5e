// SPDX-License-Identifier: Apache-2.0
// Two ranks that are processes; see small_batches.hpp. Run it by `mpiexec -n 2`; rank 0 reports.
#include "small_batches.hpp"

#include <cstdio>

#include <expar/comm/mpi.hpp>

#include "mpi_report.hpp"

namespace {

void small_batch(benchmark::State& state) {
  expar::mpi_communicator comm(MPI_COMM_WORLD);
  expar::messages transport(comm);
  small_batches::rank_of_two rank(comm, transport, static_cast<int>(state.range(0)),
                                  static_cast<int>(state.range(1)));
  small_batches::report(state, rank.measure(static_cast<expar::index_t>(state.max_iterations)));
}
BENCHMARK(small_batch)->Name("small_batch<mpi>")->Apply(small_batches::shapes);

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
