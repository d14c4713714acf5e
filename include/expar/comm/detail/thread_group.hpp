// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <cstring>
#include <exception>
#include <mutex>
#include <thread>  // and with it durations and clocks: <chrono> would bring calendars and streams
#include <utility>
#include <vector>

#include <expar/comm/detail/thread_window.hpp>
#include <expar/communicator.hpp>

namespace expar::inline v0::detail {

/// Which of several threads will not come any more. All groups of these threads know it.
class thread_roster : public counted {
 public:
  explicit thread_roster(int threads) : left_(static_cast<std::size_t>(threads)) {}

  /// `failure` is the exception of the thread, if it ended by one.
  void leave(int thread, std::exception_ptr failure) noexcept {
    if (failure) {
      std::lock_guard lock(mutex_);
      if (!first_failure_) first_failure_ = failure;
    }
    left_[static_cast<std::size_t>(thread)].store(true, std::memory_order_release);
  }
  bool has_left(int thread) const noexcept {
    return left_[static_cast<std::size_t>(thread)].load(std::memory_order_acquire);
  }
  /// Once all threads have left.
  std::exception_ptr first_failure() const noexcept { return first_failure_; }

 private:
  std::vector<std::atomic<bool>> left_;
  std::mutex mutex_;
  std::exception_ptr first_failure_;
};

/// What ranks that are threads of one process share: a place per rank to show addresses, and a way
/// to meet. An operation is begun by all of them, and ended by all where they read what others
/// show.
class thread_group : public counted {
 public:
  /// What a rank shows to the others from where it begins an operation until the next one.
  struct slot {
    void const* in = nullptr;
    byte_counts counts{}, displacements{};
    std::size_t bytes = 0;
    bool failed = false;
    shared<window_memory> window{};
  };
  /// What a rank found wrong in an operation: written before its end, and read after it.
  struct finding {
    int sender = -1;  // none
    std::size_t sent = 0, expected = 0;
    bool stopped = false;  // an exception ended its copies
  };
  /// Whether a rank that is late is given up. Not where it may be reading the buffers of those who
  /// wait.
  enum class patience { until_deadline, unlimited };

  /// `ranks` threads and no others.
  thread_group(int ranks, std::chrono::milliseconds deadline)
      : thread_group(shared(new thread_roster(ranks)), all_of(ranks), deadline) {}

  int size() const noexcept { return static_cast<int>(places_.size()); }
  slot& at(int rank) noexcept { return places_[index(rank)].shown; }
  finding& found(int rank) noexcept { return places_[index(rank)].found; }
  thread_roster& roster() const noexcept { return *roster_; }

  /// Shows `mine`, and returns when every rank has begun the operation: either all do or none.
  /// Throws on all ranks if they begin different ones, and lost_rank for one that does not come.
  void begin(int rank, char const* name, slot mine) {
    if ((state_.load(std::memory_order_acquire) & broken) != 0) report(name);
    place& own = places_[index(rank)];
    // Two places in turn: nobody writes one again before all have passed the next meeting.
    auto const turn = (own.arrived.load(std::memory_order_relaxed) + 1) % 2;
    own.operation[turn] = name;
    own.shown = std::move(mine);
    meet(rank, name, patience::until_deadline);
    char const* const first = places_[0].operation[turn];
    for (int r = 1; r < size(); ++r)
      if (char const* const other = places_[index(r)].operation[turn];
          std::strcmp(first, other) != 0)
        fail<disagreement>("rank 0 calls ", first, " while rank ", r, " calls ", other,
                           "; all ranks call the same operations in the same order");
  }
  /// Returns when every rank has come to the end of the operation.
  void end(int rank, char const* name, patience wait) { meet(rank, name, wait); }

