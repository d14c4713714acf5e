// SPDX-License-Identifier: Apache-2.0
// mpirun -np 4 expar_far_ranks_mpi [ranks of a node]: what crosses between nodes, which are those
// that MPI knows unless told otherwise.
#include <cstdlib>

#include <expar/comm/mpi_node.hpp>

#include "far_ranks.hpp"

int main(int argc, char** argv) {
  MPI_Init(&argc, &argv);
  int good = 0, all = 0;
  {
    expar::mpi_communicator comm(MPI_COMM_WORLD);
    int const per_node = argc > 1 ? std::atoi(argv[1]) : 0;
    good = far_ranks::run(
        comm, per_node > 0 ? expar::topology::blocks(comm.size(), per_node)
                           : expar::topology::of_colours(expar::mpi_node_of(MPI_COMM_WORLD)));
    MPI_Allreduce(&good, &all, 1, MPI_INT, MPI_MIN, MPI_COMM_WORLD);
    if (comm.rank() == 0)
      std::puts(all != 0 ? "every rank has the rows and the sums that it should have"
                         : "rows or sums are wrong");
  }
  MPI_Finalize();
  return all != 0 ? 0 : 1;
}
