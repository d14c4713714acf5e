// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <string>

namespace expar_test {

/// What the construction of a communicator threw before MPI_Init.
std::string said_before_mpi_init();

}  // namespace expar_test
