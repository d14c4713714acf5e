// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/comm/mpi.hpp>

namespace expar::inline v0::detail {

/// The ranks on the machine of this one, in their order.
class mpi_node_part {
 public:
  /// Collective.
  explicit mpi_node_part(mpi_communicator const& all) {
    expect_mpi_success("MPI_Comm_split_type",
                       MPI_Comm_split_type(all.native_handle(), MPI_COMM_TYPE_SHARED, all.rank(),
                                           MPI_INFO_NULL, &comm_));
  }
  mpi_node_part(mpi_node_part const&) = delete;
  ~mpi_node_part() {
    if (comm_ != MPI_COMM_NULL) MPI_Comm_free(&comm_);
  }
  MPI_Comm get() const noexcept { return comm_; }

 private:
  MPI_Comm comm_ = MPI_COMM_NULL;
};

}  // namespace expar::inline v0::detail
