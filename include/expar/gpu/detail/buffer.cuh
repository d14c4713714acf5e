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

  /// Makes room for n elements; true if the memory is new.
  bool resize(index_t n) {
    auto const wanted = static_cast<std::size_t>(n);
    if (wanted <= capacity_) return false;
    release();
    data_ = static_cast<T*>(ctx_.allocate(wanted * sizeof(T)));
    capacity_ = wanted;
    return true;
  }
  T* data() const noexcept { return data_; }
  /// In the order of whose stream the memory lives.
  context const& owner() const noexcept { return ctx_; }

 private:
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
