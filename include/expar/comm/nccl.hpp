// SPDX-License-Identifier: Apache-2.0
#pragma once

#if !__has_include(<nccl.h>)
#error "expar/comm/nccl.hpp needs <nccl.h>: link expar::nccl, or put its folder on the path"
#endif
#include <nccl.h>

#include <memory>
#include <string>
#include <thread>

#include <expar/communicator.hpp>
#include <expar/gpu/context.cuh>

namespace expar::inline v0 {

/// A call of NCCL that failed: its code, the call, and the operation that made it. The sentence
/// ends with what NCCL itself says about its last error.
class nccl_error : public error {
 public:
  nccl_error(ncclResult_t code, char const* call, char const* place, ncclComm_t comm = nullptr)
      : error(detail::sentence{"expar: ", place, ": ", call, " gave NCCL error ",
                               static_cast<int>(code), " (", ncclGetErrorString(code),
                               last_words(comm), ")"}),
        code_(code),
        call_(call),
        place_(place) {}

  ncclResult_t code() const noexcept { return code_; }
  char const* call() const noexcept { return call_; }
  char const* place() const noexcept { return place_; }

 private:
  static std::string last_words(ncclComm_t comm) {
    char const* const words = ncclGetLastError(comm);
    return words == nullptr || *words == '\0' ? std::string() : std::string(": ") + words;
  }

  ncclResult_t code_;
  char const* call_;  // both are literals
  char const* place_;
};

/// The ranks of an NCCL communicator, one GPU each: tiers 1 and 2 on device memory. It works on the
/// caller's communicator and neither duplicates nor destroys it: `comm` outlives it and has no
/// other operation under way meanwhile.
///
/// Operations are enqueued on the stream of the context and complete in its order: `out` is ready,
/// and `in` may be reused, for later work on that stream. They neither allocate nor wait for the
/// device; but before two ranks meet for the first time NCCL connects them, and the host waits for
/// that. A graph that captures one keeps its counts.
///
/// One thread calls it at a time, and all ranks make the same calls in the same order. A thread
/// that drives several ranks groups their calls by ncclGroupStart and ncclGroupEnd; nothing begins
/// before that end. NCCL does not notice two ranks that disagree about a byte count: they may wait
/// for ever, see check_async().
///
/// Tested on ranks of a stand-in for NCCL that moves the bytes. Not run on several GPUs, nor
/// captured.
class nccl_communicator {
 public:
  static constexpr communicator_traits traits{.space = memory_space::device};

  /// Local. `comm` is initialised (a non-blocking one: no longer in progress) and its device is the
  /// current one. Allocates a few bytes per rank, and its end waits for the device to free them.
  explicit nccl_communicator(ncclComm_t comm) : comm_(comm) {
    detail::expects(comm != nullptr, "nccl_communicator: comm is null");
    int device = 0, current = 0;
    check("nccl_communicator", "ncclCommUserRank", ncclCommUserRank(comm, &rank_));
    check("nccl_communicator", "ncclCommCount", ncclCommCount(comm, &size_));
    check("nccl_communicator", "ncclCommCuDevice", ncclCommCuDevice(comm, &device));
    gpu::detail::check(cudaGetDevice(&current), "cudaGetDevice", "nccl_communicator");
    detail::expects(device == current, "nccl_communicator: comm is of device ", device,
                    " but the current device is ", current);
    void* room = nullptr;
    gpu::detail::check(cudaMalloc(&room, (unsigned_of(size_) + 1) * sizeof(std::size_t)),
                       "cudaMalloc", "nccl_communicator");
    scratch_.reset(static_cast<std::size_t*>(room));
  }

  int rank() const noexcept { return rank_; }
  int size() const noexcept { return size_; }
  /// The caller's communicator.
  ncclComm_t native_handle() const noexcept { return comm_; }

  /// What is enqueued after it begins when all ranks have come so far in their streams. The host
  /// does not wait.
  void barrier(gpu::context const& on) const {
    collective(
        "barrier", "ncclAllReduce",
        ncclAllReduce(scratch_.get(), scratch_.get(), 1, ncclUint8, ncclMax, comm_, on.stream()));
  }

  void all_to_all(gpu::context const& on, void const* in, void* out, std::size_t bytes) const {
#if NCCL_VERSION_CODE >= 22800
    if (bytes != 0)
      collective("all_to_all", "ncclAlltoAll",
                 ncclAlltoAll(in, out, bytes, ncclUint8, comm_, on.stream()));
#else
    auto const block = [bytes](int peer) { return segment{bytes * unsigned_of(peer), bytes}; };
    swap(on, "all_to_all", in, block, out, block);
#endif
  }

