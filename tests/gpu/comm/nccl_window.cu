// SPDX-License-Identifier: Apache-2.0
#if __has_include(<nccl_device.h>)
#include <expar/comm/nccl_window.cuh>

#include <sys/mman.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <thread>
#include <vector>

#include "gpu/comm/nccl_fake.hpp"
#include "gpu/device.cuh"
#include "support/catch.hpp"
#include "support/thrown_by.hpp"

using expar::nccl_window_communicator;
using expar::nccl_window_view;
using expar_test::device_array;
using expar_test::nccl_here;
using expar_test::nccl_world;
using expar_test::require_success;

using expar_test::thrown_by;

namespace {

/// NCCL objects that are alive, and the version that NCCL says it is.
int alive = 0, version = NCCL_VERSION_CODE;
std::mutex device_memory;

ncclResult_t fake_malloc(void** p, std::size_t bytes) {
  std::lock_guard lock(device_memory);
  if (cudaMalloc(p, bytes) != cudaSuccess) return ncclUnhandledCudaError;
  ++alive;
  return ncclSuccess;
}
ncclResult_t fake_free(void* p) {
  std::lock_guard lock(device_memory);
  --alive;
  return cudaFree(p) == cudaSuccess ? ncclSuccess : ncclUnhandledCudaError;
}

}  // namespace

extern "C" {

ncclResult_t ncclGetVersion(int* v) {
  *v = version;
  return nccl_here().enter("ncclGetVersion");
}
ncclResult_t ncclMemAlloc(void** p, std::size_t bytes) {
  if (auto const r = nccl_here().enter("ncclMemAlloc", bytes); r != ncclSuccess) return r;
  return fake_malloc(p, bytes);
}
ncclResult_t ncclMemFree(void* p) {
  return fake_free(p);
}
// The window of a rank that is alone: it reaches itself.
ncclResult_t ncclCommWindowRegister(ncclComm_t comm, void* memory, std::size_t bytes,
                                    ncclWindow_t* window, int flags) {
  if (auto const r = nccl_here().enter("ncclCommWindowRegister", bytes); r != ncclSuccess) return r;
  if (flags != NCCL_WIN_COLL_SYMMETRIC || bytes == 0) return ncclInvalidArgument;
  if (nccl_here().fails == "symmetric memory") return ncclSuccess;
  ncclWindow_vidmem host{};
  host.lsaFlatBase = static_cast<char*>(memory);
  host.worldRank = comm->rank;
  void* p = nullptr;
  if (auto const r = fake_malloc(&p, sizeof host); r != ncclSuccess) return r;
  *window = static_cast<ncclWindow_t>(p);
  return cudaMemcpy(p, &host, sizeof host, cudaMemcpyHostToDevice) == cudaSuccess &&
                 cudaDeviceSynchronize() == cudaSuccess
             ? ncclSuccess
             : ncclUnhandledCudaError;
}
ncclResult_t ncclCommWindowDeregister(ncclComm_t, ncclWindow_t window) {
  return fake_free(window);
}
ncclResult_t ncclDevCommCreate(ncclComm_t comm, ncclDevCommRequirements const* needs,
                               ncclDevComm* out) {
  if (auto const r = nccl_here().enter("ncclDevCommCreate"); r != ncclSuccess) return r;
  *out = {};
  out->rank = comm->rank;
  out->nRanks = comm->world->size();
  out->lsaSize = comm->world->reached;
  out->lsaRank = comm->rank % out->lsaSize;
  out->lsaBarrier.nBarriers = needs->lsaBarrierCount;
  void* p = nullptr;
  if (auto const r = fake_malloc(&p, 4096); r != ncclSuccess) return r;
  out->resourceWindow_inlined.lsaFlatBase = static_cast<char*>(p);
  return cudaMemset(p, 0, 4096) == cudaSuccess && cudaDeviceSynchronize() == cudaSuccess
             ? ncclSuccess
             : ncclUnhandledCudaError;
}
ncclResult_t ncclDevCommDestroy(ncclComm_t, ncclDevComm const* comm) {
  return fake_free(comm->resourceWindow_inlined.lsaFlatBase);
}

}  // extern "C"

