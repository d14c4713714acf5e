// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory_resource>
#include <new>
#include <stdexcept>

#include <expar/exchange/collectives.hpp>
#include <expar/exchange/hops.hpp>
#include <expar/expar.hpp>

namespace chaos {

/// What goes wrong on one rank.
enum class fault {
  argument,  // of an operation
  view,      // of a tensor of the caller's throws
  pool,      // of the caller's throws
  memory,    // there is none
  before,    // the communicator throws, and this rank has not come
  after,     // the communicator throws, and all has been exchanged
  skip,      // a call is left out
  object,    // the operation of another object is called
  batch,     // another batch of the object is passed
  user,      // an exception of the caller's ends this batch, and the next one begins
  sum,       // sum_counts is called meanwhile
  report     // gather_report is called meanwhile
};
constexpr char const* fault_names[] = {"wrong argument", "view() throws",  "the pool throws",
                                       "no memory",      "throws before",  "throws after",
                                       "skipped call",   "another object", "another batch",
                                       "user exception", "sum_counts",     "gather_report"};
constexpr int faults = 12;
constexpr char const* name_of(fault f) {
  return fault_names[static_cast<int>(f)];
}

/// What all that the caller brings on a rank asks whether it has to fail.
class trap {
 public:
  /// At the n-th time from now; then once, or until disarm().
  void arm(fault what, int n, bool for_good) {
    what_ = what, left_ = n, for_good_ = for_good, fired = false;
  }
  void disarm() { left_ = -1; }
  bool springs(fault f) {
    if (f != what_ || left_ < 0 || (left_ > 0 && left_-- > 0)) return false;
    if (!for_good_) disarm();
    return fired = true;
  }
  bool fired = false;

 private:
  fault what_{};
  int left_ = -1;
  bool for_good_ = false;
};

template <class T, int Rank>
struct tensor {
  trap* on_rank;
  expar::tensor_view<T, Rank> inner;
};

class resource final : public std::pmr::memory_resource {
 public:
  explicit resource(trap& on_rank) : trap_(&on_rank) {}

 private:
  void* do_allocate(std::size_t bytes, std::size_t alignment) override {
    if (trap_->springs(fault::memory)) throw std::bad_alloc();
    return std::pmr::new_delete_resource()->allocate(bytes, alignment);
  }
  void do_deallocate(void* p, std::size_t bytes, std::size_t alignment) override {
    std::pmr::new_delete_resource()->deallocate(p, bytes, alignment);
  }
  bool do_is_equal(memory_resource const& other) const noexcept override { return this == &other; }

  trap* trap_;
};

/// It fails when half of the work is done.
struct pool {
  trap* on_rank;
  int concurrency() const { return 3; }
  void run(int n, expar::task work) const {
    bool const fails = on_rank->springs(fault::pool);
    for (int i = 0; i < n; ++i) {
      if (fails && i == n / 2) throw std::runtime_error("the pool is gone");
      work(i);
    }
  }
};

/// `Checks`: whether it says that it checks sizes. `by_v`: whether all_to_all_v serves for all, so
/// that only sizes tell collectives apart.
template <class Base, bool Checks>
class communicator {
 public:
  static constexpr expar::communicator_traits traits{expar::memory_space::host, true, Checks};

  communicator(Base& to, trap& on_rank, bool by_v) : to_(to), trap_(on_rank), by_v_(by_v) {}
  int rank() const noexcept { return to_.rank(); }
  int size() const noexcept { return to_.size(); }

  void all_to_all_v(expar::host_context const& on, void const* in, expar::byte_counts counts,
                    expar::byte_counts from, void* out, expar::byte_counts out_counts,
                    expar::byte_counts at) {
    guarded([&] { to_.all_to_all_v(pool_of(on), in, counts, from, out, out_counts, at); });
  }
  void all_to_all(expar::host_context const& on, void const* in, void* out, std::size_t n) {
    guarded([&] {
      by_v_ ? table_.run(pool_of(on), to_, in, n, out, n) : to_.all_to_all(pool_of(on), in, out, n);
    });
  }
  void all_gather(expar::host_context const& on, void const* in, void* out, std::size_t n) {
    guarded([&] {
      by_v_ ? table_.run(pool_of(on), to_, in, 0, out, n) : to_.all_gather(pool_of(on), in, out, n);
    });
  }
  void barrier(expar::host_context const& on) {
    guarded([&] { to_.barrier(on); });
  }
  auto allocate_window(std::size_t n) requires expar::window_communicator<Base> {
    return guarded([&] { return to_.allocate_window(n); });
  }
  void exchange_phase(expar::host_context const& on) requires expar::window_communicator<Base> {
    guarded([&] { to_.exchange_phase(on); });
  }

 private:
  /// A pool that throws is a communicator that throws, of which those that do not check know
  /// nothing.
  expar::host_context const& pool_of(expar::host_context const& on) const {
    return Checks ? on : alone_;
  }
  template <class F>
  auto guarded(F f) {
    fail_at(fault::before);
    if constexpr (std::is_void_v<decltype(f())>) {
      f();
      fail_at(fault::after);
    } else {
      auto made = f();
      fail_at(fault::after);
      return made;
    }
  }
  void fail_at(fault f) {
    if (trap_.springs(f)) throw std::runtime_error("the network is gone");
  }

  Base& to_;
  trap& trap_;
  bool by_v_;
  expar::host_context alone_;
  expar::detail::fixed_counts table_{std::pmr::get_default_resource()};
};

}  // namespace chaos

template <class T, int Rank>
struct expar::tensor_traits<chaos::tensor<T, Rank>> {
  static auto view(chaos::tensor<T, Rank> const& t) {
    if (t.on_rank->springs(chaos::fault::view)) throw std::runtime_error("the tensor is gone");
    return t.inner;
  }
};
