// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <concepts>
#include <cstddef>

#include <expar/communicator.hpp>
#include <expar/gpu/context.cuh>

namespace expar::inline v0::gpu {

/// Windows of equal size on all ranks. For a rank that this process drives, `part(rank)` is the
/// address of its own, and `view(rank)` is what its kernels see.
template <class W>
concept rank_windows = std::movable<W> && requires(W const& w, int rank) {
  { w.size_bytes() } -> std::same_as<std::size_t>;
  { w.part(rank) } -> std::same_as<std::byte*>;
  { w.view(rank) } -> window_view;
};

namespace detail {
struct any_work {
  void operator()(context const&) const {}
};
}  // namespace detail

/// Tier 3 on devices: ranks of which one host thread drives those from first_rank() on,
/// local_ranks() of them: all that are in one process, or one.
///   group.on(rank, f)         calls f(context) where that rank's work is enqueued, on its device
///   group.allocate_window(n)  collective; n bytes on every rank; never in steady state
///   group.exchange_phase()    enqueues: work that comes after it on any rank sees what work before
///                             it wrote to any window
/// What a rank does between two phases is one or more kernels that wait for no peer.
template <class G>
concept rank_group = requires(G& group, int rank, std::size_t bytes) {
  { group.size() } -> std::same_as<int>;
  { group.first_rank() } -> std::same_as<int>;
  { group.local_ranks() } -> std::same_as<int>;
  group.on(rank, detail::any_work{});
  { group.allocate_window(bytes) } -> rank_windows;
  group.exchange_phase();
};

/// The rank of a communicator with windows, as a group of which this process drives no other rank.
/// Its windows have data(), the address of the rank's own part. The communicator outlives the
/// group, and the group what is made with it.
template <class Comm>
requires window_communicator<Comm, context>
class one_rank {
 public:
  one_rank(Comm& comm, context const& ctx) : comm_(&comm), ctx_(ctx) {}

  int size() const noexcept { return comm_->size(); }
  int first_rank() const noexcept { return comm_->rank(); }
  int local_ranks() const noexcept { return 1; }

  template <class F>
  void on(int, F&& f) const {
    detail::device_guard const here(ctx_.device(), "one_rank");
    f(ctx_);
  }
  void exchange_phase() const { comm_->exchange_phase(ctx_); }

  auto allocate_window(std::size_t bytes) const {
    detail::device_guard const here(ctx_.device(), "one_rank");
    return windows<decltype(comm_->allocate_window(bytes))>{comm_->allocate_window(bytes)};
  }

 private:
  template <class Window>
  struct windows {
    Window window;
    std::size_t size_bytes() const noexcept { return window.size_bytes(); }
    std::byte* part(int) const noexcept { return static_cast<std::byte*>(window.data()); }
    auto view(int) const noexcept { return window.view(); }
  };

  Comm* comm_;
  context ctx_;
};

}  // namespace expar::inline v0::gpu
