// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <functional>
#include <memory>
#include <vector>

#include <expar/gpu/error.cuh>

namespace bench {

inline void ok(cudaError_t code, char const* call) {
  expar::gpu::detail::check(code, call, "benchmark");
}

/// Blocks of a launch over n things; at least one, since none is an error.
inline unsigned blocks_for(std::int64_t n, int threads) {
  return static_cast<unsigned>(n == 0 ? 1 : (n + threads - 1) / threads);
}

class stream {
 public:
  stream() { ok(cudaStreamCreateWithFlags(&s_, cudaStreamNonBlocking), "cudaStreamCreate"); }
  stream(stream const&) = delete;
  ~stream() { static_cast<void>(cudaStreamDestroy(s_)); }
  cudaStream_t get() const { return s_; }
  void wait() const { ok(cudaStreamSynchronize(s_), "cudaStreamSynchronize"); }

 private:
  cudaStream_t s_ = nullptr;
};

/// cudaMemcpy works on a stream that bench::stream does not wait for, and may return before the
/// device is done. This comes after the work of all streams, and before what is enqueued later.
inline void copy(void* to, void const* from, std::size_t bytes) {
  ok(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
  ok(cudaMemcpy(to, from, bytes, cudaMemcpyDefault), "cudaMemcpy");
  ok(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
}

/// Device memory, uninitialised.
template <class T>
class array {
 public:
  array() = default;
  explicit array(std::int64_t n) : size_(n) {
    if (n > 0) ok(cudaMalloc(reinterpret_cast<void**>(&data_), bytes()), "cudaMalloc");
  }
  explicit array(std::vector<T> const& from) : array(static_cast<std::int64_t>(from.size())) {
    if (size_ > 0) copy(data_, from.data(), bytes());
  }
  array(array&& other) noexcept { swap(other); }
  array& operator=(array&& other) noexcept {
    swap(other);
    return *this;
  }
  ~array() { static_cast<void>(cudaFree(data_)); }

  T* data() const { return data_; }
  std::int64_t size() const { return size_; }
  std::size_t bytes() const { return static_cast<std::size_t>(size_) * sizeof(T); }
  std::vector<T> read() const {
    std::vector<T> to(static_cast<std::size_t>(size_));
    if (size_ > 0) copy(to.data(), data_, bytes());
    return to;
  }

 private:
  void swap(array& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
  }
  T* data_ = nullptr;
  std::int64_t size_ = 0;
};

// The timer: Google Benchmark knows no graphs and times one function after the other, and nvbench
// needs a newer CMake than Debian 12 has.

/// A CUDA graph of calls that rotate over sets of buffers, and the events around it.
class replay {
 public:
  replay(cudaStream_t s, int calls, int sets, std::function<void(int)> const& enqueue)
      : stream_(s), calls_(calls) {
    cudaGraph_t graph = nullptr;
    ok(cudaStreamBeginCapture(s, cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
    try {
      for (int i = 0; i < calls; ++i) enqueue(i % sets);
    } catch (...) {  // the stream serves other operations
      if (cudaStreamEndCapture(s, &graph) == cudaSuccess)
        static_cast<void>(cudaGraphDestroy(graph));
      static_cast<void>(cudaGetLastError());
      throw;
    }
    ok(cudaStreamEndCapture(s, &graph), "cudaStreamEndCapture");
    ok(cudaGraphGetNodes(graph, nullptr, &nodes_), "cudaGraphGetNodes");
    ok(cudaGraphInstantiate(&graph_, graph, 0), "cudaGraphInstantiate");
    ok(cudaGraphDestroy(graph), "cudaGraphDestroy");
    ok(cudaEventCreate(&begin_), "cudaEventCreate");
    ok(cudaEventCreate(&end_), "cudaEventCreate");
  }
  replay(replay const&) = delete;
  ~replay() {
    static_cast<void>(cudaGraphExecDestroy(graph_));
    static_cast<void>(cudaEventDestroy(begin_));
    static_cast<void>(cudaEventDestroy(end_));
  }

  /// Microseconds of one call. Waits.
  double run() const {
    float ms = 0;
    ok(cudaEventRecord(begin_, stream_), "cudaEventRecord");
    ok(cudaGraphLaunch(graph_, stream_), "cudaGraphLaunch");
    ok(cudaEventRecord(end_, stream_), "cudaEventRecord");
    ok(cudaEventSynchronize(end_), "cudaEventSynchronize");
    ok(cudaEventElapsedTime(&ms, begin_, end_), "cudaEventElapsedTime");
    return 1000. * ms / calls_;
  }
  int calls() const { return calls_; }
  /// Kernels, copies and fills of one call.
  int launches() const { return static_cast<int>(nodes_) / calls_; }

 private:
  cudaStream_t stream_;
  int calls_;
  std::size_t nodes_ = 0;
  cudaGraphExec_t graph_ = nullptr;
  cudaEvent_t begin_ = nullptr, end_ = nullptr;
};

struct protocol {
  int replays = 21, least_calls = 20;
  double graph_us = 2000, warm_ms = 50;
};

struct timing {
  double median = 0, p10 = 0, p90 = 0;  // microseconds of a call
  int calls = 0, launches = 0;
};

/// Times functions in turn, A B A B ..., after warming all of them up. A graph has as many calls as
/// fill graph_us, at least least_calls, each set equally often.
inline std::vector<timing> time_in_turn(cudaStream_t s, protocol const& p, int sets,
                                        std::vector<std::function<void(int)>> const& functions) {
  std::vector<std::unique_ptr<replay>> graphs;
  for (auto const& f : functions) {
    f(0);  // what a first launch loads is not loaded during capture
    ok(cudaStreamSynchronize(s), "cudaStreamSynchronize");
    replay const first(s, sets, sets, f);
    first.run();
    double const once = first.run();
    int const wanted =
        std::clamp(static_cast<int>(p.graph_us / std::max(once, .1)), p.least_calls, 4000);
    graphs.push_back(std::make_unique<replay>(s, (wanted + sets - 1) / sets * sets, sets, f));
  }
  auto const start = std::chrono::steady_clock::now();
  do {
    for (auto const& g : graphs) g->run();
  } while (
      std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count() <
      p.warm_ms);
  std::vector<std::vector<double>> times(functions.size());
  for (int r = 0; r < p.replays; ++r)
    for (std::size_t i = 0; i < graphs.size(); ++i) times[i].push_back(graphs[i]->run());
  std::vector<timing> result;
  for (std::size_t i = 0; i < graphs.size(); ++i) {
    auto& t = times[i];
    std::sort(t.begin(), t.end());
    auto const at = [&](double share) {
      return t[static_cast<std::size_t>(share * static_cast<double>(t.size() - 1) + .5)];
    };
    result.push_back({at(.5), at(.1), at(.9), graphs[i]->calls(), graphs[i]->launches()});
  }
  return result;
}

}  // namespace bench
