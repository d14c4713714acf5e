// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory_resource>
#include <new>
#include <type_traits>
#include <utility>

#include <expar/config.hpp>
#include <expar/error.hpp>

namespace expar::inline v0::detail {

/// Uninitialised storage from a memory resource. It only ever grows, so that a buffer which is used
/// again and again stops allocating. Growing loses the content.
template <class T>
class buffer {
  static_assert(std::is_trivially_copyable_v<T>);
  static constexpr std::size_t alignment = alignof(T) > 64 ? alignof(T) : 64;

 public:
  explicit buffer(std::pmr::memory_resource* from = std::pmr::get_default_resource())
      : from_(from) {
    expects(from != nullptr, "memory is null; a resource is needed");
  }
  buffer(buffer&& other) noexcept
      : from_(other.from_),
        data_(std::exchange(other.data_, nullptr)),
        size_(std::exchange(other.size_, 0)),
        capacity_(std::exchange(other.capacity_, 0)) {}
  buffer& operator=(buffer&& other) noexcept {
    std::swap(from_, other.from_);
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    std::swap(capacity_, other.capacity_);
    return *this;
  }
  ~buffer() { release(); }

  /// Makes room for n elements and gives their address.
  T* resize(std::size_t n) {
    reserve(n);
    size_ = n;
    return data_;
  }
  T* resize(std::ptrdiff_t n) { return resize(static_cast<std::size_t>(n)); }
  /// Makes room for n elements, so that resize(n) will not throw. The content is lost if it grows.
  void reserve(std::size_t n) {
    if (n <= capacity_) return;
    if (n > PTRDIFF_MAX / sizeof(T)) throw std::bad_array_new_length();
    release();
    data_ = static_cast<T*>(from_->allocate(n * sizeof(T), alignment));
    capacity_ = n;
  }
  void clear() noexcept { size_ = 0; }
  /// Empty from now on; the memory is never freed, since somebody else may still write it.
  void abandon() noexcept { data_ = nullptr, size_ = capacity_ = 0; }
  T* assign(std::size_t n, T value) {
    resize(n);
    for (std::size_t i = 0; i < n; ++i) data_[i] = value;
    return data_;
  }

  T* data() noexcept { return data_; }
  T const* data() const noexcept { return data_; }
  std::size_t size() const noexcept { return size_; }
  std::size_t capacity() const noexcept { return capacity_; }
  T& operator[](std::ptrdiff_t i) noexcept { return data_[i]; }
  T const& operator[](std::ptrdiff_t i) const noexcept { return data_[i]; }
  T* begin() noexcept { return data_; }
  T* end() noexcept { return data_ + size_; }
  T const* begin() const noexcept { return data_; }
  T const* end() const noexcept { return data_ + size_; }
  std::pmr::memory_resource* resource() const noexcept { return from_; }

 private:
  void release() noexcept {
    if (data_ != nullptr) from_->deallocate(data_, capacity_ * sizeof(T), alignment);
    data_ = nullptr;
    size_ = capacity_ = 0;
  }

  std::pmr::memory_resource* from_;
  T* data_ = nullptr;
  std::size_t size_ = 0, capacity_ = 0;
};

/// A number that is zero where it was moved from, as a buffer is empty.
template <class T>
class cleared_by_move {
 public:
  cleared_by_move(T value = T{}) noexcept : value_(value) {}
  cleared_by_move(cleared_by_move&& other) noexcept : value_(std::exchange(other.value_, T{})) {}
  cleared_by_move& operator=(cleared_by_move&& other) noexcept {
    value_ = std::exchange(other.value_, T{});
    return *this;
  }
  operator T() const noexcept { return value_; }

 private:
  T value_;
};

}  // namespace expar::inline v0::detail
