// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <mutex>
#include <thread>  // and the clock, without the calendars of <chrono>
#include <utility>
#include <vector>

#if __has_include(<unistd.h>)
#include <unistd.h>
#endif

#include <expar/detail/shared.hpp>
#include <expar/executor.hpp>

namespace expar::inline v0::detail {

/// Where one thread lays out tasks, and others take them.
class job_board {
 public:
  /// Calls f(0) .. f(tasks - 1), with those that serve(). A board that is busy (called from one of
  /// its tasks, or from a second thread) runs the tasks here.
  void run(int tasks, task f) {
    if (busy_.exchange(true, std::memory_order_acquire)) {
      for (int i = 0; i < tasks; ++i) f(i);
      return;
    }
    {
      std::lock_guard lock(mutex_);
      job_ = f, tasks_ = tasks, next_.store(0, std::memory_order_relaxed);
      epoch_.fetch_add(1, std::memory_order_release);
    }
    epoch_.notify_all();
    claim(f, tasks);
    await([this] { return active_.load(std::memory_order_acquire) == 0; });
    for (;;) {
      {
        std::lock_guard lock(mutex_);
        if (active_ == 0) {
          job_ = {};
          break;
        }
      }
      if (int const n = active_; n != 0) active_.wait(n);
    }
    busy_.store(false, std::memory_order_release);
  }
  /// Takes tasks until `done()`, which wake() makes it ask again.
  template <class Done>
  void serve(Done done) {
    for (;;) {
      std::unique_lock lock(mutex_);
      unsigned const seen = epoch_;
      if (done()) return;
      if (job_) {
        task const f = job_;
        int const tasks = tasks_;
        ++active_;
        lock.unlock();
        claim(f, tasks);
        if (--active_ == 0) active_.notify_one();
      } else {
        lock.unlock();
      }
      await([&] { return epoch_.load(std::memory_order_acquire) != seen; });
      epoch_.wait(seen, std::memory_order_acquire);
    }
  }
  void wake() {
    epoch_.fetch_add(1, std::memory_order_release);
    epoch_.notify_all();
  }
  /// Polls for 50 us, and lets other threads run meanwhile: one job often follows another, and to
  /// fall asleep and be woken takes as long.
  template <class Condition>
  static void await(Condition holds) {
    auto const end = std::chrono::steady_clock::now() + std::chrono::microseconds(50);
    while (!holds() && std::chrono::steady_clock::now() < end) std::this_thread::yield();
  }

 private:
  void claim(task f, int tasks) {
    for (int i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < tasks;) f(i);
  }

  // A flag, since a mutex must not be tried by the thread that holds it.
  std::atomic<bool> busy_{false};
  std::mutex mutex_;
  std::atomic<int> next_{0};
  task job_{};
  int tasks_ = 0;
  std::atomic<int> active_{0};
  std::atomic<unsigned> epoch_{0};
};

/// Threads that wait for work: an executor of `threads` tasks at once, the caller's thread among
/// them.
class thread_team : public counted {
 public:
  explicit thread_team(int threads) {
    try {
      for (int i = 1; i < threads; ++i)
        workers_.emplace_back([this] { board_.serve([this] { return stopping_.load(); }); });
    } catch (...) {
      stop();
      throw;
    }
  }
  ~thread_team() { stop(); }
  thread_team(thread_team const&) = delete;
  thread_team& operator=(thread_team const&) = delete;

  int concurrency() const noexcept { return static_cast<int>(workers_.size()) + 1; }
  void run(int tasks, task f) { board_.run(tasks, f); }

 private:
  void stop() {
    // A child that was forked has none of the threads.
    if (process() != owner_) {
      for (auto& worker : workers_) worker.detach();
      return;
    }
    stopping_ = true;
    board_.wake();
    for (auto& worker : workers_) worker.join();
  }
  static long process() {
#if __has_include(<unistd.h>)
    return getpid();
#else
    return 0;
#endif
  }

  long const owner_ = process();
  job_board board_;
  std::atomic<bool> stopping_{false};
  std::vector<std::thread> workers_;
};

}  // namespace expar::inline v0::detail
