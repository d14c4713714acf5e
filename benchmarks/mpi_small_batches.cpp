// SPDX-License-Identifier: Apache-2.0
// Two ranks that are processes; see small_batches.hpp. Run it by `mpiexec -n 2`; rank 0 reports.
#include "small_batches.hpp"

#include <cstdio>

#include <expar/comm/mpi.hpp>

namespace {

void small_batch(benchmark::State& state) {
  expar::mpi_communicator comm(MPI_COMM_WORLD);
  expar::messages transport(comm);
  small_batches::rank_of_two rank(comm, transport, static_cast<int>(state.range(0)),
                                  static_cast<int>(state.range(1)));
  small_batches::report(state, rank.measure(static_cast<expar::index_t>(state.max_iterations)));
}
BENCHMARK(small_batch)->Name("small_batch<mpi>")->Apply(small_batches::shapes);

struct no_report : benchmark::BenchmarkReporter {
  bool ReportContext(Context const&) override { return true; }
  void ReportRuns(std::vector<Run> const&) override {}
};

}  // namespace

int main(int argc, char** argv) {
  MPI_Init(&argc, &argv);
  int rank = 0, size = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank), MPI_Comm_size(MPI_COMM_WORLD, &size);
  bool const fits = size == small_batches::ranks;
  benchmark::Initialize(&argc, argv);
  no_report none;
  if (!fits)
    std::fprintf(stderr, "expar_mpi_benchmarks needs %d ranks, not %d\n", small_batches::ranks,
                 size);
  else if (rank == 0)
    benchmark::RunSpecifiedBenchmarks();
  else
    benchmark::RunSpecifiedBenchmarks(&none);
  MPI_Finalize();
  return fits ? 0 : 1;
}
