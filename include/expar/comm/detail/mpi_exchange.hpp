// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <exception>
#include <memory>
#include <utility>
#include <vector>

#include <expar/comm/detail/mpi_mail.hpp>
#include <expar/communicator.hpp>

namespace expar::inline v0::detail {

enum class mpi_call : std::uint32_t { construct, barrier, all_to_all, all_gather, all_to_all_v };
inline char const* name_of(mpi_call c) {
  constexpr char const* names[] = {"mpi_communicator", "barrier", "all_to_all", "all_gather",
                                   "all_to_all_v"};
  return names[static_cast<int>(c)];
}

/// Where the bytes of each peer are: `bytes` at peer * step, or what tables say.
struct mpi_segments {
  struct segment {
    std::size_t at, bytes;
  };
  std::size_t bytes, step;
  byte_counts counts{}, displacements{};

  segment operator[](std::size_t peer) const {
    if (counts.empty()) return {peer * step, bytes};
    return {displacements[peer], counts[peer]};
  }
  bool all_the_same() const { return counts.empty() && step == 0; }
};

/// An all_to_all_v that was started. Kind 2 i is piece i that comes in, 2 i + 1 the one that goes.
struct mpi_started {
  explicit mpi_started(std::size_t peers) : box(0, peers) {}

  mpi_box box;
  mpi_segments received{0, 0};
  std::size_t own_sent = 0;      // by this rank to itself
  std::exception_ptr failure{};  // of that copy
};

/// One collective after another. In each, every pair swaps a head, which says what its sender
/// wants, and behind it the segment if that is short. Longer ones follow in pieces where both heads
/// agree, so that nothing is ever on its way that is not expected. Heads have a buffer of the same
/// size on every rank, and k-th meet k-th: nothing is truncated.
class mpi_exchange {
 public:
  mpi_exchange(mpi_mail mail, std::size_t max_message)
      : mail_(std::move(mail)),
        max_message_(max_message),
        incoming_(size() * room),
        outgoing_(size() * room),
        received_(size()),
        sent_(size()) {}

  std::size_t size() const noexcept { return mail_.size(); }
  mpi_mail const& mail() const noexcept { return mail_; }
  std::size_t max_message() const noexcept { return max_message_; }

  void run(host_context const& on, mpi_call call, void const* in, mpi_segments const& sent,
           void* out, mpi_segments const& received) {
    job const j{
        on, call, static_cast<std::byte const*>(in), sent, static_cast<std::byte*>(out), received};
    mail_.begin(name_of(call));
    disagreed_ = mine(j, rank()).sends != mine(j, rank()).expects;
    send_heads(j);
    std::exception_ptr failure;
    mail_.wait([&](mpi_mail::kind kind, std::size_t peer) { go_on(j, kind, peer); },
               [&] { failure = copy_own(j); });
    if (failure) std::rethrow_exception(failure);
    if (disagreed_) report(j);
  }

