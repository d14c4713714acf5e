// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>

#include <expar/tensor.hpp>

namespace expar::inline v0::gpu::detail {

/// Addresses of device memory, and sizes of workspaces, are multiples of it.
inline constexpr std::size_t memory_unit = 256;

constexpr std::size_t whole_units(std::size_t bytes) {
  return (bytes + memory_unit - 1) / memory_unit * memory_unit;
}

/// Cuts memory into arrays. One that is given no memory finds how much they need, so that the code
/// which lays arrays out also tells their size.
class carver {
 public:
  explicit carver(void* memory = nullptr) : base_(static_cast<std::byte*>(memory)) {}

  template <class T>
  T* take(index_t n) {
    std::byte* const p = base_ == nullptr ? nullptr : base_ + bytes_;
    bytes_ += whole_units(static_cast<std::size_t>(n) * sizeof(T));
    return reinterpret_cast<T*>(p);
  }
  std::size_t bytes() const noexcept { return bytes_; }

 private:
  std::byte* base_;
  std::size_t bytes_ = 0;
};

}  // namespace expar::inline v0::gpu::detail
