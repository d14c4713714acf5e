// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/comm/detail/mpi_node_memory.hpp>

namespace expar::inline v0::detail {

/// The window of a rank: the parts of all ranks one behind the other, in the addresses of this
/// process. It gives back its own addresses and asks nobody; the memory goes when the last has. One
/// that has been moved from has no bytes and no ranks.
class node_window {
 public:
  struct view_type {
    std::byte* first = nullptr;
    std::size_t pitch = 0;
    int rank_ = 0, size_ = 0;
    int rank() const noexcept { return rank_; }
    int size() const noexcept { return size_; }
    void* peer(int p, std::size_t offset) const noexcept {
      return first + static_cast<std::size_t>(p) * pitch + offset;
    }
  };

  /// From one rank's part to the next, or 0 where the machine has less: the system would end
  /// processes before it says so.
  static std::size_t pitch_for(std::size_t bytes, std::size_t ranks) {
    auto const pages = static_cast<std::size_t>(::sysconf(_SC_PHYS_PAGES));
    if (bytes > pages / ranks * node_pages(1)) return 0;
    return node_pages(bytes == 0 ? 1 : bytes);
  }
  /// The memory of a part comes from its rank.
  int map(node_file const& file, std::size_t bytes, std::size_t pitch, std::size_t rank,
          std::size_t ranks) {
    if (int const error = file.extend(rank * pitch, pitch)) return error;
    if (int const error = map_.map(file, 0, ranks * pitch)) return error;
    bytes_ = bytes, pitch_ = pitch, rank_ = static_cast<int>(rank);
    size_ = static_cast<int>(ranks);
    return 0;
  }

  std::size_t size_bytes() const noexcept { return map_.begin() == nullptr ? 0 : bytes_; }
  view_type view() const noexcept {
    if (map_.begin() == nullptr) return {};
    return {map_.begin(), pitch_, rank_, size_};
  }

 private:
  node_mapping map_;
  std::size_t bytes_ = 0, pitch_ = 0;
  int rank_ = 0, size_ = 0;
};

}  // namespace expar::inline v0::detail
