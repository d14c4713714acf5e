// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/comm/detail/thread_board.hpp>
#include <expar/comm/thread.hpp>
#include <expar/exchange/ticket.hpp>

namespace expar::inline v0 {
namespace detail {

/// An all_to_all_v that a rank that is a thread has started. Two ranks that both have are served by
/// the first of them to wait, in both directions: so a rank waits for others to start, and never
/// for them to wait.
class thread_ticket {
 public:
  thread_ticket(thread_group& group, thread_boards& boards, int rank,
                thread_board::part const& mine)
      : group_(&group), boards_(&boards), rank_(rank) {
    if (group.loses(rank, false, [] { return true; })) group.report(name);
    board_ = &boards.start(rank, mine);
  }
  thread_ticket(thread_ticket&& other) noexcept
      : group_(other.group_),
        boards_(other.boards_),
        board_(std::exchange(other.board_, nullptr)),
        rank_(other.rank_) {}
  thread_ticket& operator=(thread_ticket&& other) noexcept {
    leave();
    group_ = other.group_, boards_ = other.boards_, rank_ = other.rank_;
    board_ = std::exchange(other.board_, nullptr);
    return *this;
  }
  ~thread_ticket() { leave(); }

  void wait() {
    if (board_ == nullptr) return;
    thread_board& board = *std::exchange(board_, nullptr);
    auto const begun = std::chrono::steady_clock::now();
    int absent = -1;
    for (long waits = 0; !serve(board, absent); ++waits) {
      if (waits % 64 == 63 && absent >= 0) {
        using milliseconds = std::chrono::milliseconds;
        auto const waited = std::chrono::steady_clock::now() - begun;
        bool const late = std::chrono::duration_cast<milliseconds>(waited) >= group_->deadline();
        if (group_->loses(absent, late, [&] { return board.has(absent); })) {
          board.close(rank_);
          boards_->put_back(board);
          group_->report(name);
        }
      }
      if (waits > 4096)
        std::this_thread::sleep_for(std::chrono::microseconds(100));
      else if (waits > 64)
        std::this_thread::yield();
    }
    int sender = -1, receiver = -1;
    for (int r = board.size() - 1; r >= 0; --r) {
      if (board.of(r, rank_).at == thread_board::differs) sender = r, receiver = rank_;
      if (board.of(rank_, r).at == thread_board::differs) sender = rank_, receiver = r;
    }
    std::size_t sent = 0, expected = 0;
    if (sender >= 0)
      sent = board.of(sender, receiver).sent, expected = board.of(sender, receiver).expected;
    boards_->put_back(board);
    expects<disagreement>(sender < 0, name, ": rank ", sender, " sends ", sent, " bytes to rank ",
                          receiver, ", which expects ", expected);
  }

 private:
  static constexpr char const* name = "all_to_all_v";

  /// Does what can be done; whether that is all. `absent`: a rank that has not started, or given
  /// up.
  bool serve(thread_board& board, int& absent) const {
    bool all = true;
    absent = -1;
    for (int step = 0; step < board.size(); ++step) {
      int const peer = (rank_ + step) % board.size();
      if (!board.has(peer)) {
        all = false, absent = peer;
        continue;
      }
      all = board.settle(rank_, peer) && all;
      all = board.settle(peer, rank_) && all;
      if (board.of(rank_, peer).at == thread_board::closed ||
          board.of(peer, rank_).at == thread_board::closed)
        all = false, absent = peer;
    }
    return all;
  }
  void leave() noexcept {
    try {
      wait();
    } catch (...) {
    }
  }

  thread_group* group_;
  thread_boards* boards_;
  thread_board* board_ = nullptr;  // none once it was waited for
  int rank_;
};

}  // namespace detail

/// A thread_communicator with tickets: what ranks have started is copied by the first of two that
/// waits. Ranks whose sizes differ throw `disagreement` from wait(), both of that pair.
class thread_ticket_communicator : public thread_communicator {
 public:
  /// Collective over `ranks`.
  explicit thread_ticket_communicator(thread_communicator const& ranks)
      : thread_communicator(ranks) {
    std::vector<detail::thread_boards*> all(static_cast<std::size_t>(size()));
    if (rank() == 0) boards_ = detail::shared(new detail::thread_boards(size()));
    detail::thread_boards* const mine = boards_.get();
    all_gather(host_context{}, &mine, all.data(), sizeof mine);
    boards_ = detail::shared<detail::thread_boards>::one_more(all[0]);
    barrier(host_context{});  // those of rank 0 stay until all have them
  }

  detail::thread_ticket start_all_to_all_v(host_context const&, void const* in, byte_counts counts,
                                           byte_counts from, void* out, byte_counts out_counts,
                                           byte_counts to) const {
    return {*group_,
            *boards_,
            rank(),
            {static_cast<std::byte const*>(in), static_cast<std::byte*>(out), counts, from,
             out_counts, to}};
  }

 private:
  detail::shared<detail::thread_boards> boards_;
};

static_assert(starting_communicator<thread_ticket_communicator>);

}  // namespace expar::inline v0
