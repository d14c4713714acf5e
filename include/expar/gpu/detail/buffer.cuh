// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <utility>

#include <expar/gpu/context.cuh>

namespace expar::inline v0::gpu::detail {

/// Uninitialised device memory in the order of a stream. It only ever grows, so that a buffer which
/// is used again and again stops allocating. Growing loses the content.
template <class T>
class buffer {
 public:
  explicit buffer(context const& ctx) : ctx_(ctx) {}
  /// n elements for one operation: a graph that captures it allocates and frees them.
  buffer(context const& ctx, index_t n) : buffer(ctx) { allocate(static_cast<std::size_t>(n)); }
  buffer(buffer&& other) noexcept
      : ctx_(other.ctx_),
        data_(std::exchange(other.data_, nullptr)),
        capacity_(std::exchange(other.capacity_, 0)) {}
  buffer& operator=(buffer&& other) noexcept {
    std::swap(ctx_, other.ctx_);
    std::swap(data_, other.data_);
    std::swap(capacity_, other.capacity_);
    return *this;
  }
  ~buffer() { release(); }

  /// Throws where room for n elements would have to be allocated while the stream is captured: the
  /// memory would be that of the graph, and the object would keep it beyond the graph.
  void check_growth(char const* operation, index_t n) const {
    if (static_cast<std::size_t>(n) <= capacity_) return;
    device_guard const here(ctx_.device(), operation);
    auto status = cudaStreamCaptureStatusNone;
    check(cudaStreamIsCapturing(ctx_.stream(), &status), "cudaStreamIsCapturing", operation);
    expar::detail::expects(status == cudaStreamCaptureStatusNone, operation, ": ",
                           static_cast<std::size_t>(n) * sizeof(T), " bytes are needed and ",
                           capacity_ * sizeof(T),
                           " are there; none are allocated while the stream is captured, so do it "
                           "once before");
  }
  /// Makes room for n elements; true if the memory is new.
  bool resize(char const* operation, index_t n) {
    check_growth(operation, n);
    if (static_cast<std::size_t>(n) <= capacity_) return false;
    release();
    allocate(static_cast<std::size_t>(n));
    return true;
  }
  T* data() const noexcept { return data_; }
  /// In the order of whose stream the memory lives.
  context const& owner() const noexcept { return ctx_; }

 private:
  void allocate(std::size_t n) {
    if (n != 0) data_ = static_cast<T*>(ctx_.allocate(n * sizeof(T)));
    capacity_ = n;
  }
  void release() noexcept {
    if (data_ != nullptr) ctx_.deallocate(data_, capacity_ * sizeof(T));
    data_ = nullptr;
    capacity_ = 0;
  }

  context ctx_;
  T* data_ = nullptr;
  std::size_t capacity_ = 0;
};

}  // namespace expar::inline v0::gpu::detail
