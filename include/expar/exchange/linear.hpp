// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>

#include <expar/exchange/agreement.hpp>
#include <expar/exchange/arrivals.hpp>
#include <expar/exchange/segments.hpp>

namespace expar {
inline namespace v0 {
namespace detail {

/// The linear exchange: every rank with every other at once, by all_to_all_v, or by all_to_all
/// where a capacity makes all segments equal. Rows and, beside them, one scalar per row. Keeps its
/// two message buffers from call to call.
class linear_exchange {
 public:
  explicit linear_exchange(std::pmr::memory_resource* memory)
      : outgoing_(memory), incoming_(memory), out_(memory), in_(memory) {}

  /// One scalar per row that travels beside the rows, or not: what ranks agree on, so that it
  /// cannot be read off the pointer, which is null on a rank without rows.
  template <class S>
  struct column {
    S* data = nullptr;
    bool travels = false;
  };

  /// A message buffer while it is filled or read: byte positions count from `bytes`.
  template <class Byte>
  struct message {
    Byte* bytes;
    index_t const* row_start;
    index_t const* scalar_start;
  };

  /// Collective. Sends what fill(message) writes in the blocks that `map` sends, and puts the
  /// blocks that arrive at their rows: `rows` (of which filling rows become zero) and `scalars`,
  /// where not null. If a rank passes a failure, all ranks throw it.
  template <bool EqualSegments, class Comm, class T, class S, class Fill>
  void to_experts(host_context const& ctx, Comm& comm, arrivals const& map,
                  std::string const& failure, Fill fill, tensor_view<T, 2> rows,
                  column<S> scalars) {
    index_t const row_bytes = bytes_per_row<T>(rows),
                  scalar_bytes = scalars.travels ? sizeof(S) : 0;
    int const peers = map.place.ranks;
    outgoing_.divide(peers, map.sent_rows(), map.sent_first(), row_bytes, scalar_bytes,
                     map.equal_rows());
    incoming_.divide(peers, map.arrived_rows(), map.arrived_first(), row_bytes, scalar_bytes,
                     map.equal_rows());
    std::byte* const out = out_.resize(outgoing_.bytes());
    if (failure.empty())
      fill(message<std::byte>{out, outgoing_.row_start(), outgoing_.scalar_start()});
    run<EqualSegments>(ctx, comm, failure);
    for_each_block(ctx, map, [&](index_t b) {
      std::byte const* const from = in_.data() + incoming_.row_start()[b];
      for (index_t i = 0; i < map.arrived[b]; ++i)
        copy(rows.row(map.first_row[b] + i), from + i * row_bytes, row_bytes);
      if (scalars.travels)
        copy(scalars.data + map.first_row[b], in_.data() + incoming_.scalar_start()[b],
             map.arrived[b] * scalar_bytes);
    });
    map.for_each_gap([&](index_t first, index_t last) {
      for (index_t i = first; i < last; ++i) {
        std::memset(static_cast<void*>(rows.row(i)), 0, static_cast<std::size_t>(row_bytes));
        if (scalars.travels) std::memset(static_cast<void*>(scalars.data + i), 0, sizeof(S));
      }
    });
  }

  /// Collective. The way back, of rows (null: none) or scalars or both: gives the message whose
  /// blocks are those that `map` sends.
  template <bool EqualSegments, class Comm, class T, class S>
  message<std::byte const> to_sources(host_context const& ctx, Comm& comm, arrivals const& map,
                                      std::string const& failure,
                                      tensor_view<T const, 2> const* rows,
                                      column<S const> scalars) {
    index_t const row_bytes = rows ? bytes_per_row<T const>(*rows) : 0;
    index_t const scalar_bytes = scalars.travels ? sizeof(S) : 0;
    int const peers = map.place.ranks;
    outgoing_.divide(peers, map.arrived_rows(), map.arrived_first(), row_bytes, scalar_bytes,
                     map.equal_rows());
    incoming_.divide(peers, map.sent_rows(), map.sent_first(), row_bytes, scalar_bytes,
                     map.equal_rows());
    std::byte* const out = out_.resize(outgoing_.bytes());
    if (failure.empty())
      for_each_block(ctx, map, [&](index_t b) {
        std::byte* const to = out + outgoing_.row_start()[b];
        for (index_t i = 0; rows && i < map.arrived[b]; ++i)
          copy(to + i * row_bytes, rows->row(map.first_row[b] + i), row_bytes);
        if (scalars.travels)
          copy(out + outgoing_.scalar_start()[b], scalars.data + map.first_row[b],
               map.arrived[b] * scalar_bytes);
      });
    run<EqualSegments>(ctx, comm, failure);
    return {in_.data(), incoming_.row_start(), incoming_.scalar_start()};
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

  // Every segment begins with a word that is not zero if its sender failed.
  template <bool EqualSegments, class Comm>
  void run(host_context const& ctx, Comm& comm, std::string const& failure) {
    std::byte* const in = in_.resize(incoming_.bytes());
    std::uint64_t const mine = failure.empty() ? 0 : 1;
    for (std::size_t const at : outgoing_.displacements())
      std::memcpy(out_.data() + at, &mine, sizeof mine);
    if constexpr (EqualSegments)
      all_to_all(ctx, comm, out_.data(), in, outgoing_.counts()[0]);
    else
      comm.all_to_all_v(ctx, out_.data(), outgoing_.counts(), outgoing_.displacements(), in,
                        incoming_.counts(), incoming_.displacements());
    for (std::size_t const at : incoming_.displacements()) {
      std::uint64_t theirs;
      std::memcpy(&theirs, in + at, sizeof theirs);
      if (theirs != 0) throw_failure(ctx, comm, failure);
    }
  }

  segments outgoing_, incoming_;
  buffer<std::byte> out_, in_;
};

}  // namespace detail
}  // namespace v0
}  // namespace expar
