// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstring>

#include <expar/exchange/arrivals.hpp>
#include <expar/exchange/collectives.hpp>
#include <expar/exchange/segments.hpp>
#include <expar/tensor.hpp>

namespace expar::inline v0::detail {

/// The linear exchange: every rank with every other at once, by all_to_all_v, or by all_to_all
/// where a capacity makes all segments equal. Rows and, beside them, one scalar per row. Packing
/// and unpacking are local and may throw; run() alone is collective. Keeps its two message buffers
/// from call to call.
class linear_exchange {
 public:
  explicit linear_exchange(std::pmr::memory_resource* memory)
      : outgoing_(memory), incoming_(memory), out_(memory), in_(memory), counts_(memory) {}

  /// One scalar per row that travels beside the rows, or not: what ranks agree on, so that it
  /// cannot be read off the pointer, which is null on a rank without rows.
  template <class S>
  struct column {
    S* data = nullptr;
    bool travels = false;

    index_t bytes() const { return travels ? index_t{sizeof(S)} : 0; }
  };

  /// A message buffer while it is filled or read: byte positions count from `bytes`.
  template <class Byte>
  struct message {
    Byte* bytes;
    index_t const* row_start;
    index_t const* scalar_start;
  };

  /// Makes room for the blocks that `map` sends and for those that arrive; `fill(message)` writes
  /// the first.
  template <class Fill>
  void pack_for_experts(arrivals const& map, index_t row_bytes, index_t scalar_bytes, Fill fill) {
    outgoing_.divide(map.place.ranks, map.sent_rows(), map.sent_first(), row_bytes, scalar_bytes,
                     map.equal_rows());
    incoming_.divide(map.place.ranks, map.arrived_rows(), map.arrived_first(), row_bytes,
                     scalar_bytes, map.equal_rows());
    in_.resize(incoming_.bytes());
    counts_.reserve(map.place.ranks);
    std::byte* const out = out_.resize(outgoing_.bytes());
    fill(message<std::byte>{out, outgoing_.row_start(), outgoing_.scalar_start()});
  }

  /// Puts the blocks that arrived at their rows: `rows`, of which filling rows become zero, and
  /// `scalars`, where they travel.
  template <class T, class S>
  void unpack_at_experts(host_context const& ctx, arrivals const& map, tensor_view<T, 2> rows,
                         column<S> scalars) {
    index_t const row_bytes = bytes_per_row(rows);
    for_each_block(ctx, map, [&](index_t b) {
      std::byte const* const from = in_.data() + incoming_.row_start()[b];
      for (index_t i = 0; i < map.arrived[b]; ++i)
        copy(rows.row(map.first_row[b] + i), from + i * row_bytes, row_bytes);
      if (scalars.travels)
        copy(scalars.data + map.first_row[b], in_.data() + incoming_.scalar_start()[b],
             map.arrived[b] * scalars.bytes());
    });
    map.for_each_gap([&](index_t first, index_t last) {
      for (index_t i = first; i < last; ++i) {
        std::memset(static_cast<void*>(rows.row(i)), 0, static_cast<std::size_t>(row_bytes));
        if (scalars.travels) std::memset(static_cast<void*>(scalars.data + i), 0, sizeof(S));
      }
    });
  }

  /// The way back: packs rows (null: none) or scalars or both.
  template <class T, class S>
  void pack_for_sources(host_context const& ctx, arrivals const& map,
                        tensor_view<T const, 2> const* rows, column<S const> scalars) {
    index_t const row_bytes = rows ? bytes_per_row(*rows) : 0, scalar_bytes = scalars.bytes();
    outgoing_.divide(map.place.ranks, map.arrived_rows(), map.arrived_first(), row_bytes,
                     scalar_bytes, map.equal_rows());
    incoming_.divide(map.place.ranks, map.sent_rows(), map.sent_first(), row_bytes, scalar_bytes,
                     map.equal_rows());
    in_.resize(incoming_.bytes());
    counts_.reserve(map.place.ranks);
    std::byte* const out = out_.resize(outgoing_.bytes());
    for_each_block(ctx, map, [&](index_t b) {
      std::byte* const to = out + outgoing_.row_start()[b];
      for (index_t i = 0; rows && i < map.arrived[b]; ++i)
        copy(to + i * row_bytes, rows->row(map.first_row[b] + i), row_bytes);
      if (scalars.travels)
        copy(out + outgoing_.scalar_start()[b], scalars.data + map.first_row[b],
             map.arrived[b] * scalar_bytes);
    });
  }

  /// What arrived, in the blocks that `map` sends, after pack_for_sources() and run().
  message<std::byte const> at_sources() const {
    return {in_.data(), incoming_.row_start(), incoming_.scalar_start()};
  }

  /// Collective. Exchanges what was packed.
  template <bool EqualSegments, class Comm>
  void run(host_context const& ctx, Comm& comm) {
    if constexpr (EqualSegments) {
      if (outgoing_.bytes() != 0)
        all_to_all(ctx, comm, out_.data(), in_.data(), outgoing_.counts()[0], counts_);
    } else {
      comm.all_to_all_v(ctx, out_.data(), outgoing_.counts(), outgoing_.displacements(), in_.data(),
                        incoming_.counts(), incoming_.displacements());
    }
  }

 private:
  template <class T>
  static index_t bytes_per_row(tensor_view<T, 2> const& rows) {
    return rows.extents[1] * static_cast<index_t>(sizeof(T));
  }
  static void copy(void* to, void const* from, index_t bytes) {
    if (bytes != 0) std::memcpy(to, from, static_cast<std::size_t>(bytes));
  }
  template <class F>
  static void for_each_block(host_context const& ctx, arrivals const& map, F f) {
    ctx.for_each_chunk(map.blocks(), 1, [&](int, index_t first, index_t last) {
      for (index_t b = first; b < last; ++b) f(b);
    });
  }

  segments outgoing_, incoming_;
  buffer<std::byte> out_, in_;
  fixed_counts counts_;
};

}  // namespace expar::inline v0::detail
