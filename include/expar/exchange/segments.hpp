// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/communicator.hpp>
#include <expar/detail/buffer.hpp>
#include <expar/detail/sizes.hpp>
#include <expar/exchange/word.hpp>

namespace expar::inline v0::detail {

/// How a message buffer is divided. The segment of a peer is
///   a word | rows | one scalar per row
/// each part at a multiple of 64 bytes.
class segments {
 public:
  explicit segments(std::pmr::memory_resource* memory)
      : counts_(memory), displacements_(memory), scalars_(memory) {}

  /// Memory for divide().
  void reserve(int peers) {
    for (buffer<std::size_t>* b : {&counts_, &displacements_, &scalars_})
      b->reserve(static_cast<std::size_t>(peers));
  }
  /// Segments of a word.
  void words_alone(int peers) {
    divide(
        peers, [](int) { return index_t{0}; }, 0, 0);
  }
  /// The segment of peer p has rows(p) rows; that of `own` is empty. Throws if the bytes are more
  /// than an index can count.
  template <class Rows>
  void divide(int peers, Rows rows, index_t row_bytes, index_t scalar_bytes, int own = -1) {
    for (buffer<std::size_t>* b : {&counts_, &displacements_, &scalars_})
      b->resize(static_cast<std::size_t>(peers));
    index_t all = 0;
    for (int p = 0; p < peers; ++p) {
      index_t const n = p == own ? 0 : rows(p);
      all = size_sum(all, n), counts_[p] = static_cast<std::size_t>(n);
    }
    expects(size_product(all, row_bytes + scalar_bytes) <= most_rows, "exchange: ", all,
            " rows of ", row_bytes + scalar_bytes, " bytes are more than memory can hold");
    total_ = 0;
    for (int p = 0; p < peers; ++p) {
      auto const n = static_cast<index_t>(counts_[p]);
      index_t const scalars = total_ + index_t{sizeof(word)} + padded(n * row_bytes);
      index_t const end = p == own ? total_ : scalars + padded(n * scalar_bytes);
      counts_[p] = static_cast<std::size_t>(end - total_);
      displacements_[p] = static_cast<std::size_t>(total_);
      scalars_[p] = static_cast<std::size_t>(scalars - total_);
      total_ = end;
    }
  }

  index_t bytes() const noexcept { return total_; }
  byte_counts counts() const noexcept { return {counts_.data(), counts_.size()}; }
  byte_counts displacements() const noexcept {
    return {displacements_.data(), displacements_.size()};
  }
  /// The most that divide() makes of rows of so many bytes with their scalars.
  static index_t bound(int peers, index_t rows, index_t bytes_of_row) {
    return size_sum(size_product(peers, 3 * 64), size_product(rows, bytes_of_row));
  }
  /// Where rows begin in any segment, and scalars in that of a peer.
  static constexpr std::size_t rows_at = sizeof(word);
  std::size_t scalars_at(int peer) const noexcept { return scalars_[peer]; }

 private:
  static constexpr index_t padded(index_t n) { return (n + 63) / 64 * 64; }

  buffer<std::size_t> counts_, displacements_, scalars_;
  index_t total_ = 0;
};

}  // namespace expar::inline v0::detail
