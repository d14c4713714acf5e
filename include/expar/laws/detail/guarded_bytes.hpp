// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include <expar/config.hpp>

namespace expar::inline v0::detail {

/// A byte that depends on all bits of x.
inline std::uint8_t mixed_byte(std::uint64_t x) {
  x = (x ^ (x >> 31)) * 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 29)) * 0xbf58476d1ce4e5b9u;
  return static_cast<std::uint8_t>(x >> 56);
}

/// Memory for a communicator to read or to write, between margins: what it writes outside is found,
/// and harms nothing.
class guarded_bytes {
 public:
  enum filling : unsigned char { sent = 0x5A, received = 0xA5 };

  guarded_bytes(filling fill, std::size_t size, std::size_t margin = 4096)
      : size_(size), margin_(margin), fill_(fill), bytes_(size + 2 * margin, std::byte{fill}) {}

  std::byte* data() { return bytes_.data() + margin_; }
  std::size_t size() const { return size_; }
  bool operator==(guarded_bytes const&) const = default;
  void wipe(std::byte* first, std::size_t bytes) const { std::memset(first, fill_, bytes); }
  void wipe() { wipe(bytes_.data(), bytes_.size()); }

  /// Where a byte is written since all were wiped, or null.
  char const* touched() const {
    std::byte const *const first = bytes_.data(), fill{fill_};
    if (*first == fill && std::memcmp(first, first + 1, bytes_.size() - 1) == 0) return nullptr;
    std::size_t at = 0;
    while (first[at] == fill) ++at;
    return at < margin_ ? "before" : at < margin_ + size_ ? "between the segments of" : "behind";
  }

 private:
  std::size_t size_, margin_;
  filling fill_;
  std::vector<std::byte> bytes_;
};

}  // namespace expar::inline v0::detail
