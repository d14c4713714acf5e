// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <chrono>
#include <cstring>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include <expar/communicator.hpp>

namespace expar {
inline namespace v0 {
namespace detail {

/// What the ranks of one process share: a place per rank to publish addresses, and a way to meet.
class thread_group {
 public:
  /// What a rank shows to the others between two meetings.
  struct slot {
    void const* in = nullptr;
    byte_counts counts{}, displacements{};
    std::byte* window = nullptr;
    std::size_t bytes = 0;
  };

  thread_group(int ranks, std::chrono::milliseconds deadline)
      : deadline_(deadline), places_(static_cast<std::size_t>(ranks)) {}

  int size() const noexcept { return static_cast<int>(places_.size()); }
  slot& at(int rank) noexcept { return places_[static_cast<std::size_t>(rank)].shown; }

  /// Returns when every rank has come as often as this one. A rank that came always counts as come,
  /// so that either all ranks pass a meeting or none does, whatever happens to one of them later.
  void meet(int rank, char const* where) {
    auto& mine = places_[static_cast<std::size_t>(rank)].arrived;
    auto const turn = mine.load(std::memory_order_relaxed) + 1;
    mine.store(turn, std::memory_order_release);
    for (int step = 1; step < size(); ++step) wait_for((rank + step) % size(), turn, where);
  }

  /// The rank will not come again. `failure` is its exception, if it ended by one.
  void leave(int rank, std::exception_ptr failure) noexcept {
    if (failure) {
      std::lock_guard lock(mutex_);
      if (!first_failure_) first_failure_ = failure;
    }
    places_[static_cast<std::size_t>(rank)].left.store(true, std::memory_order_release);
  }
  std::exception_ptr first_failure() const noexcept { return first_failure_; }

 private:
  struct alignas(64) place {
    std::atomic<unsigned long> arrived{0};
    std::atomic<bool> left{false};
    slot shown;
  };

  // A short spin, then yields: ranks often outnumber cores, and the peer needs this one to come.
  void wait_for(int peer, unsigned long turn, char const* where) {
    auto& theirs = places_[static_cast<std::size_t>(peer)];
    auto const come = [&] { return theirs.arrived.load(std::memory_order_acquire) >= turn; };
    for (int spin = 0; spin < 64; ++spin)
      if (come()) return;
    auto const started = std::chrono::steady_clock::now();
    for (long waits = 0; !come(); ++waits) {
      if (theirs.left.load(std::memory_order_acquire) && !come())
        fail(where, ": rank ", peer, " has left and will not come");
      if (waits > 4096)
        std::this_thread::sleep_for(std::chrono::microseconds(100));
      else
        std::this_thread::yield();
      if (waits % 64 == 0 && std::chrono::steady_clock::now() - started > deadline_)
        fail(where, ": rank ", peer, " did not come within ", deadline_.count(), " ms");
    }
  }

  std::chrono::milliseconds deadline_;
  std::vector<place> places_;
  std::mutex mutex_;
  std::exception_ptr first_failure_;
};

}  // namespace detail

/// One rank of several that are threads of one process; run_ranks() makes them. All tiers: peers
/// read each other's buffers, so a byte is copied once. A light handle; use it on the thread of its
/// rank. A rank that throws or returns while others wait for it makes them throw; a rank that
/// neither comes nor leaves makes them throw after the deadline of run_ranks().
class thread_communicator {
  using slot = detail::thread_group::slot;

 public:
  thread_communicator(detail::thread_group& group, int rank) : group_(&group), rank_(rank) {}

  int rank() const noexcept { return rank_; }
  int size() const noexcept { return group_->size(); }

  void barrier(host_context const&) const { group_->meet(rank_, "barrier"); }

  void all_to_all(host_context const& on, void const* in, void* out, std::size_t bytes) const {
    fixed(on, "all_to_all", in, out, bytes, bytes);
  }
  void all_gather(host_context const& on, void const* in, void* out, std::size_t bytes) const {
    fixed(on, "all_gather", in, out, bytes, 0);
  }

  void all_to_all_v(host_context const& on, void const* in, byte_counts counts, byte_counts from,
                    void* out, byte_counts out_counts, byte_counts to) const {
    mine() = {.in = in, .counts = counts, .displacements = from};
    swap(
        on, "all_to_all_v",
        [&](int peer, slot const& theirs) -> block {
          auto const p = static_cast<std::size_t>(peer), me = static_cast<std::size_t>(rank_);
          return {theirs.displacements[me], to[p], theirs.counts[me], out_counts[p]};
        },
        out);
  }

  /// Memory of `bytes` bytes on each rank that all ranks can write. Zero at first.
  class window {
   public:
    struct view_type {
      std::byte* const* parts;
      int rank_, size_;
      int rank() const noexcept { return rank_; }
      int size() const noexcept { return size_; }
      void* peer(int p, std::size_t offset) const noexcept { return parts[p] + offset; }
    };
    std::size_t size_bytes() const noexcept { return part_.size(); }
    view_type view() const noexcept {
      return {parts_.data(), rank_, static_cast<int>(parts_.size())};
    }

   private:
    friend class thread_communicator;
    int rank_ = 0;
    std::vector<std::byte> part_;
    std::vector<std::byte*> parts_;
  };

  /// Collective. A rank keeps its window until no peer writes to it any more.
  window allocate_window(std::size_t bytes) const {
    window w;
    w.rank_ = rank_;
    w.part_.resize(bytes);
    w.parts_.resize(static_cast<std::size_t>(size()));
    mine() = {.window = w.part_.data(), .bytes = bytes};
    group_->meet(rank_, "allocate_window");
    int odd = -1;
    for (int p = 0; p < size(); ++p) {
      w.parts_[static_cast<std::size_t>(p)] = group_->at(p).window;
      if (group_->at(p).bytes != group_->at(0).bytes && odd < 0) odd = p;
    }
    std::size_t const first = group_->at(0).bytes, other = odd < 0 ? 0 : group_->at(odd).bytes;
    group_->meet(rank_, "allocate_window");
    detail::expects(odd < 0, "allocate_window: bytes is ", first, " on rank 0 but ", other,
                    " on rank ", odd, "; all ranks must pass the same");
    return w;
  }
  void exchange_phase(host_context const&) const { group_->meet(rank_, "exchange_phase"); }

 private:
  struct block {
    std::size_t from, to, sent, expected;
  };

  slot& mine() const { return group_->at(rank_); }

  void fixed(host_context const& on, char const* name, void const* in, void* out, std::size_t bytes,
             std::size_t step) const {
    mine() = {.in = in, .bytes = bytes};
    swap(
        on, name,
        [&](int peer, slot const& theirs) -> block {
          return {static_cast<std::size_t>(rank_) * step, static_cast<std::size_t>(peer) * bytes,
                  theirs.bytes, bytes};
        },
        out);
  }

  // Every rank shows its buffer, meets, copies what is its own, and meets again. A disagreement is
  // thrown only after the second meeting: until then a peer may be reading this rank's buffer.
  template <class Block>
  void swap(host_context const& on, char const* name, Block blocks, void* out) const {
    group_->meet(rank_, name);
    std::string wrong;
    for (int step = 0; step < size(); ++step) {
      int const peer = (rank_ + step) % size();
      slot const& theirs = group_->at(peer);
      block const b = blocks(peer, theirs);
      if (b.sent != b.expected)
        wrong = detail::sentence(name, ": rank ", peer, " sends ", b.sent, " bytes to rank ", rank_,
                                 ", which expects ", b.expected);
      else if (b.sent != 0)
        copy(on, static_cast<std::byte*>(out) + b.to,
             static_cast<std::byte const*>(theirs.in) + b.from, b.sent);
    }
    group_->meet(rank_, name);
    if (!wrong.empty()) detail::fail(wrong);
  }
  static void copy(host_context const& on, std::byte* to, std::byte const* from,
                   std::size_t bytes) {
    on.for_each_chunk(
        static_cast<index_t>(bytes), index_t{1} << 20, [&](int, index_t first, index_t last) {
          std::memcpy(to + first, from + first, static_cast<std::size_t>(last - first));
        });
  }

  detail::thread_group* group_;
  int rank_;
};

static_assert(window_communicator<thread_communicator> &&
              variable_communicator<thread_communicator>);

/// Runs f(thread_communicator&) on `ranks` threads, one per rank, and returns when all have ended.
/// Rethrows the exception that came first; the ranks that were waiting for that one end too.
template <class F>
void run_ranks(int ranks, F&& f, std::chrono::milliseconds deadline = std::chrono::minutes(10)) {
  detail::expects(ranks >= 1, "run_ranks: ranks is ", ranks, "; at least 1 is needed");
  detail::thread_group group(ranks, deadline);
  auto const body = [&](int rank) {
    std::exception_ptr failure;
    try {
      thread_communicator comm(group, rank);
      f(comm);
    } catch (...) {
      failure = std::current_exception();
    }
    group.leave(rank, failure);
  };
  std::vector<std::thread> threads;
  threads.reserve(static_cast<std::size_t>(ranks));
  for (int rank = 0; rank < ranks; ++rank) threads.emplace_back(body, rank);
  for (auto& thread : threads) thread.join();
  if (group.first_failure()) std::rethrow_exception(group.first_failure());
}

}  // namespace v0
}  // namespace expar
