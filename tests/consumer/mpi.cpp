// SPDX-License-Identifier: Apache-2.0
#include <expar/comm/mpi.hpp>
#include <expar/expar.hpp>
#include <expar/laws.hpp>

int main(int argc, char** argv) {
  int provided = 0;
  MPI_Init_thread(&argc, &argv, MPI_THREAD_SERIALIZED, &provided);
  bool lawful = false;
  {
    expar::mpi_communicator comm(MPI_COMM_WORLD);
    lawful = expar::broken_communicator_law(expar::host_context{}, comm).empty();
  }
  MPI_Finalize();
  return lawful ? 0 : 1;
}
