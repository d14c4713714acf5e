// SPDX-License-Identifier: Apache-2.0
#pragma once

// A stand-in for NCCL's host library whose ranks are threads of one process on one device: it moves
// the bytes, and says what it was asked for. Sends meet receives as NCCL's do; a rank that waits
// for too long, or for another size, gets an error.

#include <nccl.h>

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

namespace expar_test {

struct nccl_world;

}  // namespace expar_test

struct ncclComm {
  expar_test::nccl_world* world;
  int rank;
};

namespace expar_test {

/// The communicators of all ranks, and their messages on the way.
struct nccl_world {
  struct message {
    void const* from;
    std::size_t bytes;
    bool taken = false;
  };
  explicit nccl_world(int ranks) : reached(ranks) {
    for (int r = 0; r < ranks; ++r) comms.push_back({this, r});
  }
  nccl_world(nccl_world const&) = delete;
  int size() const { return static_cast<int>(comms.size()); }
  ncclComm_t comm(int rank) { return &comms[static_cast<std::size_t>(rank)]; }

  std::vector<ncclComm> comms;
  int reached;  ///< ranks of the LSA team
  std::mutex mutex;
  std::condition_variable changed;
  std::map<std::pair<int, int>, std::vector<message*>> waiting;
};

/// What this thread asked NCCL for, and what NCCL shall answer.
struct nccl_thread {
  struct call {
    std::string name;
    std::size_t bytes = 0;
    int peer = -1, depth = 0;
  };
  struct transfer {
    bool send;
    void* at;
    std::size_t bytes;
    int peer;
    ncclComm_t comm;
    cudaStream_t stream;
  };
  std::vector<call> calls;
  std::vector<transfer> group;
  int depth = 0;
  ncclResult_t broken = ncclSuccess;  ///< of the group
  bool moves = true;                  ///< else transfers are only counted
  int started = 0;                    ///< transfers
  std::string fails;                  ///< the call that fails
  int fails_after = 0;                ///< so many successes
  int polls = 0;                      ///< as a non-blocking communicator: this often in progress
  ncclResult_t async = ncclSuccess;
  std::string last_error;

  int count(std::string const& name) const {
    int n = 0;
    for (auto const& c : calls) n += c.name == name;
    return n;
  }
  ncclResult_t enter(char const* name, std::size_t bytes = 0, int peer = -1) {
    calls.push_back({name, bytes, peer, depth});
    if (fails != name || fails_after-- != 0) return ncclSuccess;
    last_error = std::string(name) + " was told to fail";
    if (depth != 0) broken = ncclInvalidArgument;
    return ncclInvalidArgument;
  }
};
inline nccl_thread& nccl_here() {
  thread_local nccl_thread t;
  return t;
}

inline ncclResult_t move_all(std::vector<nccl_thread::transfer> const& all) {
  using namespace std::chrono_literals;
  std::vector<nccl_world::message> sent;
  sent.reserve(all.size());
  for (auto const& t : all)
    if (cudaStreamSynchronize(t.stream) != cudaSuccess) return ncclUnhandledCudaError;
  for (auto const& t : all) {
    if (!t.send) continue;
    sent.push_back({t.at, t.bytes});
    std::lock_guard lock(t.comm->world->mutex);
    t.comm->world->waiting[{t.comm->rank, t.peer}].push_back(&sent.back());
    t.comm->world->changed.notify_all();
  }
  ncclResult_t result = ncclSuccess;
  for (auto const& t : all) {
    if (t.send) continue;
    auto& world = *t.comm->world;
    std::unique_lock lock(world.mutex);
    auto& queue = world.waiting[{t.peer, t.comm->rank}];
    if (!world.changed.wait_for(lock, 20s, [&] { return !queue.empty(); })) {
      nccl_here().last_error = "a receive waits for ever";
      return ncclSystemError;
    }
    auto* const m = queue.front();
    queue.erase(queue.begin());
    if (m->bytes != t.bytes) {
      nccl_here().last_error = "a send and its receive differ in size";
      result = ncclInvalidUsage;
    } else if (t.at != nullptr) {
      if (cudaMemcpyAsync(t.at, m->from, t.bytes, cudaMemcpyDefault, t.stream) != cudaSuccess ||
          cudaStreamSynchronize(t.stream) != cudaSuccess)
        return ncclUnhandledCudaError;
    }
    m->taken = true;
    world.changed.notify_all();
  }
  for (auto& m : sent) {
    auto& world = *all[0].comm->world;
    std::unique_lock lock(world.mutex);
    if (!world.changed.wait_for(lock, 20s, [&] { return m.taken; })) {
      nccl_here().last_error = "a send waits for ever";
      return ncclSystemError;
    }
  }
  return result;
}

inline ncclResult_t end_of_group() {
  auto& here = nccl_here();
  if (here.depth != 0) return ncclSuccess;
  auto const all = std::exchange(here.group, {});
  if (auto const broken = std::exchange(here.broken, ncclSuccess); broken != ncclSuccess)
    return broken;
  here.started += static_cast<int>(all.size());
  ncclResult_t const result = here.moves && !all.empty() ? move_all(all) : ncclSuccess;
  return result == ncclSuccess && here.polls > 0 ? ncclInProgress : result;
}

/// A call that is a group of its own: a transfer to and from each rank, of `bytes` bytes.
inline ncclResult_t exchange(char const* name, void const* in, std::size_t step, void* out,
                             std::size_t bytes, ncclComm_t comm, cudaStream_t stream) {
  auto& here = nccl_here();
  if (auto const r = here.enter(name, bytes); r != ncclSuccess) return r;
  for (int p = 0; p < comm->world->size(); ++p) {
    auto const rank = static_cast<std::size_t>(p);
    auto* const from = static_cast<char*>(const_cast<void*>(in)) + rank * step;
    auto* const to = out == nullptr ? nullptr : static_cast<char*>(out) + rank * bytes;
    here.group.push_back({true, from, bytes, p, comm, stream});
    here.group.push_back({false, to, bytes, p, comm, stream});
  }
  return end_of_group();
}

inline int bytes_of(ncclDataType_t type) {
  return type == ncclUint8 || type == ncclInt8 ? 1 : -1000;
}

}  // namespace expar_test

