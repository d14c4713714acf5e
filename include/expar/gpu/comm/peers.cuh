// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory>
#include <span>
#include <vector>

#include <expar/gpu/comm/detail/local_ranks.cuh>

namespace expar::inline v0::gpu {

namespace detail {

/// Memory that peers can be given access to, which memory of a pool is not.
struct peer_memory {
  void* allocate(cudaStream_t, std::size_t bytes) const {
    void* p = nullptr;
    check(cudaMalloc(&p, bytes), "cudaMalloc", "allocate_window");
    return p;
  }
  void deallocate(cudaStream_t, void* p, std::size_t) const noexcept {
    static_cast<void>(cudaFree(p));
  }
};

}  // namespace detail

/// Ranks that are the devices of one process, which read and write each other's memory (NVLink, or
/// PCIe with peer access). One host thread drives them all, phase by phase; exchange_phase() makes
/// every stream wait for every other by events, without the host. The group outlives what is made
/// with it.
///
/// It needs several devices, and has not been run on them. The tests put four ranks on as many
/// devices as there are, emulated ones or one real one.
class peer_ranks : public detail::local_collectives<peer_ranks> {
 public:
  /// Where a rank works: a device, and a context on a stream of that device.
  struct place {
    int device;
    context on;
  };

  /// Enables access between all pairs of devices, and leaves it enabled. Throws if a pair has none.
  explicit peer_ranks(std::span<place const> places) : places_(places.begin(), places.end()) {
    expar::detail::expects(!places_.empty(),
                           "peer_ranks: there are no places; at least 1 is needed");
    for (place const& p : places_) {
      detail::device_guard const here(p.device, "peer_ranks");
      for (place const& other : places_) enable(p.device, other.device);
      cudaEvent_t made = nullptr;
      detail::check(cudaEventCreateWithFlags(&made, cudaEventDisableTiming),
                    "cudaEventCreateWithFlags", "peer_ranks");
      phases_.emplace_back(made);
    }
  }
  peer_ranks(peer_ranks const&) = delete;

  int size() const noexcept { return static_cast<int>(places_.size()); }
  int first_rank() const noexcept { return 0; }
  int local_ranks() const noexcept { return size(); }

  template <class F>
  void on(int rank, F&& f) const {
    place const& p = places_[static_cast<std::size_t>(rank)];
    detail::device_guard const here(p.device, "peer_ranks");
    f(p.on);
  }
  void exchange_phase() const {
    for (int r = 0; r < size(); ++r)
      on(r, [&](context const& ctx) {
        detail::check(cudaEventRecord(phase(r), ctx.stream()), "cudaEventRecord", "exchange_phase");
      });
    for (int r = 0; r < size(); ++r)
      on(r, [&](context const& ctx) {
        for (int s = 0; s < size(); ++s)
          if (s != r)
            detail::check(cudaStreamWaitEvent(ctx.stream(), phase(s), 0), "cudaStreamWaitEvent",
                          "exchange_phase");
      });
  }

  detail::local_windows allocate_window(std::size_t bytes) {
    return detail::local_windows::allocate(
        *this, bytes, [this](int, context const& ctx) { return context(ctx.stream(), memory_); });
  }

 private:
  struct destroy {
    void operator()(cudaEvent_t e) const noexcept { static_cast<void>(cudaEventDestroy(e)); }
  };

  cudaEvent_t phase(int rank) const { return phases_[static_cast<std::size_t>(rank)].get(); }

  static void enable(int device, int peer) {
    if (device == peer) return;
    int can = 0;
    detail::check(cudaDeviceCanAccessPeer(&can, device, peer), "cudaDeviceCanAccessPeer",
                  "peer_ranks");
    expar::detail::expects(can != 0, "peer_ranks: device ", device,
                           " cannot access the memory of device ", peer);
    cudaError_t const code = cudaDeviceEnablePeerAccess(peer, 0);
    if (code == cudaErrorPeerAccessAlreadyEnabled)
      static_cast<void>(cudaGetLastError());
    else
      detail::check(code, "cudaDeviceEnablePeerAccess", "peer_ranks");
  }

  std::vector<place> places_;
  std::vector<std::unique_ptr<CUevent_st, destroy>> phases_;
  detail::peer_memory memory_;
};

static_assert(rank_group<peer_ranks>);

}  // namespace expar::inline v0::gpu