  /// Posts all messages of an all_to_all_v; finish() waits for them. No head tells their sizes, so
  /// that they are on their way whatever this rank does until then.
  std::unique_ptr<mpi_started> start(host_context const& on, void const* in,
                                     mpi_segments const& sent, void* out,
                                     mpi_segments const& received) {
    mail_.name(name_of(mpi_call::all_to_all_v));
    job const j{on,   mpi_call::all_to_all_v,       static_cast<std::byte const*>(in),
                sent, static_cast<std::byte*>(out), received};
    if (idle_.empty()) {
      idle_.reserve(made_ + 1);
      idle_.push_back(std::make_unique<mpi_started>(size())), ++made_;
    }
    auto started = std::move(idle_.back());
    idle_.pop_back();
    mpi_box& box = started->box;
    std::size_t pieces = 0;
    for (std::size_t p = 0; p < size(); ++p)
      pieces = std::max({pieces, pieces_of(sent[p]), pieces_of(received[p])});
    box.make_room(2 * pieces, size());
    box.active = box.requests.size();
    started->received = received;
    int const tag = mail_.tag_of_tickets();
    for (std::size_t step = 1; step < size(); ++step) {
      std::size_t const peer = (rank() + size() - step) % size();
      for (std::size_t i = 0; i < pieces_of(received[peer]); ++i)
        mail_.receive(box, 2 * i, tag, peer, j.out + received[peer].at + i * max_message_,
                      bytes_of_piece(received[peer], i));
    }
    for (std::size_t step = 1; step < size(); ++step) {
      std::size_t const peer = (rank() + step) % size();
      for (std::size_t i = 0; i < pieces_of(sent[peer]); ++i)
        mail_.send(box, 2 * i + 1, tag, peer, j.in + sent[peer].at + i * max_message_,
                   bytes_of_piece(sent[peer], i));
    }
    started->own_sent = sent[rank()].bytes;
    started->failure = copy_own(j);
    return started;
  }
  void finish(std::unique_ptr<mpi_started> started) {
    char const* const name = name_of(mpi_call::all_to_all_v);
    mpi_segments const& received = started->received;
    std::size_t odd = size(), sent = 0;  // who sends less than is expected, and how much
    mail_.name(name);
    mail_.wait(
        started->box,
        [&](std::size_t kind, std::size_t peer, MPI_Status const& status) {
          int came = 0;
          if (kind % 2 == 0) MPI_Get_count(&status, MPI_BYTE, &came);
          if (kind % 2 == 0 &&
              static_cast<std::size_t>(came) != bytes_of_piece(received[peer], kind / 2))
            odd = peer, sent = kind / 2 * max_message_ + static_cast<std::size_t>(came);
        },
        [] {});
    if (started->own_sent != received[rank()].bytes) odd = rank(), sent = started->own_sent;
    std::size_t const expected = odd < size() ? received[odd].bytes : 0;
    auto const failure = std::move(started->failure);
    idle_.push_back(std::move(started));
    if (failure) std::rethrow_exception(failure);
    expects<disagreement>(odd == size(), name, ": rank ", odd, " sends ", sent, " bytes to rank ",
                          rank(), ", which expects ", expected);
  }

 private:
  struct head {
    mpi_call call;
    std::uint32_t among;
    std::uint64_t sends, expects;
    bool operator==(head const&) const = default;
  };
  static constexpr std::size_t short_segment = 4096, room = sizeof(head) + short_segment;

  struct job {
    host_context const& on;
    mpi_call call;
    std::byte const* in;
    mpi_segments const& sent;
    std::byte* out;
    mpi_segments const& received;
  };

  std::size_t rank() const { return mail_.rank(); }
  std::size_t pieces_of(mpi_segments::segment const& s) const {
    return s.bytes / max_message_ + (s.bytes % max_message_ != 0);
  }
  std::size_t bytes_of_piece(mpi_segments::segment const& s, std::size_t i) const {
    return std::min(s.bytes - i * max_message_, max_message_);
  }

  head mine(job const& j, std::size_t peer) const {
    return {j.call, mail_.among(), j.sent[peer].bytes, j.received[peer].bytes};
  }
  head of(std::size_t peer) const {
    head h;
    std::memcpy(&h, &incoming_[peer * room], sizeof h);
    return h;
  }
  bool agree(job const& j, std::size_t peer) const {
    head const m = mine(j, peer);
    return of(peer) == head{m.call, m.among, m.expects, m.sends};
  }

  void send_heads(job const& j) {
    for (std::size_t step = 1; step < size(); ++step) {
      std::size_t const peer = (rank() + size() - step) % size();
      mail_.receive(mpi_mail::head_in, peer, &incoming_[peer * room], room);
    }
    for (std::size_t step = 1; step < size(); ++step) {
      std::size_t const peer = (rank() + step) % size();
      auto const [at, bytes] = j.sent[peer];
      std::size_t const behind = bytes <= short_segment ? bytes : 0;
      std::byte* const message = &outgoing_[j.sent.all_the_same() ? 0 : peer * room];
      if (step == 1 || !j.sent.all_the_same()) {
        head const h = mine(j, peer);
        std::memcpy(message, &h, sizeof h);
        if (behind != 0) std::memcpy(message + sizeof h, j.in + at, behind);
      }
      mail_.send(mpi_mail::head_out, peer, message, sizeof(head) + behind);
    }
  }

