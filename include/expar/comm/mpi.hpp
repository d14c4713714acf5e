// SPDX-License-Identifier: Apache-2.0
#pragma once

#if !__has_include(<mpi.h>)
#error "expar/comm/mpi.hpp needs <mpi.h>: compile with mpicxx, or link MPI::MPI_CXX"
#endif
#include <mpi.h>

#include <climits>
#include <cstring>
#include <exception>
#include <utility>
#include <vector>

#include <expar/communicator.hpp>

namespace expar::inline v0 {

/// The ranks of an MPI communicator: tiers 0 to 2. It works on a duplicate, so that its messages
/// and its errors are its own; an error of MPI is thrown as expar::error. Calls MPI from the thread
/// that calls it, and carries one operation at a time. Byte counts have no limit. MPICH raises what
/// goes wrong with a pending message on MPI_COMM_SELF or MPI_COMM_WORLD instead: set
/// MPI_ERRORS_RETURN there to have these errors thrown too.
class mpi_communicator {
 public:
  /// Collective over `comm`, which may be any intracommunicator. No message is longer than
  /// `max_message` bytes: what is longer travels in pieces. It is the same on every rank.
  /// Throws if MPI is not running or cannot duplicate `comm`, whose error handler is put aside
  /// until it returns.
  explicit mpi_communicator(MPI_Comm comm, std::size_t max_message = std::size_t{1} << 30)
      : max_message_(max_message) {
    detail::expects(running(),
                    "mpi_communicator: MPI is not running; construct between MPI_Init and "
                    "MPI_Finalize");
    detail::expects(comm != MPI_COMM_NULL, "mpi_communicator: comm is MPI_COMM_NULL");
    returning_errors const scope(comm);
    int between_groups = 0;
    expect_success("mpi_communicator", "MPI_Comm_test_inter",
                   MPI_Comm_test_inter(comm, &between_groups));
    detail::expects(between_groups == 0,
                    "mpi_communicator: comm is an intercommunicator; only an "
                    "intracommunicator numbers all ranks");
    expect_success("mpi_communicator", "MPI_Comm_dup", MPI_Comm_dup(comm, &comm_));
    try {
      expect_success("mpi_communicator", "MPI_Comm_set_errhandler",
                     MPI_Comm_set_errhandler(comm_, MPI_ERRORS_RETURN));
      expect_success("mpi_communicator", "MPI_Comm_rank", MPI_Comm_rank(comm_, &rank_));
      expect_success("mpi_communicator", "MPI_Comm_size", MPI_Comm_size(comm_, &size_));
      // The largest of all ranks, and the complement of the smallest.
      unsigned long long found[2] = {max_message, ~static_cast<unsigned long long>(max_message)};
      expect_success("mpi_communicator", "MPI_Allreduce",
                     MPI_Allreduce(MPI_IN_PLACE, found, 2, MPI_UNSIGNED_LONG_LONG, MPI_MAX, comm_));
      detail::expects(found[0] == ~found[1], "mpi_communicator: max_message is ", ~found[1],
                      " on one rank and ", found[0], " on another; all ranks must pass the same");
      detail::expects(max_message >= 1 && max_message <= INT_MAX,
                      "mpi_communicator: max_message is ", max_message, "; it lies between 1 and ",
                      INT_MAX);
      // One message to and from each peer: more is needed beyond max_message alone.
      requests_.reserve(2 * unsigned_of(size_));
      pieces_.reserve(unsigned_of(size_));
    } catch (...) {
      release();
      throw;
    }
  }
  mpi_communicator(mpi_communicator&& other) noexcept
      : comm_(std::exchange(other.comm_, MPI_COMM_NULL)),
        rank_(other.rank_),
        size_(other.size_),
        max_message_(other.max_message_),
        requests_(std::move(other.requests_)),
        pieces_(std::move(other.pieces_)) {}
  /// Collective, as the destructor is.
  mpi_communicator& operator=(mpi_communicator&& other) noexcept {
    if (this == &other) return *this;
    release();
    comm_ = std::exchange(other.comm_, MPI_COMM_NULL);
    rank_ = other.rank_, size_ = other.size_, max_message_ = other.max_message_;
    requests_ = std::move(other.requests_);
    pieces_ = std::move(other.pieces_);
    return *this;
  }
  /// Collective. Frees the duplicate, unless MPI has ended.
  ~mpi_communicator() { release(); }

