// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <concepts>
#include <cstddef>

#include <expar/communicator.hpp>
#include <expar/gpu/context.cuh>

namespace expar {
inline namespace v0 {
namespace gpu {

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

}  // namespace gpu
}  // namespace v0
}  // namespace expar