namespace {

std::size_t at(int i) {
  return static_cast<std::size_t>(i);
}

/// Makes the communicators of all ranks, and runs f(comm, rank) on a thread per rank. What each
/// throws.
template <class F>
std::vector<std::string> on_ranks(int ranks, F f) {
  nccl_world world(ranks);
  std::vector<nccl_window_communicator> comms;
  for (int r = 0; r < ranks; ++r) comms.emplace_back(world.comm(r));
  std::vector<std::string> said(at(ranks));
  std::vector<std::thread> threads;
  for (int r = 0; r < ranks; ++r)
    threads.emplace_back([&, r] { said[at(r)] = thrown_by([&] { f(comms[at(r)], r); }); });
  for (auto& t : threads) t.join();
  return said;
}

/// Memory of several ranks on one device, 4 GiB from rank to rank, as NCCL lays it out. Interpreted
/// devices take reserved addresses, real ones must have the memory.
class flat_memory {
 public:
  static constexpr std::size_t stride = std::size_t{1} << 32;

  flat_memory(int ranks, std::size_t bytes) : ranks_(ranks), size_(at(ranks - 1) * stride + bytes) {
    if (auto* const allow = named<void(void const*, std::size_t)>("_ZN6ptxsim5allowEPKvm")) {
      void* const p = mmap(nullptr, size_, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      REQUIRE(p != MAP_FAILED);
      base_ = static_cast<char*>(p);
      for (int r = 0; r < ranks; ++r) allow(part(r), bytes);
    } else {
      require_success(cudaMalloc(reinterpret_cast<void**>(&base_), size_));
    }
    for (int r = 0; r < ranks; ++r) expar_test::fill(part(r), 0, bytes);
  }
  flat_memory(flat_memory const&) = delete;
  ~flat_memory() {
    if (auto* const forbid = named<void(void const*)>("_ZN6ptxsim6forbidEPKv")) {
      for (int r = 0; r < ranks_; ++r) forbid(part(r));
      munmap(base_, size_);
    } else {
      static_cast<void>(cudaFree(base_));
    }
  }
  static bool reserves() { return named<void(void const*)>("_ZN6ptxsim6forbidEPKv") != nullptr; }
  char* part(int rank) const { return base_ + at(rank) * stride; }

 private:
  template <class F>
  static F* named(char const* name) {
    return reinterpret_cast<F*>(dlsym(RTLD_DEFAULT, name));
  }
  int ranks_;
  std::size_t size_;
  char* base_ = nullptr;
};

// Words: the race check of interpreted devices leaves out what is smaller.
__device__ unsigned word_of(int round, int from, int to, std::size_t k) {
  return static_cast<unsigned>((round * 100 + from) * 100 + to) * 1000u + static_cast<unsigned>(k);
}

/// Block r is rank r. Each writes `share` words to all, meets, reads what all wrote, and meets
/// again.
template <int = 0>
__global__ void talk(ncclDevComm const* comms, nccl_window_view const* views, int rounds,
                     std::size_t share, int* wrong) {
  int const me = static_cast<int>(blockIdx.x);
  nccl_window_view const view = views[me];
  auto const word = [&](int rank, int from, std::size_t k) {
    return static_cast<unsigned*>(
        view.peer(rank, (static_cast<std::size_t>(from) * share + k) * sizeof(unsigned)));
  };
  for (int round = 0; round < rounds; ++round) {
    for (int p = 0; p < view.size(); ++p)
      for (std::size_t k = threadIdx.x; k < share; k += blockDim.x)
        *word(p, me, k) = word_of(round, me, p, k);
    expar::detail::meet_peers(comms[me]);
    for (int p = 0; p < view.size(); ++p)
      for (std::size_t k = threadIdx.x; k < share; k += blockDim.x)
        if (*word(me, p, k) != word_of(round, p, me, k)) atomicAdd(wrong, 1);
    expar::detail::meet_peers(comms[me]);
  }
}

template <int = 0>
__global__ void fill(nccl_window_view view, std::size_t n) {
  for (std::size_t k = threadIdx.x; k < n; k += blockDim.x)
    *static_cast<unsigned char*>(view.peer(view.rank(), k)) = static_cast<unsigned char>(k + 5);
}

}  // namespace

TEST_CASE("ranks that write to each other's windows and meet see every byte, in every phase") {
  struct shape {
    int ranks;
    unsigned threads;
  };
  // One thread for many peers, and many threads for one.
  auto const s = GENERATE(shape{1, 32}, shape{2, 64}, shape{4, 32}, shape{9, 32}, shape{36, 32});
  if (s.ranks > 4 && !flat_memory::reserves()) return;
  CAPTURE(s.ranks, s.threads);
  std::size_t const share = 37, bytes = share * at(s.ranks) * sizeof(unsigned);
  flat_memory const windows(s.ranks, bytes), resources(s.ranks, 4 * (at(s.ranks) + 3));
  std::vector<ncclWindow_vidmem> on_device(at(s.ranks));
  std::vector<ncclDevComm> comms(at(s.ranks));
  for (int r = 0; r < s.ranks; ++r) {
    auto& w = on_device[at(r)];
    w.lsaFlatBase = windows.part(0);
    w.lsaRank = w.worldRank = r;
    w.stride4G = 1;
    auto& c = comms[at(r)];
    c.rank = c.lsaRank = r;
    c.nRanks = c.lsaSize = s.ranks;
    c.lsaBarrier.nBarriers = 1;
    c.resourceWindow_inlined = w;
    c.resourceWindow_inlined.lsaFlatBase = resources.part(0);
  }
  device_array<ncclWindow_vidmem> const window_array(on_device);
  device_array<ncclDevComm> const comm_array(comms);
  std::vector<nccl_window_view> views;
  for (int r = 0; r < s.ranks; ++r) views.push_back({window_array.data() + r, r, s.ranks});
  device_array<nccl_window_view> const view_array(views);
  device_array<int> const wrong(std::vector<int>{0});
  ncclDevComm const* const c = comm_array.data();
  nccl_window_view const* const v = view_array.data();
  int rounds = 3;
  int* const w = wrong.data();
  void* arguments[] = {const_cast<ncclDevComm const**>(&c),
                       const_cast<nccl_window_view const**>(&v), &rounds,
                       const_cast<std::size_t*>(&share), const_cast<int**>(&w)};
  for (int launch = 0; launch < 2; ++launch)  // the epochs of the first go on in the second
    require_success(cudaLaunchCooperativeKernel(reinterpret_cast<void const*>(&talk<>),
                                                dim3(static_cast<unsigned>(s.ranks)),
                                                dim3(s.threads), arguments, 0, nullptr));
  require_success(cudaDeviceSynchronize());
  REQUIRE(wrong.read() == std::vector<int>{0});
}

TEST_CASE("exchange_phase is one launch, and kernels reach a window through its view") {
  expar_test::own_stream const stream;
  expar::gpu::context const on(stream);
  nccl_here() = {};
  {
    nccl_world world(1);
    nccl_window_communicator const comm(world.comm(0));
    auto const window = comm.allocate_window(300);
    REQUIRE(window.size_bytes() == 300);
    REQUIRE((window.view().rank() == 0 && window.view().size() == 1));
    std::vector<unsigned char> bytes(300, 9);
    expar_test::copy(bytes.data(), window.data(), 300);
    REQUIRE(bytes == std::vector<unsigned char>(300, 0));
    fill<><<<1, 64, 0, on.stream()>>>(window.view(), 300);
    auto const before = expar_test::runtime_calls::now();
    comm.exchange_phase(on);
    comm.exchange_phase(on);
    if (expar_test::runtime_calls::counted())
      REQUIRE(expar_test::runtime_calls::now().since(before) ==
              std::vector<unsigned long>{2, 0, 0, 0, 0});
    stream.wait();
    expar_test::copy(bytes.data(), window.data(), 300);
    std::vector<unsigned char> wanted;
    for (int k = 0; k < 300; ++k) wanted.push_back(static_cast<unsigned char>(k + 5));
    REQUIRE(bytes == wanted);
    REQUIRE(alive == 3);  // the memory, its window, and the communicator's part on the device
  }
  REQUIRE(alive == 0);
}

TEST_CASE("windows are made by all ranks together, moved, and given back") {
  auto const said = on_ranks(3, [](nccl_window_communicator const& comm, int rank) {
    nccl_here() = {};
    auto a = comm.allocate_window(1000);
    auto b = comm.allocate_window(0);
    expar::detail::expects(a.size_bytes() == 1000 && b.size_bytes() == 0, "wrong sizes");
    auto const view = b.view();
    a = std::move(b);
    expar::detail::expects(a.size_bytes() == 0 && a.view().window == view.window &&
                               a.view().rank() == rank && a.view().size() == 3,
                           "wrong view");
  });
  REQUIRE(said == std::vector<std::string>(3, "nothing was thrown"));
  REQUIRE(alive == 0);
}

TEST_CASE("ranks that ask for different windows, or have no memory, throw the same on all") {
  REQUIRE(on_ranks(3,
                   [](nccl_window_communicator const& comm, int rank) {
                     nccl_here() = {};
                     static_cast<void>(comm.allocate_window(rank == 1 ? 24 : 16));
                   }) ==
          std::vector<std::string>(
              3,
              "expar: allocate_window: bytes is 16 on rank 0 but 24 on rank 1; all ranks "
              "must pass the same"));
  REQUIRE(alive == 0);
  REQUIRE(on_ranks(3,
                   [](nccl_window_communicator const& comm, int rank) {
                     nccl_here() = {};
                     if (rank == 2) nccl_here().fails = "ncclMemAlloc";
                     static_cast<void>(comm.allocate_window(16));
                   }) ==
          std::vector<std::string>(3, "expar: allocate_window: rank 2 has no memory for 16 bytes"));
  REQUIRE(alive == 0);
  auto const fails = [](std::string const& call) {
    return on_ranks(1, [&](nccl_window_communicator const& comm, int) {
      nccl_here() = {};
      nccl_here().fails = call;
      static_cast<void>(comm.allocate_window(16));
    })[0];
  };
  CHECK(fails("ncclCommWindowRegister") ==
        "expar: allocate_window: ncclCommWindowRegister gave NCCL error 4 (invalid argument: "
        "ncclCommWindowRegister was told to fail)");
  CHECK(fails("ncclAllGather") ==
        "expar: all_gather: ncclAllGather gave NCCL error 4 (invalid argument: ncclAllGather was "
        "told to fail)");
  CHECK(fails("symmetric memory") == "expar: allocate_window: NCCL has no symmetric memory here");
  REQUIRE(alive == 0);
}

TEST_CASE("nccl_window_communicator: what NCCL cannot do here is a sentence") {
  nccl_here() = {};
  nccl_world world(8);
  auto const made = [&] { nccl_window_communicator comm(world.comm(5)); };
  auto const version_text = [](int code) {
    return std::string(expar::detail::nccl_version_text(code).c_str());
  };
  CHECK(thrown_by(made) == "nothing was thrown");

  world.reached = 4;
  CHECK(thrown_by(made) ==
        "expar: nccl_window_communicator: rank 5 reaches 4 of 8 ranks by loads and stores; windows "
        "need all of them");
  world.reached = 8;
  CHECK(alive == 0);

  version = 22703;
  CHECK(thrown_by(made) == "expar: nccl_window_communicator: compiled with NCCL " +
                               version_text(NCCL_VERSION_CODE) +
                               " but runs with NCCL 2.27.3; they must be the same version");
  CHECK(nccl_here().count("ncclDevCommCreate") == 2);  // not made of another version's structures
  version = NCCL_VERSION_CODE;

  nccl_here().fails = "ncclDevCommCreate";
  CHECK(thrown_by(made) ==
        "expar: nccl_window_communicator: ncclDevCommCreate gave NCCL error 4 (invalid argument: "
        "ncclDevCommCreate was told to fail)");
  CHECK(alive == 0);
  nccl_here() = {};
  CHECK(version_text(22809) == "2.28.9");
  CHECK(version_text(2708) == "2.7.8");
}
#endif
