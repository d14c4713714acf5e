// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

#include <expar/communicator.hpp>
#include <expar/plan/block_placement.hpp>
#include <expar/plan/layout.hpp>

namespace expar::inline v0 {
/// How much a window holds: `rows` expert rows on every rank, and buffers for them in the forward
/// pass alone (two) or in both (four).
struct window_size {
  index_t rows;
  bool backward = true;
};

namespace detail {

/// Rows that always are enough on every rank where none has more than `tokens` tokens.
template <class Layout>
index_t worst_case_rows(block_placement place, Layout layout, int top_k, index_t tokens) {
  expects(tokens >= 0, "worst_case_rows: tokens is ", tokens, "; it is at least 0");
  index_t rows = size_product(tokens, top_k);
  if constexpr (std::is_same_v<Layout, fixed_capacity>)
    rows = size_product(size_product(place.most(), place.ranks),
                        capacity_of(layout, tokens, place.experts, top_k, rows));
  else
    rows = size_sum(size_product(rows, place.ranks), place.most() * index_t{layout.alignment - 1});
  expects(rows < uncountable, "worst_case_rows: tokens is ", tokens,
          "; the rows of so many are more than memory can hold");
  return rows;
}

// The arithmetic of the window engine: what it says on the host, it says in kernels.

/// Threads that do one phase together: of `members`, this is number `member`.
struct team {
  index_t member = 0, members = 1;
};

/// How the window of every rank is divided: two tables of what the ranks say of themselves, used in
/// turns so that no rank overwrites what another still reads; and behind them `buffers` buffers of
/// `rows` rows, each at a multiple of 256 bytes.
struct window_shape {
  block_placement place{0, 1};
  index_t rows = 0, row_bytes = 0;
  int buffers = 0;

  /// Words of a rank: its routes for each expert, and its tokens.
  EXPAR_HD constexpr index_t words() const { return index_t{place.experts} + 1; }
  EXPAR_HD constexpr index_t tokens_word() const { return place.experts; }
  /// Byte offsets into a window.
  EXPAR_HD constexpr std::size_t said_by(unsigned turn, int rank) const {
    return static_cast<std::size_t>((turn % 2 * index_t{place.ranks} + rank) * words()) *
           sizeof(index_t);
  }
  EXPAR_HD constexpr std::size_t buffer(int which) const {
    index_t const tables = index_t{2 * sizeof(index_t)} * place.ranks * words();
    return static_cast<std::size_t>(round_up(tables, 256) +
                                    which * round_up(rows * row_bytes, 256));
  }
  EXPAR_HD constexpr std::size_t bytes() const { return buffer(buffers); }
};

/// The shape for rows of so many bytes; throws if there is no memory that large.
inline window_shape shape_of(block_placement place, index_t row_bytes, window_size size) {
  index_t const most = PTRDIFF_MAX / 8 / row_bytes;
  expects(size.rows >= 0 && size.rows <= most, "make_batch: rows is ", size.rows,
          "; it lies between 0 and ", most);
  return {place, size.rows, row_bytes, size.backward ? 4 : 2};
}

/// First phase: a rank says to all ranks how many routes it has for each expert.
#if defined(__CUDACC__)
#pragma nv_exec_check_disable  // the view of a host window has host functions
#endif
template <window_view View>
EXPAR_HD void publish(View const& window, window_shape const& shape, unsigned turn,
                      index_t const* counts, index_t tokens, team const& t) {
  index_t const words = shape.words();
  for (index_t i = t.member; i < shape.place.ranks * words; i += t.members) {
    auto const peer = static_cast<int>(i / words);
    index_t const w = i % words;
    auto* const to = static_cast<index_t*>(window.peer(peer, shape.said_by(turn, window.rank())));
    to[w] = w < shape.place.experts ? counts[w] : tokens;
  }
}

/// What the layout of the experts' rows is, once it is known: capacity -1 for a ragged one.
struct window_rule {
  int alignment;
  index_t capacity;
};

/// Rows of one expert at its owner: `before` come from ranks before this one, `filled` from all of
/// them, `size` with those that only fill.
struct expert_room {
  index_t before, filled, size;
};

/// `said`: the table of all ranks.
EXPAR_HD constexpr expert_room room_of(window_shape const& shape, window_rule rule,
                                       index_t const* said, int expert, int rank) {
  bool const fixed = rule.capacity >= 0;
  index_t sum = 0, before = 0;
  for (int s = 0; s < shape.place.ranks; ++s) {
    if (s == rank) before = sum;
    index_t const count = said[s * shape.words() + expert];
    sum += fixed && count > rule.capacity ? rule.capacity : count;
  }
  if (fixed) return {rank * rule.capacity, sum, shape.place.ranks * rule.capacity};
  return {before, sum, round_up(sum, rule.alignment)};
}

/// Where the rows of this rank for one expert begin: in whose window, and at which row there.
struct destination {
  std::byte* window;
  index_t first_row;
};

/// The rows of all experts, wherever they are: location l of expert e is the row of this rank's
/// route with that place. Null for a row behind the last of the window.
template <class T>
struct peer_rows {
  destination const* to;  // [experts]
  std::size_t buffer;
  index_t pitch, rows;  // bytes from row to row; rows of a window

  EXPAR_HD T* operator()(int expert, index_t location) const {
    index_t const row = to[expert].first_row + location;
    if (row >= rows) return nullptr;
    return reinterpret_cast<T*>(to[expert].window + buffer + row * pitch);
  }
};

template <class T>
EXPAR_HD constexpr peer_rows<T> rows_of(window_shape const& shape, destination const* to,
                                        int buffer) {
  return {to, shape.buffer(buffer), shape.row_bytes, shape.rows};
}

}  // namespace detail
}  // namespace expar::inline v0
