// SPDX-License-Identifier: Apache-2.0

// The same as main.cpp under mpirun; the ranks are processes, on one machine or on many.
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <exception>

#include <expar/comm/mpi.hpp>

#include "demo.hpp"

namespace {

/// Whether mpirun lets the other processes live when one dies. (Open MPI tells them its options.)
bool outlives_processes() {
  char const* const option = std::getenv("OMPI_MCA_orte_enable_recovery");
  return option != nullptr && *option == '1';
}
/// The end of a process that is killed. Where the launcher would end all others then, it waits for
/// them.
[[noreturn]] void leave() {
  std::fflush(nullptr);
  if (outlives_processes()) std::raise(SIGKILL);
  MPI_Finalize();
  std::_Exit(0);
}

/// Returns the exit code. Only rank 0 prints.
int run(int count, char** words, bool speaks) try {
  auto const options = digits::parse_options(count, words, false);
  if (options.help) {
    if (speaks) std::fputs(digits::help_text("mpirun -np N expar_demo_mpi", false).c_str(), stdout);
    return 0;
  }
  using std::chrono::milliseconds, std::chrono::seconds, std::chrono::minutes;
  expar::mpi_communicator comm(MPI_COMM_WORLD, std::size_t{1} << 30,
                               options.kill < 0 ? milliseconds(minutes(10)) : seconds(2));
  digits::network net(comm, static_cast<std::uint64_t>(options.seed),
                      digits::placement_of(options, comm.size()));
  digits::run_demo(net, options, "MPI", digits::fault_of(options, comm.size()), leave);
  if (options.kill >= 0 && outlives_processes()) {  // MPI_Finalize would wait for the dead one
    std::fflush(nullptr);
    std::_Exit(0);
  }
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
