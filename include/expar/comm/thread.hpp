// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <cstring>
#include <exception>
#include <mutex>
#include <thread>  // and with it durations and clocks: <chrono> would bring calendars and streams
#include <vector>

#include <expar/communicator.hpp>

namespace expar::inline v0 {
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
    bool failed = false;
  };
  /// What a rank found wrong between two meetings: written there, and read after the second.
  struct finding {
    int sender = -1;  // none
    std::size_t sent = 0, expected = 0;
    bool stopped = false;  // an exception ended its copies
  };
  /// Whether a rank that is late at a meeting is given up. Not where it may be reading the buffers
  /// of those who wait.
  enum class patience { until_deadline, unlimited };

  thread_group(int ranks, std::chrono::milliseconds deadline)
      : deadline_(deadline), places_(static_cast<std::size_t>(ranks)) {}

  int size() const noexcept { return static_cast<int>(places_.size()); }
  slot& at(int rank) noexcept { return places_[static_cast<std::size_t>(rank)].shown; }
  finding& found(int rank) noexcept { return places_[static_cast<std::size_t>(rank)].found; }

  /// Returns when every rank has come as often as this one, or throws: either all ranks pass a
  /// meeting or none does, so that nobody reads the buffers of a rank that has given up. Throws on
  /// all ranks if they are in different operations.
  void meet(int rank, char const* where, patience wait = patience::until_deadline) {
    if ((state_.load(std::memory_order_acquire) & broken) != 0) report(where);
    auto& mine = places_[static_cast<std::size_t>(rank)];
    auto const turn = mine.arrived.load(std::memory_order_relaxed) + 1;
    auto const all = 2 * turn * static_cast<unsigned long long>(size());
    // Two places in turn: nobody writes one again before all have passed the next meeting.
    mine.operation[turn % 2] = where;
    wait_for_all(rank, turn, all, where, wait);
    for (place const& theirs : places_) {
      char const* const first = places_[0].operation[turn % 2];
      char const* const other = theirs.operation[turn % 2];
      expects(std::strcmp(first, other) == 0, "rank 0 calls ", first, " while rank ",
              static_cast<int>(&theirs - places_.data()), " calls ", other,
              "; all ranks call the same operations in the same order");
    }
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
    std::atomic<unsigned long long> arrived{0};
    std::atomic<bool> left{false};
    char const* operation[2] = {};
    slot shown;
    finding found;
  };

  void wait_for_all(int rank, unsigned long long turn, unsigned long long all, char const* where,
                    patience wait) {
    auto& arrived = places_[static_cast<std::size_t>(rank)].arrived;
    arrived.store(turn, std::memory_order_relaxed);
    auto seen = state_.load(std::memory_order_relaxed);
    while ((seen & broken) == 0 &&
           !state_.compare_exchange_weak(seen, seen + 2, std::memory_order_acq_rel)) {
    }
    auto const passed = [&] { return (seen = state_.load(std::memory_order_acquire)) >= all; };
    // A short spin, then yields: ranks often outnumber cores, and the peer needs this one to come.
    for (int spin = 0; spin < 64; ++spin)
      if (passed()) return;
    auto const started = std::chrono::steady_clock::now();
    for (long waits = 0; !passed(); ++waits) {
      if ((seen & broken) != 0) report(where);
      if (waits % 64 == 0) {
        bool const late = wait == patience::until_deadline &&
                          std::chrono::steady_clock::now() - started > deadline_;
        for (int step = 1; step < size(); ++step)
          give_up_on((rank + step) % size(), turn, all, late);
      }
      if (waits > 4096)
        std::this_thread::sleep_for(std::chrono::microseconds(100));
      else
        std::this_thread::yield();
    }
  }

  // Breaks the group if `peer` has not come for this turn and never will, or is late. Arrivals stop
  // counting in the same atomic step, so that all ranks agree on which meetings took place.
  void give_up_on(int peer, unsigned long long turn, unsigned long long all, bool late) {
    auto const& theirs = places_[static_cast<std::size_t>(peer)];
    bool const left = theirs.left.load(std::memory_order_acquire);
    if (!(left || late) || theirs.arrived.load(std::memory_order_relaxed) >= turn) return;
    std::lock_guard lock(mutex_);
    auto seen = state_.load(std::memory_order_acquire);
    do {
      if (seen >= all || (seen & broken) != 0) return;
    } while (!state_.compare_exchange_weak(seen, seen | broken, std::memory_order_acq_rel));
    missing_ = peer, missing_left_ = left;
  }
  [[noreturn]] void report(char const* where) {
    std::unique_lock lock(mutex_);
    int const peer = missing_;
    bool const left = missing_left_;
    lock.unlock();
    if (left) fail(where, ": rank ", peer, " has left and will not come");
    fail(where, ": rank ", peer, " did not come within ", deadline_.count(), " ms");
  }

  static constexpr unsigned long long broken = 1;

  std::chrono::milliseconds deadline_;
  std::vector<place> places_;
  // Twice the number of arrivals, and whether it is broken.
  std::atomic<unsigned long long> state_{0};
  std::mutex mutex_;
  int missing_ = -1;
  bool missing_left_ = false;
  std::exception_ptr first_failure_;
};

}  // namespace detail

