// SPDX-License-Identifier: Apache-2.0
// mpirun -np 4 expar_far_ranks_mpi [ranks of a node]: what crosses between nodes, which are those
// that MPI knows unless told otherwise.
#include <cstdlib>

#include <expar/comm/mpi.hpp>

#include "far_ranks.hpp"

namespace {

/// Ranks that share memory are on one node: the first of them is its colour.
expar::topology nodes_of(MPI_Comm comm, int rank, int ranks) {
  MPI_Comm node;
  MPI_Comm_split_type(comm, MPI_COMM_TYPE_SHARED, rank, MPI_INFO_NULL, &node);
  int first = rank;
  MPI_Bcast(&first, 1, MPI_INT, 0, node);
  MPI_Comm_free(&node);
  std::vector<int> colours(static_cast<std::size_t>(ranks));
  MPI_Allgather(&first, 1, MPI_INT, colours.data(), 1, MPI_INT, comm);
  return expar::topology::of_colours(colours);
}

}  // namespace

int main(int argc, char** argv) {
  MPI_Init(&argc, &argv);
  int good = 0, all = 0;
  {
    expar::mpi_communicator comm(MPI_COMM_WORLD);
    int const per_node = argc > 1 ? std::atoi(argv[1]) : 0;
    good = far_ranks::run(comm, per_node > 0 ? expar::topology::blocks(comm.size(), per_node)
                                             : nodes_of(MPI_COMM_WORLD, comm.rank(), comm.size()));
    MPI_Allreduce(&good, &all, 1, MPI_INT, MPI_MIN, MPI_COMM_WORLD);
    if (comm.rank() == 0)
      std::puts(all != 0 ? "every rank has the rows and the sums that it should have"
                         : "rows or sums are wrong");
  }
  MPI_Finalize();
  return all != 0 ? 0 : 1;
}
