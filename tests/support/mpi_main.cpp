// SPDX-License-Identifier: Apache-2.0
#include "mpi_main.hpp"

#include <cstdio>
#include <iostream>
#include <optional>
#include <sstream>
#include <string>

#include <expar/comm/mpi.hpp>

namespace {

std::string said_before_init;

std::string construction_says() {
  try {
    expar::mpi_communicator comm(MPI_COMM_WORLD);
    return "nothing";
  } catch (expar::error const& e) {
    return e.what();
  }
}

}  // namespace

std::string expar_test::said_before_mpi_init() {
  return said_before_init;
}

// The main of Catch2's library, compiled already. The linker puts the next in its place.
extern "C" int __real_main(int argc, char** argv);

// Every rank runs every test. Rank 0 prints; another rank only if a test fails there.
extern "C" int __wrap_main(int argc, char** argv) {
  said_before_init = construction_says();
  int provided = 0;
  MPI_Init_thread(&argc, &argv, MPI_THREAD_SERIALIZED, &provided);
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);

  std::ostringstream kept;
  std::streambuf* const screen = rank == 0 ? nullptr : std::cout.rdbuf(kept.rdbuf());
  int const failed = __real_main(argc, argv) == 0 ? 0 : 1;
  if (screen != nullptr) std::cout.rdbuf(screen);
  if (failed != 0 && rank != 0) std::cout << "rank " << rank << ":\n" << kept.str() << std::flush;

  int failed_anywhere = failed;
  MPI_Allreduce(&failed, &failed_anywhere, 1, MPI_INT, MPI_MAX, MPI_COMM_WORLD);
  {
    // A communicator may outlive MPI, and none can be made after it.
    expar::mpi_communicator const survivor(MPI_COMM_WORLD);
    MPI_Finalize();
    if (construction_says() != said_before_init) failed_anywhere = 1;
  }
  return failed_anywhere;
}
