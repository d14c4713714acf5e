// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <exception>
#include <memory_resource>
#include <mutex>
#include <type_traits>

#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#endif

#include <expar/detail/thread_team.hpp>
#include <expar/executor.hpp>
#include <expar/tensor.hpp>

namespace expar::inline v0 {

namespace detail {

inline index_t cache_bytes_here() {
  constexpr index_t most = 16 << 20;
#if defined(_SC_LEVEL3_CACHE_SIZE)
  static index_t const found = sysconf(_SC_LEVEL3_CACHE_SIZE) / 2;
  return found > 0 && found < most ? found : most;
#else
  return most;
#endif
}

}  // namespace detail

/// Where host work runs: its threads and its memory. Every operation has finished when it returns,
/// and gives the same bytes for any number of threads. Copies share the threads; a context may be
/// used by several threads at once (an operation that finds its threads taken runs on the caller's
/// alone).
class host_context {
 public:
  static constexpr memory_space space = memory_space::host;

  /// The caller's thread, and the default memory resource.
  host_context() = default;

  /// `threads` threads (the caller's among them) and a memory resource for what an operation needs
  /// while it runs; the resource outlives the context. Threads without work poll for 50 us, so that
  /// the next operation finds them awake, and then sleep.
  explicit host_context(int threads,
                        std::pmr::memory_resource* memory = std::pmr::get_default_resource())
      : memory_(memory) {
    detail::expects(threads >= 1, "host_context: threads is ", threads, "; at least 1 is needed");
    detail::expects(memory != nullptr, "host_context: memory is null; a resource is needed");
    if (threads == 1) return;
    try {
      team_ = detail::shared(new detail::thread_team(threads));
    } catch (std::exception const& e) {
      detail::fail("host_context: threads is ", threads, ", more than can be had: ", e.what());
    }
    bind(*team_);
  }

  /// The caller's own pool, which outlives the context.
  template <executor E>
  explicit host_context(E& pool,
                        std::pmr::memory_resource* memory = std::pmr::get_default_resource())
      : memory_(memory) {
    detail::expects(memory != nullptr, "host_context: memory is null; a resource is needed");
    bind(pool);
  }

  int threads() const noexcept { return threads_; }

  /// Bytes that stay in the caches from one operation to the next. Where one reads and writes more,
  /// it writes past the caches, which would read each line first and give it up before it is used.
  /// Unless set: half of the last level of this machine, at most 16 MiB, since virtual machines
  /// tell of caches that they share with others.
  index_t cache_bytes() const noexcept {
    return cache_bytes_ >= 0 ? cache_bytes_ : detail::cache_bytes_here();
  }
  void set_cache_bytes(index_t bytes) {
    detail::expects(bytes >= 0, "host_context: cache_bytes is ", bytes, "; it is at least 0");
    cache_bytes_ = bytes;
  }
  std::pmr::memory_resource* memory() const noexcept { return memory_; }

  /// How many chunks for_each_chunk() makes of n items, of which one chunk holds at least `grain`.
  int chunks(index_t n, index_t grain) const noexcept {
    if (threads_ == 1) return 1;
    index_t const most = grain < 1 ? n : n / grain;
    return static_cast<int>(most < 1 ? 1 : most < threads_ ? most : threads_);
  }

  /// Calls f(chunk, first, last) for consecutive ranges that cover [0, n), at once where there are
  /// threads, and returns when all are done. Rethrows the exception of one chunk.
  template <class F>
  void for_each_chunk(index_t n, index_t grain, F&& f) const {
    int const parts = chunks(n, grain);
    auto const bound = [&](index_t part) { return n / parts * part + n % parts * part / parts; };
    if (parts == 1) {
      f(0, index_t{0}, n);
      return;
    }
    std::exception_ptr failure;
    std::mutex guard;
    auto body = [&](int part) {
      try {
        f(part, bound(part), bound(part + 1));
      } catch (...) {
        std::lock_guard lock(guard);
        if (!failure) failure = std::current_exception();
      }
    };
    run_(pool_, parts, task(body));
    if (failure) std::rethrow_exception(failure);
  }

 private:
  template <class E>
  void bind(E& pool) {
    int const n = static_cast<int>(pool.concurrency());
    pool_ = const_cast<std::remove_const_t<E>*>(&pool);
    threads_ = n < 1 ? 1 : n;
    run_ = [](void* p, int tasks, task t) { static_cast<E*>(p)->run(tasks, t); };
  }

  detail::shared<detail::thread_team> team_;
  void* pool_ = nullptr;
  void (*run_)(void*, int, task) = nullptr;
  int threads_ = 1;
  index_t cache_bytes_ = -1;  // as detected
  std::pmr::memory_resource* memory_ = std::pmr::get_default_resource();
};

}  // namespace expar::inline v0
