// SPDX-License-Identifier: Apache-2.0

// The same as main.cpp under mpirun; the ranks are processes, on one machine or on many.
#include <cstdio>
#include <exception>

#include <expar/comm/mpi.hpp>

#include "demo.hpp"

namespace {

/// Returns the exit code. Only rank 0 prints.
int run(int count, char** words, bool speaks) try {
  auto const options = digits::parse_options(count, words, false);
  if (options.help) {
    if (speaks) std::fputs(digits::help_text("mpirun -np N expar_demo_mpi", false).c_str(), stdout);
    return 0;
  }
  expar::mpi_communicator comm(MPI_COMM_WORLD);
  digits::network net(comm, static_cast<std::uint64_t>(options.seed),
                      digits::placement_of(options, comm.size()));
  digits::run_demo(net, options, "MPI", comm.rank() == 0);
  return 0;
} catch (digits::bad_usage const& e) {
  if (speaks) std::fprintf(stderr, "expar_demo_mpi: %s; --help tells what there is\n", e.what());
  return 2;
} catch (std::exception const& e) {
  if (speaks) std::fprintf(stderr, "expar_demo_mpi: %s\n", e.what());
  return 1;
}

}  // namespace

int main(int count, char** words) {
  MPI_Init(&count, &words);
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  int const code = run(count, words, rank == 0);
  MPI_Finalize();
  return code;
}
