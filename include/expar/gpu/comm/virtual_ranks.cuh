// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/gpu/comm/detail/local_ranks.cuh>

namespace expar::inline v0::gpu {

/// Many ranks on one device and one stream: the algorithms of many devices, run and tested on one.
/// One host thread enqueues a phase of every rank before the next phase, so the boundary between
/// kernels is the boundary between phases, and exchange_phase() has nothing to do. Windows are an
/// allocation for each rank, from the memory of the context. The group outlives what is made with
/// it.
class virtual_ranks : public detail::local_collectives<virtual_ranks> {
 public:
  virtual_ranks(context const& ctx, int ranks) : ctx_(ctx), ranks_(ranks) {
    expar::detail::expects(ranks >= 1, "virtual_ranks: ranks is ", ranks, "; at least 1 is needed");
  }

  int size() const noexcept { return ranks_; }
  int first_rank() const noexcept { return 0; }
  int local_ranks() const noexcept { return ranks_; }

  template <class F>
  void on(int, F&& f) const {
    detail::device_guard const here(ctx_.device(), "virtual_ranks");
    f(ctx_);
  }
  void exchange_phase() const noexcept {}

  detail::local_windows allocate_window(std::size_t bytes) const {
    return detail::local_windows::allocate(
        *this, bytes, [](int, context const& ctx) -> context const& { return ctx; });
  }

 private:
  context ctx_;
  int ranks_;
};

static_assert(rank_group<virtual_ranks>);

}  // namespace expar::inline v0::gpu
