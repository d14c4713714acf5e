// SPDX-License-Identifier: Apache-2.0
#pragma once

#if !__has_include(<nccl_device.h>)
#error "expar/comm/nccl_window.cuh needs <nccl_device.h>, which NCCL has from version 2.28 on"
#endif
#if !defined(__CUDACC__)
#error "expar/comm/nccl_window.cuh has kernels: compile with nvcc"
#endif
#include <nccl.h>
// nvcc does not treat the folder of the toolkit as a system folder, and these headers shadow names.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wshadow"
#pragma GCC diagnostic ignored "-Wunused-parameter"
#include <nccl_device.h>
#pragma GCC diagnostic pop

#include <algorithm>
#include <memory>
#include <vector>

#include <expar/comm/nccl.hpp>
#include <expar/config.hpp>
#include <expar/gpu/detail/launch.cuh>

namespace expar::inline v0 {

/// What a kernel sees of a window: the parts of all ranks, by loads and stores over NVLink. A part
/// has another address here than nccl_window::data(); what one kernel writes through one of them is
/// read through the other by later kernels only.
struct nccl_window_view {
  ncclWindow_t window = nullptr;
  int rank_ = 0, size_ = 0;

  EXPAR_HD int rank() const noexcept { return rank_; }
  EXPAR_HD int size() const noexcept { return size_; }
  __device__ void* peer(int p, std::size_t offset) const {
    return ncclGetLsaPointer(window, offset, p);
  }
};

namespace detail {

/// All threads of one block per rank: what they and the kernels before them in the stream wrote, to
/// memory of any rank, is visible to all ranks when it returns.
__device__ inline void meet_peers(ncclDevComm const& comm) {
  ncclLsaBarrierSession<ncclCoopCta> session(ncclCoopCta(), comm, ncclTeamTagLsa(), 0);
  session.sync(ncclCoopCta(), cuda::memory_order_acq_rel);
}

template <int = 0>
__global__ void nccl_phase(ncclDevComm const comm) {
  meet_peers(comm);
}

/// "2.28.9" for 22809.
inline sentence nccl_version_text(int code) {
  int const unit = code < 10000 ? 1000 : 10000;  // the code had a digit less up to 2.8
  return sentence(code / unit, ".", code % unit / 100, ".", code % 100);
}

}  // namespace detail

/// Memory of equal size on every rank that kernels of every rank can write. Owns its part, which is
/// zero at first. It ends after the work that uses it has ended on all ranks, and before the NCCL
/// communicator.
class nccl_window {
 public:
  std::size_t size_bytes() const noexcept { return bytes_; }
  nccl_window_view view() const noexcept { return {part_->window, rank_, size_}; }
  /// This rank's part.
  void* data() const noexcept { return part_->memory; }

 private:
  friend class nccl_window_communicator;
  struct part {
    ncclComm_t comm;
    void* memory = nullptr;
    ncclWindow_t window = nullptr;

    explicit part(ncclComm_t c) : comm(c) {}
    part(part const&) = delete;
    ~part() {
      if (window != nullptr) static_cast<void>(ncclCommWindowDeregister(comm, window));
      if (memory != nullptr) static_cast<void>(ncclMemFree(memory));
    }
  };

  nccl_window(ncclComm_t comm, int rank, int size, std::size_t bytes)
      : part_(std::make_unique<part>(comm)), rank_(rank), size_(size), bytes_(bytes) {}

  std::unique_ptr<part> part_;
  int rank_, size_;
  std::size_t bytes_;
};

/// An nccl_communicator with windows, by NCCL's device API: all ranks reach each other by loads and
/// stores (NVLink). exchange_phase is one small kernel in which the ranks meet; it is enqueued like
/// all operations, and one of them is under way at a time. Ranks run at once, so a kernel may wait
/// for the write of a peer.
///
/// The view and the meeting are tested on emulated ranks, the rest against a stand-in for NCCL; not
/// run on several GPUs.
class nccl_window_communicator : public nccl_communicator {
 public:
  using window = nccl_window;

