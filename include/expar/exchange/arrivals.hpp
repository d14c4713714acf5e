// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/detail/buffer.hpp>
#include <expar/plan/layout.hpp>
#include <expar/plan/placement.hpp>

namespace expar::inline v0::detail {

/// Which rows travel, and where they stand on arrival. A block is the rows of one rank for one
/// expert: on the sending side block e, one per expert; on the receiving side block s * locals + l,
/// from rank s for local expert l.
struct arrivals {
  explicit arrivals(std::pmr::memory_resource* memory)
      : sent(memory), arrived(memory), first_row(memory), offsets(memory), counts(memory) {}

  block_placement place{0, 1};
  int rank = 0;
  index_t capacity = -1;  // rows of every block on the wire; -1: as many as there are

  buffer<index_t> sent;                // [experts]: rows of this rank for each expert
  buffer<index_t> arrived, first_row;  // [ranks * locals]
  buffer<index_t> offsets, counts;     // [locals + 1], [locals]

  /// Of a new batch: room for what is known after counts have travelled.
  void begin(block_placement placement, int own_rank) {
    capacity = -1;
    offsets.clear(), counts.clear();
    auto const local = static_cast<std::size_t>(placement.count(own_rank));
    auto const all = local * static_cast<std::size_t>(placement.ranks);
    sent.resize(static_cast<std::size_t>(placement.experts));
    arrived.resize(all), first_row.resize(all);
    offsets.reserve(local + 1), counts.reserve(local);
    place = placement, rank = own_rank;
  }

  int locals() const { return place.count(rank); }
  int blocks() const { return place.ranks * locals(); }
  index_t rows() const { return offsets.size() == 0 ? 0 : offsets[locals()]; }

  // What segments::divide asks of either side.
  auto sent_rows() const {
    return [this](int b) { return capacity < 0 ? sent[b] : capacity; };
  }
  auto sent_first() const {
    return [this](int rank_) { return place.first(rank_); };
  }
  auto arrived_rows() const {
    return [this](int b) { return capacity < 0 ? arrived[b] : capacity; };
  }
  auto arrived_first() const {
    return [this](int rank_) { return rank_ * locals(); };
  }
  index_t equal_rows() const { return capacity < 0 ? -1 : capacity * place.most(); }

  /// From `arrived` to the rest: expert after expert, within one in order of the source rank. With
  /// a capacity every block has that many rows; else an expert begins at a multiple of `alignment`.
  void lay_out(int alignment) {
    int const n = locals();
    offsets.resize(static_cast<std::size_t>(n) + 1);
    counts.resize(static_cast<std::size_t>(n));
    index_t row = 0;
    for (int l = 0; l < n; ++l) {
      offsets[l] = row;
      counts[l] = 0;
      for (int s = 0; s < place.ranks; ++s) {
        index_t const b = static_cast<index_t>(s) * n + l;
        first_row[b] = row;
        row += capacity < 0 ? arrived[b] : capacity;
        counts[l] += arrived[b];
      }
      row = round_up(row, alignment);
    }
    offsets[n] = row;
  }

  /// Calls f(first, last) for each run of rows that only fills.
  template <class F>
  void for_each_gap(F f) const {
    int const n = locals();
    for (int l = 0; l < n; ++l) {
      index_t filled = offsets[l];
      for (int s = 0; s < place.ranks; ++s) {
        index_t const b = static_cast<index_t>(s) * n + l;
        if (first_row[b] != filled) f(filled, first_row[b]);
        filled = first_row[b] + arrived[b];
      }
      if (filled != offsets[l + 1]) f(filled, offsets[l + 1]);
    }
  }
};

}  // namespace expar::inline v0::detail
