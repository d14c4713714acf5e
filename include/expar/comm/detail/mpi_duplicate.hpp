// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <mpi.h>

#include <thread>  // and with it durations

#include <expar/error.hpp>

namespace expar::inline v0::detail {

inline bool mpi_is_running() {
  int begun = 0, ended = 0;
  MPI_Initialized(&begun);
  MPI_Finalized(&ended);
  return begun != 0 && ended == 0;
}

/// What MPI says of an error code.
inline sentence mpi_text(int code) {
  char text[MPI_MAX_ERROR_STRING]{};
  int length = 0;
  if (MPI_Error_string(code, text, &length) != MPI_SUCCESS) return sentence("no text for this");
  return sentence(text);
}
inline void expect_mpi_success(char const* call, int code) {
  expects(code == MPI_SUCCESS, "mpi_communicator: ", call, " gave error ", code, " (",
          mpi_text(code), ")");
}

/// While it lives, errors of a communicator of the caller come back as codes.
class mpi_errors_return {
 public:
  explicit mpi_errors_return(MPI_Comm comm) : comm_(comm) {
    if (MPI_Comm_get_errhandler(comm, &before_) != MPI_SUCCESS) before_ = MPI_ERRHANDLER_NULL;
    MPI_Comm_set_errhandler(comm, MPI_ERRORS_RETURN);
  }
  mpi_errors_return(mpi_errors_return const&) = delete;
  ~mpi_errors_return() {
    if (before_ == MPI_ERRHANDLER_NULL) return;
    MPI_Comm_set_errhandler(comm_, before_);
    MPI_Errhandler_free(&before_);
  }

 private:
  MPI_Comm comm_;
  MPI_Errhandler before_ = MPI_ERRHANDLER_NULL;
};

/// A duplicate of a communicator. Those who talk over it at different times, among different ranks,
/// are its generations: each has tags of its own.
class mpi_duplicate {
 public:
  /// Collective over `comm`. Throws where not all ranks come within the deadline.
  mpi_duplicate(MPI_Comm comm, std::chrono::milliseconds deadline) {
    expects(mpi_is_running(),
            "mpi_communicator: MPI is not running; construct between MPI_Init and MPI_Finalize");
    expects(comm != MPI_COMM_NULL, "mpi_communicator: comm is MPI_COMM_NULL");
    mpi_errors_return const scope(comm);
    int between_groups = 0;
    expect_mpi_success("MPI_Comm_test_inter", MPI_Comm_test_inter(comm, &between_groups));
    expects(between_groups == 0,
            "mpi_communicator: comm is an intercommunicator; only an intracommunicator numbers all "
            "ranks");
    auto* const made = new MPI_Comm(MPI_COMM_NULL);  // MPI's, until it is complete
    MPI_Request request;
    expect_mpi_success("MPI_Comm_idup", MPI_Comm_idup(comm, made, &request));
    double const begun = MPI_Wtime();
    for (int complete = 0; complete == 0; std::this_thread::yield()) {
      expect_mpi_success("MPI_Comm_idup", MPI_Test(&request, &complete, MPI_STATUS_IGNORE));
      expects(complete != 0 || MPI_Wtime() - begun < seconds(deadline),
              "mpi_communicator: not all ranks of comm came within ", deadline.count(), " ms");
    }
    comm_ = *made;
    delete made;
    MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN);
  }
  mpi_duplicate(mpi_duplicate const&) = delete;
  /// Collective, where it is freed: unless MPI has ended, or a later generation went on without a
  /// rank.
  ~mpi_duplicate() {
    if (generation_ == 0 && mpi_is_running()) MPI_Comm_free(&comm_);
  }

  MPI_Comm get() const noexcept { return comm_; }
  /// The same on all ranks that call it alike.
  int next_generation() noexcept { return ++generation_; }

  static double seconds(std::chrono::milliseconds t) {
    return static_cast<double>(t.count()) / 1000;
  }

 private:
  MPI_Comm comm_ = MPI_COMM_NULL;
  int generation_ = 0;
};

}  // namespace expar::inline v0::detail
