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

/// From the first rank on the machine of each rank to numbers of machines, in order.
inline std::vector<int> machines_of(std::vector<int> firsts) {
  int found = 0;
  for (std::size_t r = 0; r < firsts.size(); ++r) {
    auto const first = static_cast<std::size_t>(firsts[r]);
    firsts[r] = first == r ? found++ : firsts[first];
  }
  return firsts;
}

}  // namespace expar::inline v0::detail
