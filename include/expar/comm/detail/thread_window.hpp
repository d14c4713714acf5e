// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <utility>
#include <vector>

#include <expar/detail/shared.hpp>

namespace expar::inline v0::detail {

/// What the memory of a window is made of: it begins where a line does, so that rows in it are
/// written past the caches from their first byte on.
struct alignas(64) window_line {
  std::byte bytes[64];
};

/// The memory of one window, of all ranks. Each rank owns all of it as long as it has the window:
/// one that writes late does not write into memory that another has given back.
struct window_memory : counted {
  explicit window_memory(int ranks)
      : parts(static_cast<std::size_t>(ranks)), addresses(static_cast<std::size_t>(ranks)) {}

  std::vector<std::vector<window_line>> parts;
  std::vector<std::byte*> addresses;
};

/// The window of a rank that is a thread. One that has been moved from has no bytes and no ranks.
class thread_window {
 public:
  struct view_type {
    std::byte* const* parts = nullptr;
    int rank_ = 0, size_ = 0;
    int rank() const noexcept { return rank_; }
    int size() const noexcept { return size_; }
    void* peer(int p, std::size_t offset) const noexcept { return parts[p] + offset; }
  };

  thread_window() = default;
  /// Adds `part`, of which this rank brings so many bytes.
  thread_window(shared<window_memory> memory, int rank, std::vector<window_line> part,
                std::size_t bytes) noexcept
      : memory_(std::move(memory)), rank_(rank), bytes_(bytes) {
    auto const mine = static_cast<std::size_t>(rank);
    memory_->addresses[mine] = part.empty() ? nullptr : part.front().bytes;
    memory_->parts[mine] = std::move(part);
  }

  std::size_t size_bytes() const noexcept { return memory_.get() == nullptr ? 0 : bytes_; }
  view_type view() const noexcept {
    if (memory_.get() == nullptr) return {};
    return {memory_->addresses.data(), rank_, static_cast<int>(memory_->addresses.size())};
  }

 private:
  shared<window_memory> memory_;
  int rank_ = 0;
  std::size_t bytes_ = 0;
};

}  // namespace expar::inline v0::detail
