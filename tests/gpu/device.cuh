// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <dlfcn.h>

#include <cstring>
#include <vector>

#include <expar/gpu/plan/plan.cuh>

#include "support/grid.hpp"

namespace expar_test {

inline void require_success(cudaError_t code) {
  expar::gpu::detail::check(code, "a call of the tests", "tests");
}

/// A stream of its own.
class own_stream {
 public:
  own_stream() { require_success(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking)); }
  own_stream(own_stream const&) = delete;
  ~own_stream() { static_cast<void>(cudaStreamDestroy(stream_)); }
  cudaStream_t get() const { return stream_; }
  void wait() const { require_success(cudaStreamSynchronize(stream_)); }

 private:
  cudaStream_t stream_ = nullptr;
};

// cudaMemcpy and cudaMemset work on a stream that own_stream does not wait for, and return before
// the device is done. These come after the work of all streams, and before what is enqueued later.
inline void copy(void* to, void const* from, std::size_t bytes) {
  require_success(cudaDeviceSynchronize());
  require_success(cudaMemcpy(to, from, bytes, cudaMemcpyDefault));
  require_success(cudaDeviceSynchronize());
}
inline void fill(void* to, int byte, std::size_t bytes) {
  require_success(cudaDeviceSynchronize());
  require_success(cudaMemset(to, byte, bytes));
  require_success(cudaDeviceSynchronize());
}

/// Device memory of exactly the size of some host array, so that the memory check sees every step
/// beyond it.
template <class T>
class device_array {
 public:
  explicit device_array(std::vector<T> const& from) : size_(from.size()) {
    if (size_ == 0) return;
    require_success(cudaMalloc(reinterpret_cast<void**>(&data_), size_ * sizeof(T)));
    copy(data_, from.data(), size_ * sizeof(T));
  }
  device_array(device_array const&) = delete;
  ~device_array() { static_cast<void>(cudaFree(data_)); }

  T* data() const { return data_; }
  std::vector<T> read() const {
    std::vector<T> to(size_);
    if (size_ != 0) copy(to.data(), data_, size_ * sizeof(T));
    return to;
  }

 private:
  T* data_ = nullptr;
  std::size_t size_;
};

/// A grid on the device, gaps included; `shift` elements before it move its alignment.
template <class T>
class device_grid {
 public:
  device_grid(grid<T>& from, expar::index_t shift = 0)
      : shape_(from.view()), shift_(shift), array_(elements(from.view(), shift)) {}

  expar::tensor_view<T, 2> view() const {
    auto v = shape_;
    v.data = array_.data() == nullptr ? nullptr : array_.data() + shift_;
    return v;
  }
  /// Brings everything back, gaps included.
  void read(grid<T>& to) const {
    auto const all = array_.read();
    auto const v = to.view();
    auto const n = static_cast<std::size_t>(v.extents[0] * v.strides[0]);
    if (n != 0) std::memcpy(v.data, all.data() + shift_, n * sizeof(T));
  }

 private:
  static std::vector<T> elements(expar::tensor_view<T, 2> v, expar::index_t shift) {
    std::vector<T> all(static_cast<std::size_t>(v.extents[0] * v.strides[0] + shift));
    for (expar::index_t i = 0; i < v.extents[0] * v.strides[0]; ++i)
      all[static_cast<std::size_t>(i + shift)] = v.data[i];
    return all;
  }
  expar::tensor_view<T, 2> shape_;
  expar::index_t shift_;
  device_array<T> array_;
};

template <int = 0>
__global__ void read_rows(expar::gpu::plan_view plan, long long* rows) {
  auto const at = static_cast<expar::index_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (at < plan.tokens * plan.top_k)
    rows[at] = plan.row(at / plan.top_k, static_cast<int>(at % plan.top_k));
}

/// The row of every route, as kernels see it.
inline std::vector<long long> rows_of(expar::gpu::context const& ctx,
                                      expar::gpu::route_plan const& plan) {
  auto const n = static_cast<std::size_t>(plan.tokens() * plan.top_k());
  device_array<long long> const rows(std::vector<long long>(n, -7));
  if (n != 0) {
    read_rows<><<<static_cast<unsigned>((n + 127) / 128), 128, 0, ctx.stream()>>>(plan.view(),
                                                                                  rows.data());
    require_success(cudaGetLastError());
    require_success(cudaStreamSynchronize(ctx.stream()));
  }
  return rows.read();
}

/// Launches, allocations, frees, copies to the host and waits so far, where the device is
/// interpreted.
struct runtime_calls {
  unsigned long of[5] = {};
  static bool counted() { return dlsym(RTLD_DEFAULT, "ptxsim_counts") != nullptr; }
  static runtime_calls now() {
    runtime_calls c;
    if (void* const f = dlsym(RTLD_DEFAULT, "ptxsim_counts"))
      reinterpret_cast<void (*)(unsigned long*)>(f)(c.of);
    return c;
  }
  std::vector<unsigned long> since(runtime_calls const& start) const {
    std::vector<unsigned long> d;
    for (int i = 0; i < 5; ++i) d.push_back(of[i] - start.of[i]);
    return d;
  }
};

}  // namespace expar_test
