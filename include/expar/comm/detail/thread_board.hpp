// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <cstring>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include <expar/communicator.hpp>
#include <expar/detail/shared.hpp>

namespace expar::inline v0::detail {

/// Where ranks that are threads put what they exchange by an all_to_all_v that each of them starts
/// and waits for at a time of its own.
class thread_board {
 public:
  /// What a rank brings. Others use it until all pairs of the rank are settled.
  struct part {
    std::byte const* in;
    std::byte* out;
    byte_counts counts, from, out_counts, to;
  };
  enum state : unsigned char { open, taken, copied, differs, closed };
  /// From one rank to another: whoever takes it copies.
  struct pair {
    std::atomic<unsigned char> at{open};
    std::size_t sent = 0, expected = 0;
  };

  explicit thread_board(int ranks)
      : places_(index(ranks)), pairs_(index(ranks) * index(ranks)), users_(ranks) {}

  int size() const noexcept { return static_cast<int>(places_.size()); }
  bool has(int rank) const noexcept {
    return places_[index(rank)].started.load(std::memory_order_acquire);
  }
  pair& of(int sender, int receiver) noexcept {
    return pairs_[index(sender) * places_.size() + index(receiver)];
  }
  void put(int rank, part const& mine) noexcept {
    places_[index(rank)].shown = mine;
    places_[index(rank)].started.store(true, std::memory_order_release);
  }
  /// Whether nothing is left to do between two ranks that both have started.
  bool settle(int sender, int receiver) noexcept {
    pair& p = of(sender, receiver);
    unsigned char seen = open;
    if (!p.at.compare_exchange_strong(seen, taken, std::memory_order_acq_rel)) return seen != taken;
    part const &from = places_[index(sender)].shown, &to = places_[index(receiver)].shown;
    p.sent = from.counts[index(receiver)], p.expected = to.out_counts[index(sender)];
    if (p.sent == p.expected && p.sent != 0)
      std::memcpy(to.out + to.to[index(sender)], from.in + from.from[index(receiver)], p.sent);
    p.at.store(p.sent == p.expected ? copied : differs, std::memory_order_release);
    return true;
  }
  /// Nobody copies from or to `rank` any more, from when this returns.
  void close(int rank) noexcept {
    for (int other = 0; other < size(); ++other)
      for (pair* p : {&of(rank, other), &of(other, rank)}) {
        unsigned char seen = open;
        p->at.compare_exchange_strong(seen, closed, std::memory_order_acq_rel);
        while (p->at.load(std::memory_order_acquire) == taken) std::this_thread::yield();
      }
  }
  /// Whether `rank` is the last to leave: then all is as in the beginning.
  bool leave() noexcept {
    if (users_.fetch_sub(1, std::memory_order_acq_rel) != 1) return false;
    for (place& p : places_) p.started.store(false, std::memory_order_relaxed);
    for (pair& p : pairs_) p.at.store(open, std::memory_order_relaxed);
    users_.store(size(), std::memory_order_relaxed);
    return true;
  }

 private:
  struct place {
    std::atomic<bool> started{false};
    part shown{};
  };
  static std::size_t index(int i) noexcept { return static_cast<std::size_t>(i); }

  std::vector<place> places_;
  std::vector<pair> pairs_;
  std::atomic<int> users_;
};

/// The boards of a group: the n-th exchange that a rank starts is the n-th of every rank.
class thread_boards : public counted {
 public:
  explicit thread_boards(int ranks) : started_(static_cast<std::size_t>(ranks)) {}

  thread_board& start(int rank, thread_board::part const& mine) {
    std::lock_guard lock(mutex_);
    std::size_t& started = started_[static_cast<std::size_t>(rank)];
    if (started - settled_ == in_use_.size()) {
      in_use_.reserve(in_use_.size() + 1), idle_.reserve(all_.size() + 1);
      if (idle_.empty()) {
        all_.push_back(std::make_unique<thread_board>(static_cast<int>(started_.size())));
        idle_.push_back(all_.back().get());
      }
      in_use_.push_back(idle_.back());
      idle_.pop_back();
    }
    thread_board& board = *in_use_[started++ - settled_];
    board.put(rank, mine);
    std::size_t least = started;
    for (std::size_t const n : started_) least = n < least ? n : least;
    for (; settled_ < least; ++settled_) in_use_.erase(in_use_.begin());
    return board;
  }
  /// The rank that has started it does not use it any more.
  void put_back(thread_board& board) noexcept {
    std::lock_guard lock(mutex_);
    if (board.leave()) idle_.push_back(&board);
  }

 private:
  std::mutex mutex_;
  std::vector<std::size_t> started_;
  std::vector<std::unique_ptr<thread_board>> all_;
  std::vector<thread_board*> in_use_, idle_;  // in_use_: what not all ranks have started
  std::size_t settled_ = 0;                   // the number of the first of these
};

}  // namespace expar::inline v0::detail
