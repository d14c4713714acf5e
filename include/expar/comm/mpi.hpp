// SPDX-License-Identifier: Apache-2.0
#pragma once

#if !__has_include(<mpi.h>)
#error "expar/comm/mpi.hpp needs <mpi.h>: compile with mpicxx, or link MPI::MPI_CXX"
#endif

#include <algorithm>
#include <climits>
#include <memory>
#include <numeric>
#include <utility>
#include <vector>

#include <expar/comm/detail/mpi_exchange.hpp>
#include <expar/exchange/ticket.hpp>

namespace expar::inline v0 {

/// The ranks of an MPI communicator: tiers 0 to 2. It works on a duplicate, so that its messages
/// and its errors are its own. Calls MPI from the thread that calls it, and carries one operation
/// at a time. Byte counts have no limit. In each collective every two ranks swap a message, which
/// segments of more than 4 KiB follow. It has 8 KiB for each rank, and allocates nothing more, but
/// for as many tickets as are on their way at once.
///
/// Where ranks disagree about sizes or calls, `traits.checks_sizes` holds. A rank from which
/// nothing comes for the deadline, or for which MPI gives an error, is lost: within two deadlines
/// each of the others throws expar::lost_rank, and the same in every later call. They name the same
/// rank, unless some were not in a collective at that time. What MPI may still use is abandoned
/// then: the destructor calls no MPI, segments of more than 4 KiB of the call that was the first to
/// throw are not to be freed nor used again, and MPI_Finalize may hang. without() goes on.
///
/// A process that ends takes the others with it where the launcher or MPI sees to that. Open MPI
/// has `mpiexec --enable-recovery`; from any launcher a shell hides it that outlives it, as in
/// `mpiexec sh -c './program || sleep 60'`. MPICH raises what goes wrong with a pending message on
/// MPI_COMM_SELF or MPI_COMM_WORLD: set MPI_ERRORS_RETURN there to have these errors thrown too.
class mpi_communicator {
 public:
  static constexpr communicator_traits traits{.checks_sizes = true};

  /// An exchange that was started. One that ranks disagree about is not found out by all of them: a
  /// rank that gets less than it expects throws `disagreement`, and one that gets more, or nothing,
  /// `lost_rank`.
  class ticket {
   public:
    ticket(ticket&&) noexcept = default;
    ticket& operator=(ticket&& other) noexcept {
      ticket(std::move(*this)).leave();
      exchange_ = other.exchange_, started_ = std::move(other.started_);
      return *this;
    }
    ~ticket() { leave(); }

    void wait() {
      if (started_ != nullptr) exchange_->finish(std::move(started_));
    }

   private:
    friend class mpi_communicator;
    ticket(detail::mpi_exchange* exchange, std::unique_ptr<detail::mpi_started> started)
        : exchange_(exchange), started_(std::move(started)) {}
    void leave() noexcept {
      try {
        wait();
      } catch (...) {
      }
    }

    detail::mpi_exchange* exchange_;
    std::unique_ptr<detail::mpi_started> started_;
  };

  /// Collective over `comm`, which may be any intracommunicator. No message is longer than
  /// `max_message` bytes: what is longer travels in pieces, one after another. `deadline`: how long
  /// a rank is waited for; a piece takes less. Both are the same on every rank. Throws if MPI is
  /// not running, cannot duplicate `comm`, whose error handler is put aside until it returns, or if
  /// not all ranks come within the deadline.
  explicit mpi_communicator(MPI_Comm comm, std::size_t max_message = std::size_t{1} << 30,
                            std::chrono::milliseconds deadline = std::chrono::minutes(10)) {
    bool const positive = deadline.count() > 0;
    auto const patience = positive ? deadline : std::chrono::minutes(1);
    auto duplicate = std::make_shared<detail::mpi_duplicate>(comm, patience);
    int rank = 0, size = 0;
    MPI_Comm_rank(duplicate->get(), &rank);
    MPI_Comm_size(duplicate->get(), &size);
    std::vector<int> members(static_cast<std::size_t>(size));
    std::iota(members.begin(), members.end(), 0);
    exchange_.reset(new detail::mpi_exchange(
        {std::move(duplicate), std::move(members), static_cast<std::size_t>(rank), patience},
        max_message));
    expect_agreement("max_message", max_message);
    expect_agreement("deadline (ms)", deadline.count());
    detail::expects(max_message >= 1 && max_message <= INT_MAX, "mpi_communicator: max_message is ",
                    max_message, "; it lies between 1 and ", INT_MAX);
    detail::expects(positive, "mpi_communicator: deadline is ", deadline.count(),
                    " ms; at least 1 is needed");
  }
  mpi_communicator(mpi_communicator&&) noexcept = default;
  /// Collective, as the destructor is.
  mpi_communicator& operator=(mpi_communicator&&) noexcept = default;
  /// Collective. Frees the duplicate, unless a rank was lost, without() was called or MPI has
  /// ended.
  ~mpi_communicator() = default;

