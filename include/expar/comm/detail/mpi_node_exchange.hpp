// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstring>

#include <expar/comm/detail/mpi_exchange.hpp>
#include <expar/comm/detail/mpi_node_board.hpp>
#include <expar/comm/detail/mpi_node_window.hpp>

namespace expar::inline v0::detail {

enum class node_call : std::uint64_t {
  none,
  barrier,
  all_to_all,
  all_gather,
  all_to_all_v,
  allocate_window,
  exchange_phase
};
inline char const* name_of(node_call c) {
  constexpr char const* names[] = {"nothing",      "barrier",         "all_to_all",    "all_gather",
                                   "all_to_all_v", "allocate_window", "exchange_phase"};
  return names[static_cast<int>(c)];
}

/// The collectives of ranks that meet on a board. Ranks show there what they are in and the first
/// piece of each segment; what is longer follows in pieces, one for each meeting more. All know
/// from what all show how many these are.
class node_exchange {
 public:
  explicit node_exchange(node_board board) : board_(std::move(board)), agrees_(board_.size()) {}

  node_board const& board() const noexcept { return board_; }

  /// What moves nothing: all ranks are in it.
  void meet(node_call call) { meet(call, {}); }

  void run(node_call call, void const* in, mpi_segments const& sent, void* out,
           mpi_segments const& received) {
    job const j{call, static_cast<std::byte const*>(in), sent, static_cast<std::byte*>(out),
                received};
    std::size_t const me = board_.rank();
    board_.begin(name_of(call));
    node_board::head own{0, sent.bytes, 0};
    bool const varies = !sent.counts.empty();
    auto* const numbers = board_.numbers(me);
    for (std::size_t peer = 0; peer < board_.size(); ++peer) {
      auto const sends = sent[peer].bytes, expects = received[peer].bytes;
      if (varies) numbers[peer] = sends, numbers[board_.size() + peer] = expects;
      if (peer != me) own.longest = std::max<number>({own.longest, sends, expects});
    }
    show(j, 0);
    meet_begun(call, own);
    number longest = 0;
    for (std::size_t peer = 0; peer < board_.size(); ++peer)
      longest = std::max(longest, board_.shown(peer).longest);
    finding const wrong = compare(j, varies);
    if (agrees_[me] && sent[me].bytes != 0)
      std::memcpy(j.out + received[me].at, j.in + sent[me].at, sent[me].bytes);
    take(j, 0);
    for (number done = room(j); done < longest; done += room(j)) {
      board_.next();
      show(j, done);
      board_.meet();
      take(j, done);
    }
    if (wrong.peer < board_.size()) report(call, wrong);
  }

  /// Collective. Memory of `bytes` bytes for each rank.
  node_window allocate(std::size_t bytes) {
    constexpr auto call = node_call::allocate_window;
    std::size_t const size = board_.size();
    board_.begin(name_of(call));
    node_file file;
    std::size_t const pitch = node_window::pitch_for(bytes, size);
    if (board_.rank() == 0 && pitch != 0 && file.make() == 0) {
      node_address const a = file.address();
      auto* const mine = board_.numbers(0);
      mine[0] = static_cast<number>(a.descriptor), mine[1] = a.inode;
    } else if (board_.rank() == 0) {
      board_.numbers(0)[1] = 0;
    }
    meet_begun(call, {0, bytes, 0});
    for (std::size_t r = 1; r < size; ++r)
      expects<disagreement>(board_.shown(r).bytes == board_.shown(0).bytes, name_of(call),
                            ": bytes is ", board_.shown(0).bytes, " on rank 0 but ",
                            board_.shown(r).bytes, " on rank ", r,
                            "; all ranks must pass the same");
    auto const* const first = board_.numbers(0);
    node_address const a{board_.process(0), static_cast<int>(first[0]), first[1]};
    node_window made;
    bool const has_file = a.inode != 0 && (board_.rank() == 0 || file.open(a) == 0);
    bool const failed = !has_file || made.map(file, bytes, pitch, board_.rank(), size) != 0;
    board_.next();
    board_.shown(board_.rank()) = {0, failed, 0};
    board_.meet();
    for (std::size_t r = 0; r < size; ++r)
      expects(board_.shown(r).bytes == 0, name_of(call), ": rank ", r, " has no memory for ", bytes,
              " bytes");
    return made;
  }

