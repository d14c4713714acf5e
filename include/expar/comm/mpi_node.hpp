// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sys/random.h>

#include <cstring>

#include <expar/comm/detail/mpi_node_exchange.hpp>
#include <expar/comm/detail/mpi_node_part.hpp>

namespace expar::inline v0 {

/// MPI ranks of one machine, through memory that they share. All tiers: a row is written to its
/// place on another rank as to one of its own. MPI brings the ranks together; after that no call of
/// this class is a call of MPI, so that it asks for no level of threads, and may outlive
/// MPI_Finalize. One operation at a time.
///
/// Where ranks disagree about sizes or calls, `traits.checks_sizes` holds. A rank that does not
/// come within the deadline is lost, at once where its process has ended or given the communicator
/// back: each of the others throws expar::lost_rank within two deadlines, all naming the same rank,
/// and the same in every later call. So does the rank that is lost, if it comes after all. Then
/// without() goes on. Nothing that ranks share needs a lost one to be given back: the destructor,
/// and that of a window, waits for nobody.
///
/// Linux only. The memory is a file without a name (memfd_create), which the other ranks open
/// through /proc of the rank that made it: nothing stays behind when processes end, and the size of
/// /dev/shm does not matter, but ranks need one user and one space of process numbers. Windows
/// apart, there are up to 128 KiB for each pair of ranks, of which it uses what its messages need.
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

  /// Memory of `bytes` bytes on each rank that all ranks can write; zero at first. Its destructor
  /// is local; the memory stays until the last rank has destroyed its window, which may be after
  /// the communicator.
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
      std::size_t place = 0;
      mine.error = getrandom(&mine.token, sizeof mine.token, 0) < 0 ? errno : 0;
      if (mine.error == 0) mine.error = memory->make(link.size(), mine.token);
      if (mine.error == 0) mine.error = memory->take(detail::node_board::bytes_for(ranks), place);
      if (mine.error == 0) mine.address = memory->file().address();
      mine.board = place;
    }
    gather(mine);
    word const first = all[0];
    detail::expects(first.error == 0, "mpi_node_communicator: no memory to share (",
                    std::strerror(first.error), ")");
    if (link.rank() != 0) mine.error = memory->open(first.address, link.size(), first.token);
    if (mine.error == 0) mine.error = memory->enter(link.rank());
    detail::node_mapping board;
    if (mine.error == 0)
      mine.error = board.map(memory->file(), first.board, detail::node_board::bytes_for(ranks));
    gather(mine);
    for (std::size_t r = 0; r < ranks; ++r)
      detail::expects(all[r].error == 0, "mpi_node_communicator: rank ", r,
                      " of comm cannot reach the memory of rank 0 (", std::strerror(all[r].error),
                      "); all ranks of comm must be on one machine, as those of of_node()");
    std::vector<int> members;
    for (int r = 0; r < link.size(); ++r) members.push_back(r);
    exchange_.reset(
        new detail::node_exchange({std::move(memory), std::move(board), std::move(members),
                                   static_cast<std::size_t>(link.rank()), deadline}));
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
  std::vector<int> firsts(static_cast<std::size_t>(link.size()));
  link.all_gather({}, &first, firsts.data(), sizeof first);
  return detail::machines_of(std::move(firsts));
}

}  // namespace expar::inline v0