extern "C" {

inline ncclResult_t ncclCommUserRank(ncclComm_t const comm, int* rank) {
  *rank = comm->rank;
  return expar_test::nccl_here().enter("ncclCommUserRank");
}
inline ncclResult_t ncclCommCount(ncclComm_t const comm, int* size) {
  *size = comm->world->size();
  return expar_test::nccl_here().enter("ncclCommCount");
}
inline ncclResult_t ncclCommCuDevice(ncclComm_t const, int* device) {
  *device = expar_test::nccl_here().fails == "device" ? 3 : 0;
  return expar_test::nccl_here().enter("ncclCommCuDevice");
}
inline char const* ncclGetErrorString(ncclResult_t code) {
  return code == ncclInvalidArgument ? "invalid argument"
         : code == ncclInvalidUsage  ? "invalid usage"
         : code == ncclRemoteError   ? "remote process exited or there was a network error"
                                     : "an error";
}
inline char const* ncclGetLastError(ncclComm_t) {
  return expar_test::nccl_here().last_error.c_str();
}
inline ncclResult_t ncclCommGetAsyncError(ncclComm_t, ncclResult_t* state) {
  auto& here = expar_test::nccl_here();
  *state = here.polls > 0 && --here.polls > 0 ? ncclInProgress : here.async;
  return here.enter("ncclCommGetAsyncError");
}
inline ncclResult_t ncclGroupStart() {
  auto& here = expar_test::nccl_here();
  auto const r = here.enter("ncclGroupStart");
  here.depth += r == ncclSuccess;
  return r;
}
inline ncclResult_t ncclGroupEnd() {
  auto& here = expar_test::nccl_here();
  --here.depth;
  if (auto const r = here.enter("ncclGroupEnd"); r != ncclSuccess) here.broken = r;
  return expar_test::end_of_group();
}
inline ncclResult_t ncclSend(void const* in, std::size_t n, ncclDataType_t type, int peer,
                             ncclComm_t comm, cudaStream_t stream) {
  auto& here = expar_test::nccl_here();
  n *= static_cast<std::size_t>(expar_test::bytes_of(type));
  if (auto const r = here.enter("ncclSend", n, peer); r != ncclSuccess) return r;
  here.group.push_back({true, const_cast<void*>(in), n, peer, comm, stream});
  return expar_test::end_of_group();
}
inline ncclResult_t ncclRecv(void* out, std::size_t n, ncclDataType_t type, int peer,
                             ncclComm_t comm, cudaStream_t stream) {
  auto& here = expar_test::nccl_here();
  n *= static_cast<std::size_t>(expar_test::bytes_of(type));
  if (auto const r = here.enter("ncclRecv", n, peer); r != ncclSuccess) return r;
  here.group.push_back({false, out, n, peer, comm, stream});
  return expar_test::end_of_group();
}
inline ncclResult_t ncclAlltoAll(void const* in, void* out, std::size_t n, ncclDataType_t type,
                                 ncclComm_t comm, cudaStream_t stream) {
  n *= static_cast<std::size_t>(expar_test::bytes_of(type));
  return expar_test::exchange("ncclAlltoAll", in, n, out, n, comm, stream);
}
inline ncclResult_t ncclAllGather(void const* in, void* out, std::size_t n, ncclDataType_t type,
                                  ncclComm_t comm, cudaStream_t stream) {
  n *= static_cast<std::size_t>(expar_test::bytes_of(type));
  return expar_test::exchange("ncclAllGather", in, 0, out, n, comm, stream);
}
/// Ranks meet; the values stay as they are.
inline ncclResult_t ncclAllReduce(void const* in, void*, std::size_t n, ncclDataType_t type,
                                  ncclRedOp_t, ncclComm_t comm, cudaStream_t stream) {
  n *= static_cast<std::size_t>(expar_test::bytes_of(type));
  return expar_test::exchange("ncclAllReduce", in, 0, nullptr, n, comm, stream);
}

}  // extern "C"