 private:
  using number = node_board::number;
  struct job {
    node_call call;
    std::byte const* in;
    mpi_segments const& sent;
    std::byte* out;
    mpi_segments const& received;
  };
  // What ranks disagree about: this one and the lowest such peer.
  struct finding {
    std::size_t peer;
    number sends, expects, peer_sends, peer_expects;
  };

  void meet(node_call call, node_board::head const& own) {
    board_.begin(name_of(call));
    meet_begun(call, own);
  }
  void meet_begun(node_call call, node_board::head own) {
    own.call = static_cast<number>(call);
    board_.shown(board_.rank()) = own;
    board_.meet();
    bool same = true;
    for (std::size_t r = 0; r < board_.size(); ++r) same &= board_.shown(r).call == own.call;
    if (!same) [[unlikely]]
      report_calls();
  }
  [[noreturn, gnu::cold]] void report_calls() {
    auto const call_of = [&](std::size_t r) { return board_.shown(r).call; };
    std::size_t odd = 1;
    while (call_of(odd) == call_of(0)) ++odd;
    fail<disagreement>("rank 0 calls ", name_of(static_cast<node_call>(call_of(0))), " while rank ",
                       odd, " calls ", name_of(static_cast<node_call>(call_of(odd))),
                       "; all ranks call the same operations in the same order");
  }

  // What goes to all is there once, so a piece may be longer.
  static bool once(job const& j) { return j.call == node_call::all_gather; }
  number room(job const& j) const {
    return once(j) ? board_.size() * board_.room() : board_.room();
  }
  void show(job const& j, number done) {
    std::byte* const shown = board_.bytes(board_.rank());
    bool const one = once(j);
    for (std::size_t peer = 0; peer < board_.size(); ++peer) {
      if (peer == board_.rank()) continue;
      auto const [at, bytes] = j.sent[peer];
      if (done < bytes)
        std::memcpy(shown + (one ? 0 : peer * board_.room()), j.in + at + done,
                    std::min<std::size_t>(bytes - done, room(j)));
      if (one) break;
    }
  }
  void take(job const& j, number done) {
    std::size_t const me = board_.rank(), place = once(j) ? 0 : me * board_.room();
    for (std::size_t step = 1; step < board_.size(); ++step) {
      std::size_t const peer = (me + step) % board_.size();
      auto const [at, bytes] = j.received[peer];
      if (agrees_[peer] && done < bytes)
        std::memcpy(j.out + at + done, board_.bytes(peer) + place,
                    std::min<std::size_t>(bytes - done, room(j)));
    }
  }

  finding compare(job const& j, bool varies) {
    std::size_t const me = board_.rank(), size = board_.size();
    finding lowest{size, 0, 0, 0, 0};
    for (std::size_t peer = size; peer-- > 0;) {
      number const* const theirs = board_.numbers(peer);
      number const all = board_.shown(peer).bytes;
      finding const f{peer, j.sent[peer].bytes, j.received[peer].bytes, varies ? theirs[me] : all,
                      varies ? theirs[size + me] : all};
      agrees_[peer] = f.sends == f.peer_expects && f.expects == f.peer_sends;
      if (!agrees_[peer]) lowest = f;
    }
    return lowest;
  }
  // In the same words on both.
  [[noreturn, gnu::cold]] void report(node_call call, finding const& f) const {
    std::size_t const me = board_.rank(), peer = f.peer;
    if (peer == me)
      fail<disagreement>(name_of(call), ": rank ", me, " sends ", f.sends,
                         " bytes to itself but expects ", f.expects);
    bool const out = f.sends != f.peer_expects, in = f.expects != f.peer_sends;
    bool const mine = out && (!in || me < peer);
    fail<disagreement>(name_of(call), ": rank ", mine ? me : peer, " sends ",
                       mine ? f.sends : f.peer_sends, " bytes to rank ", mine ? peer : me,
                       ", which expects ", mine ? f.peer_expects : f.expects);
  }

  node_board board_;
  std::vector<char> agrees_;
};

}  // namespace expar::inline v0::detail
