// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sys/random.h>

#include <cstring>

#include <expar/comm/detail/mpi_node_exchange.hpp>
#include <expar/comm/detail/mpi_node_part.hpp>

namespace expar::inline v0 {

/// MPI ranks of one machine, by the memory that they share. All tiers: rows go to their place on
/// another rank as on the own one, and a phase costs what a line of cache takes from core to core.
/// MPI brings the ranks together; afterwards no call of this class is a call of MPI, so that it
/// needs no level of threads, and may outlive MPI_Finalize. One operation at a time.
///
/// Where ranks disagree about sizes or calls, `traits.checks_sizes` holds. A rank that has ended or
/// given its communicator back, and one that does not come within the deadline, is lost: each of
/// the others throws expar::lost_rank within two deadlines, and the same in every later call, and
/// so does that rank where it comes after all. They name the same rank. without() goes on, and
/// nothing hangs: the destructor asks nobody.
///
/// Memory has no name, so that none stays behind when processes end: each rank opens it through
/// /proc of the rank that made it. So it needs Linux, one space of process numbers and one user.
/// Each rank has 128 KiB or less for each rank, and half of its own memory there is behind each
/// window of a rank: windows do not count against /dev/shm.
class mpi_node_communicator {
 public:
  static constexpr communicator_traits traits{.checks_sizes = true};

  /// Collective over `comm`, all of whose ranks share memory; see of_node(). `deadline`: how long a
  /// rank is waited for, the same on every rank. Throws what the constructor of mpi_communicator
  /// throws, and one sentence on all ranks where one cannot reach the memory.
  explicit mpi_node_communicator(MPI_Comm comm,
                                 std::chrono::milliseconds deadline = std::chrono::minutes(10))
      : mpi_node_communicator(mpi_communicator(comm, most_bytes, deadline), deadline) {}
  mpi_node_communicator(mpi_node_communicator&&) noexcept = default;
  mpi_node_communicator& operator=(mpi_node_communicator&&) noexcept = default;
  ~mpi_node_communicator() = default;

  /// Collective over `comm`: the ranks of it that are on the machine of this one, in their order.
  static mpi_node_communicator of_node(
      MPI_Comm comm, std::chrono::milliseconds deadline = std::chrono::minutes(10)) {
    mpi_communicator const link(comm, most_bytes, deadline);
    return mpi_node_communicator(detail::mpi_node_part(link).get(), deadline);
  }

  /// The ranks without rank `lost`; higher ones are numbered down by one. Local: it waits for
  /// nobody, and all that call it with the same rank are one group, however often they do. One that
  /// does not come there is lost to the others in turn.
  mpi_node_communicator without(int lost) const {
    detail::expects(lost >= 0 && lost < size() && lost != rank(), "without: lost is ", lost,
                    "; it is another rank than this one, ", rank(), ", of ", size());
    return mpi_node_communicator(exchange_->board().without(static_cast<std::size_t>(lost)));
  }

  int rank() const noexcept { return static_cast<int>(exchange_->board().rank()); }
  int size() const noexcept { return static_cast<int>(exchange_->board().size()); }

  void barrier(host_context const&) const { exchange_->meet(call::barrier); }
  void all_to_all(host_context const&, void const* in, void* out, std::size_t bytes) const {
    exchange_->run(call::all_to_all, in, {bytes, bytes}, out, {bytes, bytes});
  }
  void all_gather(host_context const&, void const* in, void* out, std::size_t bytes) const {
    exchange_->run(call::all_gather, in, {bytes, 0}, out, {bytes, bytes});
  }
  void all_to_all_v(host_context const&, void const* in, byte_counts counts, byte_counts from,
                    void* out, byte_counts out_counts, byte_counts to) const {
    exchange_->run(call::all_to_all_v, in, {0, 0, counts, from}, out, {0, 0, out_counts, to});
  }

  /// Memory of `bytes` bytes on each rank that all ranks can write; zero at first. It may outlive
  /// the communicator, and goes when the last rank has destroyed its window.
  using window = detail::node_window;

  /// Collective.
  window allocate_window(std::size_t bytes) const { return exchange_->allocate(bytes); }
  void exchange_phase(host_context const&) const { exchange_->meet(call::exchange_phase); }

 private:
  using call = detail::node_call;
  static constexpr std::size_t most_bytes = std::size_t{1} << 30;  // of a message of MPI

  explicit mpi_node_communicator(detail::node_board board)
      : exchange_(new detail::node_exchange(std::move(board))) {}
  mpi_node_communicator(mpi_communicator const& link, std::chrono::milliseconds deadline) {
    struct word {
      detail::node_address address{};
      std::uint64_t token = 0, board = 0;
      int error = 0;
    };
    auto const ranks = static_cast<std::size_t>(link.size());
    std::vector<word> all(ranks);
    auto const gather = [&](word const& mine) {
      link.all_gather({}, &mine, all.data(), sizeof mine);
    };
    auto memory = std::make_shared<detail::node_memory>();
    word mine;
    if (link.rank() == 0) {
      std::size_t board = 0;
      mine.error = getrandom(&mine.token, sizeof mine.token, 0) < 0 ? errno : 0;
      if (mine.error == 0) mine.error = memory->make(link.size(), mine.token);
      if (mine.error == 0) mine.error = memory->take(detail::node_board::bytes_for(ranks), board);
      if (mine.error == 0) mine.address = memory->file().address();
      mine.board = board;
    }
    gather(mine);
    word const first = all[0];
    detail::expects(first.error == 0, "mpi_node_communicator: no memory to share (",
                    std::strerror(first.error), ")");
    if (link.rank() != 0) mine.error = memory->open(first.address, link.size(), first.token);
    if (mine.error == 0) mine.error = memory->enter(link.rank());
    gather(mine);
    for (std::size_t r = 0; r < ranks; ++r)
      detail::expects(all[r].error == 0, "mpi_node_communicator: rank ", r,
                      " of comm cannot reach the memory of rank 0 (", std::strerror(all[r].error),
                      "); all ranks of comm must be on one machine, as those of of_node()");
    std::vector<int> members;
    for (int r = 0; r < link.size(); ++r) members.push_back(r);
    exchange_.reset(new detail::node_exchange(
        detail::node_board(std::move(memory), static_cast<std::size_t>(first.board),
                           std::move(members), static_cast<std::size_t>(link.rank()), deadline)));
  }

  std::unique_ptr<detail::node_exchange> exchange_;
};

static_assert(window_communicator<mpi_node_communicator> &&
              variable_communicator<mpi_node_communicator>);

/// Collective over `comm`: for each of its ranks the machine on which it is, where those of one
/// machine share memory. Machines are numbered from 0 in the order of their first ranks.
inline std::vector<int> mpi_node_of(MPI_Comm comm,
                                    std::chrono::milliseconds deadline = std::chrono::minutes(10)) {
  mpi_communicator const link(comm, std::size_t{1} << 30, deadline);
  detail::mpi_node_part const part(link);
  int first = link.rank();
  detail::expect_mpi_success("MPI_Bcast", MPI_Bcast(&first, 1, MPI_INT, 0, part.get()));
  std::vector<int> nodes(static_cast<std::size_t>(link.size()));
  link.all_gather({}, &first, nodes.data(), sizeof first);
  int found = 0;
  for (std::size_t r = 0; r < nodes.size(); ++r)
    nodes[r] =
        nodes[r] == static_cast<int>(r) ? found++ : nodes[static_cast<std::size_t>(nodes[r])];
  return nodes;
}

}  // namespace expar::inline v0