  int rank() const noexcept { return rank_; }
  int size() const noexcept { return size_; }
  /// The duplicate.
  MPI_Comm native_handle() const noexcept { return comm_; }

  void barrier(host_context const&) const {
    expect_success("barrier", "MPI_Barrier", MPI_Barrier(comm_));
  }

  void all_to_all(host_context const& on, void const* in, void* out, std::size_t bytes) const {
    if (fits(bytes)) {
      int const n = static_cast<int>(bytes);
      expect_success("all_to_all", "MPI_Alltoall",
                     MPI_Alltoall(in, n, MPI_BYTE, out, n, MPI_BYTE, comm_));
    } else {
      auto const block = [bytes](int peer) { return segment{bytes * unsigned_of(peer), bytes}; };
      swap(on, "all_to_all", in, block, out, block);
    }
  }

  void all_gather(host_context const& on, void const* in, void* out, std::size_t bytes) const {
    if (fits(bytes)) {
      int const n = static_cast<int>(bytes);
      expect_success("all_gather", "MPI_Allgather",
                     MPI_Allgather(in, n, MPI_BYTE, out, n, MPI_BYTE, comm_));
    } else {
      swap(
          on, "all_gather", in,
          [bytes](int) {
            return segment{0, bytes};
          },
          out,
          [bytes](int peer) {
            return segment{bytes * unsigned_of(peer), bytes};
          });
    }
  }

  void all_to_all_v(host_context const& on, void const* in, byte_counts counts, byte_counts from,
                    void* out, byte_counts out_counts, byte_counts to) const {
    swap(
        on, "all_to_all_v", in,
        [&](int peer) {
          return segment{from[unsigned_of(peer)], counts[unsigned_of(peer)]};
        },
        out,
        [&](int peer) {
          return segment{to[unsigned_of(peer)], out_counts[unsigned_of(peer)]};
        });
  }

 private:
  struct segment {
    std::size_t at, bytes;
  };
  struct piece {
    int peer, bytes;
  };

  // While it lives, errors of a communicator of the caller come back as codes.
  class returning_errors {
   public:
    explicit returning_errors(MPI_Comm comm) : comm_(comm) {
      if (MPI_Comm_get_errhandler(comm, &before_) != MPI_SUCCESS) before_ = MPI_ERRHANDLER_NULL;
      MPI_Comm_set_errhandler(comm, MPI_ERRORS_RETURN);
    }
    returning_errors(returning_errors const&) = delete;
    ~returning_errors() {
      if (before_ == MPI_ERRHANDLER_NULL) return;
      MPI_Comm_set_errhandler(comm_, before_);
      MPI_Errhandler_free(&before_);
    }

   private:
    MPI_Comm comm_;
    MPI_Errhandler before_ = MPI_ERRHANDLER_NULL;
  };

  static constexpr std::size_t unsigned_of(int rank) { return static_cast<std::size_t>(rank); }

  static bool running() {
    int begun = 0, ended = 0;
    MPI_Initialized(&begun);
    MPI_Finalized(&ended);
    return begun != 0 && ended == 0;
  }

  static std::string text_of(int code) {
    char text[MPI_MAX_ERROR_STRING];
    int length = 0;
    if (MPI_Error_string(code, text, &length) != MPI_SUCCESS) return "no text for this code";
    return std::string(text, static_cast<std::size_t>(length));
  }
  static void expect_success(char const* operation, char const* call, int code) {
    if (code != MPI_SUCCESS) [[unlikely]]
      detail::fail(operation, ": ", call, " gave error ", code, " (", text_of(code), ")");
  }

  // The same on every rank. Whole buffers are kept below 2^31 bytes too, not just blocks: an MPI
  // library may compute with their int size.
  bool fits(std::size_t bytes) const { return bytes <= max_message_ / unsigned_of(size_); }