  std::chrono::milliseconds deadline() const noexcept { return deadline_; }
  /// Whether the group is broken. Breaks it where `peer` is late, or has left without being
  /// `there`.
  template <class There>
  bool loses(int peer, bool late, There there) {
    if ((state_.load(std::memory_order_acquire) & broken) != 0) return true;
    bool const left = roster_->has_left(threads_[index(peer)]);
    if (there() || !(left || late)) return false;
    std::lock_guard lock(mutex_);
    if ((state_.fetch_or(broken, std::memory_order_acq_rel) & broken) == 0)
      missing_ = peer, missing_left_ = left;
    return true;
  }
  /// Throws what broke the group.
  [[noreturn]] void report(char const* name) {
    std::unique_lock lock(mutex_);
    int const peer = missing_;
    bool const left = missing_left_;
    lock.unlock();
    if (left)
      throw lost_rank(peer,
                      sentence("expar: ", name, ": rank ", peer, " has left and will not come"));
    throw lost_rank(peer, sentence("expar: ", name, ": rank ", peer, " did not come within ",
                                   deadline_.count(), " ms"));
  }

  /// The group of all ranks but `lost`, which is one for all that ask.
  shared<thread_group> without(int lost) {
    std::lock_guard lock(mutex_);
    if (without_.empty()) without_.resize(places_.size());
    auto& group = without_[index(lost)];
    if (group.get() == nullptr) {
      auto rest = threads_;
      rest.erase(rest.begin() + lost);
      group = shared(new thread_group(roster_, std::move(rest), deadline_));
    }
    return group;
  }

 private:
  struct alignas(64) place {
    std::atomic<unsigned long long> arrived{0};
    char const* operation[2] = {};
    slot shown;
    finding found;
  };

  thread_group(shared<thread_roster> roster, std::vector<int> threads,
               std::chrono::milliseconds deadline)
      : roster_(std::move(roster)),
        threads_(std::move(threads)),
        deadline_(deadline),
        places_(threads_.size()) {}

  static std::size_t index(int rank) { return static_cast<std::size_t>(rank); }
  static std::vector<int> all_of(int ranks) {
    std::vector<int> all;
    for (int r = 0; r < ranks; ++r) all.push_back(r);
    return all;
  }

  /// Returns when every rank has come as often as this one, or throws: either all ranks pass a
  /// meeting or none does, so that nobody reads the buffers of a rank that has given up.
  void meet(int rank, char const* name, patience wait) {
    auto& arrived = places_[index(rank)].arrived;
    auto const turn = arrived.load(std::memory_order_relaxed) + 1;
    auto const all = 2 * turn * static_cast<unsigned long long>(size());
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
      if ((seen & broken) != 0) report(name);
      if (waits % 64 == 0) {
        using milliseconds = std::chrono::milliseconds;
        auto const waited = std::chrono::steady_clock::now() - started;
        bool const late = wait == patience::until_deadline &&
                          std::chrono::duration_cast<milliseconds>(waited) >= deadline_;
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
    bool const left = roster_->has_left(threads_[index(peer)]);
    auto const& arrived = places_[index(peer)].arrived;
    if (!(left || late) || arrived.load(std::memory_order_relaxed) >= turn) return;
    std::lock_guard lock(mutex_);
    auto seen = state_.load(std::memory_order_acquire);
    do {
      if (seen >= all || (seen & broken) != 0) return;
    } while (!state_.compare_exchange_weak(seen, seen | broken, std::memory_order_acq_rel));
    missing_ = peer, missing_left_ = left;
  }
  static constexpr unsigned long long broken = 1;

  shared<thread_roster> const roster_;
  std::vector<int> const threads_;  // of the ranks: their numbers in the roster
  std::chrono::milliseconds const deadline_;
  std::vector<place> places_;
  // Twice the number of arrivals, and whether it is broken.
  std::atomic<unsigned long long> state_{0};
  std::mutex mutex_;  // of what follows
  int missing_ = -1;
  bool missing_left_ = false;
  std::vector<shared<thread_group>> without_;  // empty before the first
};

}  // namespace expar::inline v0::detail
