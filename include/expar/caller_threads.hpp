// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <atomic>
#include <exception>

#include <expar/context.hpp>

namespace expar::inline v0 {

/// Threads that the caller has already, for callers that are inside a parallel region: of OpenMP,
/// or of a graph whose every thread is told its index and their number, as ggml does (ith, nth).
///
///   expar::caller_threads all(n);                    // once, for n threads
///   all.run(i, [&](expar::host_context const& ctx) { expar::encode(ctx, plan, tokens, rows); });
///
/// Every thread calls run() with its index, 0 to n - 1. Thread 0 alone runs the function; the
/// others work on what operations on `ctx` divide, whatever they are. It returns on all threads
/// when all have come and the function has ended, and throws its exception on all of them. One
/// region at a time; every thread takes part in each. Waits as a barrier does: for a thread that
/// does not come, for ever. Throws on the thread whose index is not 0 to n - 1; the constructor,
/// where n is less than 1 or memory is null.
class caller_threads {
 public:
  explicit caller_threads(int threads,
                          std::pmr::memory_resource* memory = std::pmr::get_default_resource())
      : all_(threads), context_(all_, memory) {}
  caller_threads(caller_threads const&) = delete;
  caller_threads& operator=(caller_threads const&) = delete;

  /// The context of the functions, of which the cache may be set.
  host_context& context() noexcept { return context_; }

  template <class F>
  void run(int thread, F&& f) {
    detail::expects(thread >= 0 && thread < all_.threads, "caller_threads: thread is ", thread,
                    "; it lies in 0 .. threads - 1 = ", all_.threads - 1);
    // Of two regions in turn: all have come to one before any of them leaves the next.
    unsigned const region = ended_.load(std::memory_order_acquire);
    std::exception_ptr& failure = failures_[region % 2];
    if (thread == 0) {
      failure = nullptr;
      try {
        f(static_cast<host_context const&>(context_));
      } catch (...) {
        failure = std::current_exception();
      }
      while (arrived_.load(std::memory_order_acquire) != all_.threads - 1)
        std::this_thread::yield();
      arrived_.store(0, std::memory_order_relaxed);
      ended_.store(region + 1, std::memory_order_release);
      all_.board.wake();
    } else {
      arrived_.fetch_add(1, std::memory_order_acq_rel);
      all_.board.serve([&] { return ended_.load(std::memory_order_acquire) != region; });
    }
    if (failure) std::rethrow_exception(failure);
  }

 private:
  /// The executor of the context.
  struct everybody {
    explicit everybody(int n) : threads(n) {
      detail::expects(n >= 1, "caller_threads: threads is ", n, "; at least 1 is needed");
    }
    int concurrency() const noexcept { return threads; }
    void run(int tasks, task t) { board.run(tasks, t); }

    int threads;
    detail::job_board board;
  };

  everybody all_;
  host_context context_;
  std::atomic<int> arrived_{0};
  std::atomic<unsigned> ended_{0};
  std::exception_ptr failures_[2];
};

}  // namespace expar::inline v0
