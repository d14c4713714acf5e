// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/communicator.hpp>
#include <expar/detail/buffer.hpp>
#include <expar/detail/sizes.hpp>
#include <expar/exchange/word.hpp>

namespace expar::inline v0::detail {

/// How a message buffer is divided. Rows come in blocks (the rows of one slot, from one rank),
/// blocks in order of the peer that they go to or come from. A peer's segment is
///   a word | its rows, block after block | one scalar per row, block after block
/// each part at a multiple of 64 bytes.
class segments {
 public:
  explicit segments(std::pmr::memory_resource* memory)
      : counts_(memory), displacements_(memory), row_start_(memory), scalar_start_(memory) {}

  /// Memory for divide().
  void reserve(int peers, int blocks) {
    counts_.reserve(static_cast<std::size_t>(peers));
    displacements_.reserve(static_cast<std::size_t>(peers));
    row_start_.reserve(static_cast<std::size_t>(blocks));
    scalar_start_.reserve(static_cast<std::size_t>(blocks));
  }
  /// Segments of a word.
  void words_alone(int peers) {
    divide(
        peers, [](int) { return 0; }, [](int) { return 0; }, 0, 0, 0);
  }
  /// Block b has rows(b) rows; the blocks of peer p are first(p) .. first(p + 1) - 1. The segment
  /// of peer `own` is empty. With `equal_rows` >= 0 every segment, that one too, has room for so
  /// many rows, so that all have one size. Throws if the bytes are more than an index can count.
  template <class Rows, class First>
  void divide(int peers, Rows rows, First first, index_t row_bytes, index_t scalar_bytes,
              index_t equal_rows, int own = -1) {
    counts_.resize(static_cast<std::size_t>(peers));
    displacements_.resize(static_cast<std::size_t>(peers));
    row_start_.resize(static_cast<std::size_t>(first(peers)));
    scalar_start_.resize(static_cast<std::size_t>(first(peers)));
    index_t all = equal_rows < 0 ? 0 : size_product(peers, equal_rows);
    for (int b = 0; equal_rows < 0 && b < first(peers); ++b) all = size_sum(all, rows(b));
    expects(size_product(all, row_bytes + scalar_bytes) <= most_rows, "exchange: ", all,
            " rows of ", row_bytes + scalar_bytes, " bytes are more than memory can hold");
    total_ = 0;
    for (int p = 0; p < peers; ++p) {
      index_t n = 0;
      for (int b = first(p); b < first(p + 1); ++b) n += rows(b);
      index_t const room = equal_rows < 0 ? n : equal_rows;
      index_t const word_bytes = p == own && equal_rows < 0 ? 0 : index_t{sizeof(word)};
      index_t row_at = total_ + word_bytes, scalar_at = row_at + padded(room * row_bytes);
      index_t const end = scalar_at + padded(room * scalar_bytes);
      for (int b = first(p); b < first(p + 1); ++b) {
        row_start_[b] = row_at, row_at += rows(b) * row_bytes;
        scalar_start_[b] = scalar_at, scalar_at += rows(b) * scalar_bytes;
      }
      counts_[p] = static_cast<std::size_t>(end - total_);
      displacements_[p] = static_cast<std::size_t>(total_);
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
  /// Where the rows and the scalars of each block begin, in bytes.
  index_t const* row_start() const noexcept { return row_start_.data(); }
  index_t const* scalar_start() const noexcept { return scalar_start_.data(); }

 private:
  static constexpr index_t padded(index_t n) { return (n + 63) / 64 * 64; }

  buffer<std::size_t> counts_, displacements_;
  buffer<index_t> row_start_, scalar_start_;
  index_t total_ = 0;
};

}  // namespace expar::inline v0::detail