  // All pieces at once, receives first. Both sides of a pair know its byte count, and so its
  // pieces.
  template <class Sent, class Received>
  void swap(host_context const& on, char const* name, void const* in, Sent sent, void* out,
            Received received) const {
    requests_.clear();
    pieces_.clear();
    try {
      for (int step = 1; step < size_; ++step) {
        int const peer = (rank_ + size_ - step) % size_;
        each_piece(received(peer), [&](std::size_t at, int bytes) {
          pieces_.push_back({peer, bytes});
          requests_.push_back(MPI_REQUEST_NULL);
          expect_success(name, "MPI_Irecv",
                         MPI_Irecv(static_cast<std::byte*>(out) + at, bytes, MPI_BYTE, peer, 0,
                                   comm_, &requests_.back()));
        });
      }
      for (int step = 1; step < size_; ++step) {
        int const peer = (rank_ + step) % size_;
        each_piece(sent(peer), [&](std::size_t at, int bytes) {
          requests_.push_back(MPI_REQUEST_NULL);
          expect_success(name, "MPI_Isend",
                         MPI_Isend(static_cast<std::byte const*>(in) + at, bytes, MPI_BYTE, peer, 0,
                                   comm_, &requests_.back()));
        });
      }
    } catch (...) {
      abandon();
      throw;
    }
    segment const mine = sent(rank_), wanted = received(rank_);
    std::exception_ptr failure;
    try {
      if (mine.bytes == wanted.bytes && mine.bytes != 0)
        copy(on, static_cast<std::byte*>(out) + wanted.at,
             static_cast<std::byte const*>(in) + mine.at, mine.bytes);
    } catch (...) {
      failure = std::current_exception();
    }
    wait(name);  // whatever happens: messages still use the buffers
    if (failure) std::rethrow_exception(failure);
    detail::expects(mine.bytes == wanted.bytes, name, ": rank ", rank_, " sends ", mine.bytes,
                    " bytes to itself but expects ", wanted.bytes);
  }

  template <class F>
  void each_piece(segment s, F f) const {
    for (std::size_t done = 0; done < s.bytes; done += max_message_)
      f(s.at + done,
        static_cast<int>(s.bytes - done < max_message_ ? s.bytes - done : max_message_));
  }

  static void copy(host_context const& on, std::byte* to, std::byte const* from,
                   std::size_t bytes) {
    on.for_each_chunk(
        static_cast<index_t>(bytes), index_t{1} << 20, [&](int, index_t first, index_t last) {
          std::memcpy(to + first, from + first, static_cast<std::size_t>(last - first));
        });
  }

  // Waits for every request, whatever happens to one of them: the buffers are the caller's again.
  // One by one: MPI_Waitall may return at the first failure, with other messages on their way.
  void wait(char const* name) const {
    std::size_t wrong = requests_.size();
    int code = MPI_SUCCESS, bytes = 0;
    for (std::size_t i = 0; i < requests_.size(); ++i) {
      MPI_Status status;
      int failed = MPI_Wait(&requests_[i], &status);
      int received = 0;
      if (failed == MPI_SUCCESS && i < pieces_.size())
        failed = MPI_Get_count(&status, MPI_BYTE, &received);
      bool const fine =
          failed == MPI_SUCCESS && (i >= pieces_.size() || received == pieces_[i].bytes);
      if (!fine && wrong == requests_.size()) wrong = i, code = failed, bytes = received;
    }
    if (wrong == requests_.size()) return;
    detail::expects(wrong < pieces_.size(), name, ": sending gave error ", code, " (",
                    text_of(code), ")");
    auto const [peer, wanted] = pieces_[wrong];
    detail::expects(code == MPI_SUCCESS, name, ": receiving ", wanted, " bytes from rank ", peer,
                    " gave error ", code, " (", text_of(code), ")");
    detail::fail(name, ": rank ", peer, " sends ", bytes, " bytes to rank ", rank_,
                 ", which expects ", wanted);
  }

  // Not everything could be posted. Receives can be taken back; sends go on without us.
  void abandon() const noexcept {
    for (std::size_t i = 0; i < requests_.size(); ++i) {
      if (requests_[i] == MPI_REQUEST_NULL) continue;
      if (i < pieces_.size()) {
        MPI_Cancel(&requests_[i]);
        MPI_Wait(&requests_[i], MPI_STATUS_IGNORE);
      } else {
        MPI_Request_free(&requests_[i]);
      }
    }
  }

  void release() noexcept {
    if (comm_ != MPI_COMM_NULL && running()) MPI_Comm_free(&comm_);
    comm_ = MPI_COMM_NULL;
  }

  MPI_Comm comm_ = MPI_COMM_NULL;
  int rank_ = 0, size_ = 0;
  std::size_t max_message_;
  // Kept from call to call, so that a steady state does not allocate. The receives come first in
  // requests_, and pieces_ says what each of them waits for.
  mutable std::vector<MPI_Request> requests_;
  mutable std::vector<piece> pieces_;
};

static_assert(variable_communicator<mpi_communicator> && collective_communicator<mpi_communicator>);

}  // namespace expar::inline v0