  /// The ranks without rank `lost`; higher ones are numbered down by one. For all that go on, once
  /// that rank is lost or before. Local: it waits for nobody, so a rank that does not come is lost
  /// in the first collective of the new communicator, and ranks that go on without different ones
  /// throw there.
  mpi_communicator without(int lost) const {
    detail::expects(lost >= 0 && lost < size() && lost != rank(), "without: lost is ", lost,
                    "; it is another rank than this one, ", rank(), ", of ", size());
    mpi_communicator others;
    others.exchange_.reset(new detail::mpi_exchange(
        exchange_->mail().without(static_cast<std::size_t>(lost)), exchange_->max_message()));
    return others;
  }

  int rank() const noexcept { return static_cast<int>(exchange_->mail().rank()); }
  int size() const noexcept { return static_cast<int>(exchange_->size()); }
  /// The duplicate; without() keeps it, with all its ranks.
  MPI_Comm native_handle() const noexcept { return exchange_->mail().native_handle(); }

  void barrier(host_context const& on) const {
    exchange_->run(on, call::barrier, nullptr, {0, 0}, nullptr, {0, 0});
  }
  void all_to_all(host_context const& on, void const* in, void* out, std::size_t bytes) const {
    exchange_->run(on, call::all_to_all, in, {bytes, bytes}, out, {bytes, bytes});
  }
  void all_gather(host_context const& on, void const* in, void* out, std::size_t bytes) const {
    exchange_->run(on, call::all_gather, in, {bytes, 0}, out, {bytes, bytes});
  }
  void all_to_all_v(host_context const& on, void const* in, byte_counts counts, byte_counts from,
                    void* out, byte_counts out_counts, byte_counts to) const {
    exchange_->run(on, call::all_to_all_v, in, {0, 0, counts, from}, out, {0, 0, out_counts, to});
  }
  ticket start_all_to_all_v(host_context const& on, void const* in, byte_counts counts,
                            byte_counts from, void* out, byte_counts out_counts,
                            byte_counts to) const {
    return {exchange_.get(),
            exchange_->start(on, in, {0, 0, counts, from}, out, {0, 0, out_counts, to})};
  }

 private:
  using call = detail::mpi_call;
  // What MPI may still write to is never freed.
  struct unless_dead {
    void operator()(detail::mpi_exchange* e) const {
      if (!e->mail().dead()) delete e;
    }
  };

  mpi_communicator() = default;

  template <class Number>
  void expect_agreement(char const* name, Number mine) const {
    std::vector<Number> all(static_cast<std::size_t>(size()));
    exchange_->run({}, call::construct, &mine, {sizeof mine, 0}, all.data(),
                   {sizeof mine, sizeof mine});
    auto const [low, high] = std::minmax_element(all.begin(), all.end());
    detail::expects(*low == *high, "mpi_communicator: ", name, " is ", *low, " on one rank and ",
                    *high, " on another; all ranks must pass the same");
  }

  std::unique_ptr<detail::mpi_exchange, unless_dead> exchange_;
};

static_assert(starting_communicator<mpi_communicator> && collective_communicator<mpi_communicator>);

}  // namespace expar::inline v0