/// One rank of several that are threads of one process; run_ranks() makes them. All tiers: peers
/// read each other's buffers, so a byte is copied once. A light handle; use it on the thread of its
/// rank. A rank that throws or returns while others wait for it makes them throw; a rank that
/// neither comes nor leaves makes them throw after the deadline of run_ranks(); ranks that call
/// different operations all throw.
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
    bool failed = false;
    try {
      w.part_.resize(bytes);
      w.parts_.resize(static_cast<std::size_t>(size()));
    } catch (std::exception const&) {
      failed = true;
    }
    mine() = {.window = w.part_.data(), .bytes = bytes, .failed = failed};
    group_->meet(rank_, "allocate_window");
    int without = -1;
    for (int p = 0; p < size(); ++p)
      if (group_->at(p).failed && without < 0) without = p;
    if (without >= 0) {
      group_->meet(rank_, "allocate_window", detail::thread_group::patience::unlimited);
      detail::fail("allocate_window: rank ", without, " has no memory for ", bytes, " bytes");
    }
    int odd = -1;
    for (int p = 0; p < size(); ++p) {
      w.parts_[static_cast<std::size_t>(p)] = group_->at(p).window;
      if (group_->at(p).bytes != group_->at(0).bytes && odd < 0) odd = p;
    }
    std::size_t const first = group_->at(0).bytes, other = odd < 0 ? 0 : group_->at(odd).bytes;
    group_->meet(rank_, "allocate_window", detail::thread_group::patience::unlimited);
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
  // thrown after the second meeting, by every rank: until then a peer may be reading this rank's
  // buffer.
  template <class Block>
  void swap(host_context const& on, char const* name, Block blocks, void* out) const {
    group_->meet(rank_, name);
    auto& found = group_->found(rank_) = {};
    std::exception_ptr failure;
    try {
      for (int step = 0; step < size(); ++step) {
        int const peer = (rank_ + step) % size();
        slot const& theirs = group_->at(peer);
        block const b = blocks(peer, theirs);
        if (b.sent != b.expected)
          found = {peer, b.sent, b.expected, false};
        else if (b.sent != 0)
          copy(on, static_cast<std::byte*>(out) + b.to,
               static_cast<std::byte const*>(theirs.in) + b.from, b.sent);
      }
    } catch (...) {
      failure = std::current_exception();
      found.stopped = true;
    }
    group_->meet(rank_, name, detail::thread_group::patience::unlimited);
    if (failure) std::rethrow_exception(failure);
    for (int rank = 0; rank < size(); ++rank) {
      auto const& wrong = group_->found(rank);
      detail::expects(!wrong.stopped, name, ": rank ", rank, " could not copy what it was sent");
      detail::expects(wrong.sender < 0, name, ": rank ", wrong.sender, " sends ", wrong.sent,
                      " bytes to rank ", rank, ", which expects ", wrong.expected);
    }
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
  for (int rank = 0; rank < ranks; ++rank) {
    try {
      threads.emplace_back(body, rank);
    } catch (...) {  // no thread for this rank: the others must not wait for it
      group.leave(rank, std::current_exception());
    }
  }
  for (auto& thread : threads) thread.join();
  if (group.first_failure()) std::rethrow_exception(group.first_failure());
}

}  // namespace expar::inline v0