  /// Collective, never during capture, and slow: once, before the work begins. Throws on all ranks
  /// if NCCL is not the version that this was compiled with (NCCL's device structures differ from
  /// one to the next), if it has no symmetric memory here, or if not all ranks reach each other.
  explicit nccl_window_communicator(ncclComm_t comm) : nccl_communicator(comm) {
    int running = 0;
    check(name, "ncclGetVersion", ncclGetVersion(&running));
    detail::expects(running == NCCL_VERSION_CODE, name, ": compiled with NCCL ",
                    detail::nccl_version_text(NCCL_VERSION_CODE), " but runs with NCCL ",
                    detail::nccl_version_text(running), "; they must be the same version");
#if defined(NCCL_DEV_COMM_REQUIREMENTS_INITIALIZER)
    ncclDevCommRequirements needs = NCCL_DEV_COMM_REQUIREMENTS_INITIALIZER;
#else
    ncclDevCommRequirements needs{};
#endif
    needs.lsaBarrierCount = 1;
    auto on_device = std::make_unique<ncclDevComm>();
    collective(name, "ncclDevCommCreate", ncclDevCommCreate(comm, &needs, on_device.get()));
    on_device_ = {on_device.release(), destroy{comm}};
    int const reached = ncclTeamLsa(*on_device_).nRanks;
    detail::expects(reached == size(), name, ": rank ", rank(), " reaches ", reached, " of ",
                    size(), " ranks by loads and stores; windows need all of them");
  }

  /// Collective, never during capture, and slow: it waits for all ranks. Throws on all ranks if
  /// they pass different sizes or one of them has no memory left.
  window allocate_window(std::size_t bytes) const {
    window w(native_handle(), rank(), size(), bytes);
    // A rank without memory still takes part, so that the others do not wait for it.
    void* memory = nullptr;
    ncclResult_t const got = ncclMemAlloc(&memory, bytes != 0 ? bytes : 1);
    if (got == ncclSuccess) w.part_->memory = memory;
    auto const sizes = begin_window(memory, got == ncclSuccess ? bytes : no_memory, bytes);
    for (std::size_t rank = 0; rank < sizes.size(); ++rank)
      detail::expects(sizes[rank] != no_memory, "allocate_window: rank ", rank,
                      " has no memory for ", bytes, " bytes");
    for (std::size_t rank = 0; rank < sizes.size(); ++rank)
      detail::expects(sizes[rank] == sizes[0], "allocate_window: bytes is ", sizes[0],
                      " on rank 0 but ", sizes[rank], " on rank ", rank,
                      "; all ranks must pass the same");
    collective("allocate_window", "ncclCommWindowRegister",
               ncclCommWindowRegister(native_handle(), memory, bytes != 0 ? bytes : 1,
                                      &w.part_->window, NCCL_WIN_COLL_SYMMETRIC));
    detail::expects(w.part_->window != nullptr,
                    "allocate_window: NCCL has no symmetric memory here");
    return w;
  }

  void exchange_phase(gpu::context const& on) const {
    int const warps = std::clamp((size() + 30) / 32, 1, 32);  // a thread for each peer
    gpu::detail::launch(on, "exchange_phase", detail::nccl_phase<>, 1, 32 * warps, 0, *on_device_);
  }

 private:
  static constexpr char const* name = "nccl_window_communicator";
  static constexpr std::size_t no_memory = ~std::size_t{0};

  struct destroy {
    ncclComm_t comm;
    void operator()(ncclDevComm* on_device) const noexcept {
      static_cast<void>(ncclDevCommDestroy(comm, on_device));
      delete on_device;
    }
  };

  // Clears this rank's part, and gathers what every rank says. Waits for all of it.
  std::vector<std::size_t> begin_window(void* memory, std::size_t mine, std::size_t bytes) const {
    struct own_stream {
      cudaStream_t stream = nullptr;
      ~own_stream() {
        if (stream != nullptr) static_cast<void>(cudaStreamDestroy(stream));
      }
    } own;
    auto const done = [](char const* call, cudaError_t code) {
      gpu::detail::check(code, call, "allocate_window");
    };
    done("cudaStreamCreateWithFlags",
         cudaStreamCreateWithFlags(&own.stream, cudaStreamNonBlocking));
    if (mine != no_memory) done("cudaMemsetAsync", cudaMemsetAsync(memory, 0, bytes, own.stream));
    std::vector<std::size_t> sizes(unsigned_of(size()));
    std::size_t* const all = scratch() + 1;
    done("cudaMemcpyAsync",
         cudaMemcpyAsync(scratch(), &mine, sizeof mine, cudaMemcpyHostToDevice, own.stream));
    all_gather(gpu::context(own.stream), scratch(), all, sizeof mine);
    done("cudaMemcpyAsync", cudaMemcpyAsync(sizes.data(), all, sizes.size() * sizeof mine,
                                            cudaMemcpyDeviceToHost, own.stream));
    done("cudaStreamSynchronize", cudaStreamSynchronize(own.stream));
    return sizes;
  }

  std::unique_ptr<ncclDevComm, destroy> on_device_{nullptr, destroy{nullptr}};
};

static_assert(window_view<nccl_window_view> && symmetric_window<nccl_window>);
static_assert(window_communicator<nccl_window_communicator, gpu::context>);

}  // namespace expar::inline v0