  void all_gather(gpu::context const& on, void const* in, void* out, std::size_t bytes) const {
    if (bytes != 0)
      collective("all_gather", "ncclAllGather",
                 ncclAllGather(in, out, bytes, ncclUint8, comm_, on.stream()));
  }

  /// One group of sends and receives, this rank's own segment among them. Empty segments are left
  /// out on both sides.
  void all_to_all_v(gpu::context const& on, void const* in, byte_counts counts, byte_counts from,
                    void* out, byte_counts out_counts, byte_counts to) const {
    swap(
        on, "all_to_all_v", in,
        [&](int peer) {
          return segment{from[unsigned_of(peer)], counts[unsigned_of(peer)]};
        },
        out,
        [&](int peer) {
          return segment{to[unsigned_of(peer)], out_counts[unsigned_of(peer)]};
        });
  }

  /// Throws the error that NCCL met since an operation was enqueued, if any: a peer or a network
  /// that failed. It does not wait. Who polls it beside cudaStreamQuery, with a deadline, and then
  /// calls ncclCommAbort does not wait for ever.
  void check_async() const {
    ncclResult_t state = ncclSuccess;
    check("check_async", "ncclCommGetAsyncError", ncclCommGetAsyncError(comm_, &state));
    check("check_async", "ncclCommGetAsyncError", state);
  }

 protected:
  /// Memory for size() + 1 sizes on the device, written by barrier too.
  std::size_t* scratch() const noexcept {
    return scratch_.get();
  }
  static constexpr std::size_t unsigned_of(int rank) {
    return static_cast<std::size_t>(rank);
  }

  /// Throws unless the call has succeeded or is in progress.
  void check(char const* place, char const* call, ncclResult_t code) const {
    if (code != ncclSuccess && code != ncclInProgress) [[unlikely]]
      throw nccl_error(code, call, place, comm_);
  }
  /// Throws unless the call has succeeded. A non-blocking communicator returns before it has
  /// enqueued its work; the stream may be used from then on only.
  void collective(char const* place, char const* call, ncclResult_t code) const {
    while (code == ncclInProgress) {
      std::this_thread::yield();
      check(place, "ncclCommGetAsyncError", ncclCommGetAsyncError(comm_, &code));
    }
    check(place, call, code);
  }

 private:
  struct segment {
    std::size_t at, bytes;
  };

  // Calls between its construction and end() are one operation. An error between them ends the
  // group too, which then starts nothing.
  class group {
   public:
    group(nccl_communicator const& comm, char const* place) : comm_(comm), place_(place) {
      comm.check(place, "ncclGroupStart", ncclGroupStart());
    }
    group(group const&) = delete;
    ~group() {
      if (open_) static_cast<void>(ncclGroupEnd());
    }
    void end() {
      open_ = false;
      comm_.collective(place_, "ncclGroupEnd", ncclGroupEnd());
    }

   private:
    nccl_communicator const& comm_;
    char const* place_;
    bool open_ = true;
  };

  struct free_on_device {
    void operator()(std::size_t* p) const noexcept { static_cast<void>(cudaFree(p)); }
  };

  // Both sides of a pair know its byte count, so both leave out the same segments.
  template <class Sent, class Received>
  void swap(gpu::context const& on, char const* place, void const* in, Sent sent, void* out,
            Received received) const {
    std::size_t const mine = sent(rank_).bytes, wanted = received(rank_).bytes;
    group together(*this, place);
    for (int step = mine == wanted ? 0 : 1; step < size_; ++step) {
      int const to = (rank_ + step) % size_, from = (rank_ + size_ - step) % size_;
      if (segment const s = sent(to); s.bytes != 0)
        check(place, "ncclSend",
              ncclSend(static_cast<std::byte const*>(in) + s.at, s.bytes, ncclUint8, to, comm_,
                       on.stream()));
      if (segment const s = received(from); s.bytes != 0)
        check(place, "ncclRecv",
              ncclRecv(static_cast<std::byte*>(out) + s.at, s.bytes, ncclUint8, from, comm_,
                       on.stream()));
    }
    together.end();
    detail::expects(mine == wanted, place, ": rank ", rank_, " sends ", mine,
                    " bytes to itself but expects ", wanted);
  }

  ncclComm_t comm_;
  int rank_ = 0, size_ = 0;
  std::unique_ptr<std::size_t, free_on_device> scratch_;
};

static_assert(variable_communicator<nccl_communicator, gpu::context> &&
              detail::native_collectives<nccl_communicator, gpu::context>);

}  // namespace expar::inline v0