  void go_on(job const& j, mpi_mail::kind complete, std::size_t peer) {
    switch (complete) {
      case mpi_mail::head_in:
        open(j, peer);
        break;
      case mpi_mail::piece_in:
        receive_more(j, peer);
        break;
      case mpi_mail::piece_out:
        send_more(j, peer);
        break;
      default:
        break;
    }
  }
  void open(job const& j, std::size_t peer) {
    if (!agree(j, peer)) {
      disagreed_ = true;
      return;
    }
    auto const [at, bytes] = j.received[peer];
    received_[peer] = sent_[peer] = 0;
    if (bytes > short_segment)
      receive_more(j, peer);
    else if (bytes != 0)
      std::memcpy(j.out + at, &incoming_[peer * room + sizeof(head)], bytes);
    if (j.sent[peer].bytes > short_segment) send_more(j, peer);
  }
  void receive_more(job const& j, std::size_t peer) {
    auto const [at, bytes] = j.received[peer];
    std::size_t const done = received_[peer], n = std::min(bytes - done, max_message_);
    received_[peer] += n;
    if (n != 0) mail_.receive(mpi_mail::piece_in, peer, j.out + at + done, n);
  }
  void send_more(job const& j, std::size_t peer) {
    auto const [at, bytes] = j.sent[peer];
    std::size_t const done = sent_[peer], n = std::min(bytes - done, max_message_);
    sent_[peer] += n;
    if (n != 0) mail_.send(mpi_mail::piece_out, peer, j.in + at + done, n);
  }

  // Gives what an executor of the caller throws: messages still use the buffers.
  std::exception_ptr copy_own(job const& j) const {
    auto const from = j.sent[rank()], to = j.received[rank()];
    if (from.bytes != to.bytes || from.bytes == 0) return nullptr;
    try {
      j.on.for_each_chunk(static_cast<index_t>(from.bytes), index_t{1} << 20,
                          [&](int, index_t first, index_t last) {
                            std::memcpy(j.out + to.at + first, j.in + from.at + first,
                                        static_cast<std::size_t>(last - first));
                          });
    } catch (...) {
      return std::current_exception();
    }
    return nullptr;
  }

  // The lowest rank that disagrees with this one, in the same words on both.
  [[gnu::cold]] void report(job const& j) const {
    char const* const name = name_of(j.call);
    for (std::size_t peer = 0; peer < size(); ++peer) {
      head const own = mine(j, peer);
      if (peer == rank()) {
        expects<disagreement>(own.sends == own.expects, name, ": rank ", peer, " sends ", own.sends,
                              " bytes to itself but expects ", own.expects);
        continue;
      }
      if (agree(j, peer)) continue;
      std::size_t const a = std::min(rank(), peer), b = std::max(rank(), peer);
      head const low = a == peer ? of(peer) : own, high = a == peer ? own : of(peer);
      expects<disagreement>(low.among == high.among, name, ": rank ", a, " and rank ", b,
                            " go on without different ranks");
      expects<disagreement>(low.call == high.call, "rank ", a, " calls ", name_of(low.call),
                            " while rank ", b, " calls ", name_of(high.call),
                            "; all ranks call the same operations in the same order");
      bool const up = low.sends != high.expects;
      fail<disagreement>(name, ": rank ", up ? a : b, " sends ", up ? low.sends : high.sends,
                         " bytes to rank ", up ? b : a, ", which expects ",
                         up ? high.expects : low.expects);
    }
  }

  mpi_mail mail_;
  std::size_t max_message_;
  std::vector<std::byte> incoming_, outgoing_;      // of each peer a head, and what is behind it
  std::vector<std::size_t> received_, sent_;        // bytes in pieces, with those on their way
  std::vector<std::unique_ptr<mpi_started>> idle_;  // those of `made_` that nobody waits for
  std::size_t made_ = 0;
  bool disagreed_ = false;
};

}  // namespace expar::inline v0::detail
