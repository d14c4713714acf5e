// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/exchange/agreement.hpp>
#include <expar/exchange/batch_state.hpp>
#include <expar/permute/detail/rows.hpp>

namespace expar::inline v0::detail {

/// Where the rows of every slot are, wherever that is: what a transport tells an operation.
struct seat {
  std::byte* first;  // null where this rank cannot reach them
  index_t pitch;
};
template <class T>
struct slot_rows {
  seat const* at;  // [slots]

  T* operator()(int slot, index_t location) const {
    return reinterpret_cast<T*>(at[slot].first + location * at[slot].pitch);
  }
};

/// What travels between tokens and one side of a batch: rows of T, and beside each a scalar S.
template <class T, class S>
struct cargo {
  static constexpr index_t none = -1;

  side at;
  index_t columns = none;    // of a row; none: scalars travel alone
  tensor_view<T, 2> rows{};  // the caller's, instead of the side's
  bool callers = false;      // whether they are
  index_t scalar_bytes = 0;  // sizeof(S), where they travel
  S* scalars = nullptr;      // instead of those beside the side's rows

  index_t row_bytes() const { return columns < 0 ? 0 : columns * index_t{sizeof(T)}; }

  /// The rows and scalars of the side, where the caller has brought none.
  void take_from(batch_state const& b) {
    side_memory const& m = b.of(at);
    if (columns >= 0 && !callers)
      rows = make_view(reinterpret_cast<T*>(m.rows()), b.at.rows(), columns);
    if (scalar_bytes != 0 && scalars == nullptr) scalars = reinterpret_cast<S*>(m.scalars());
  }
  /// Takes memory for the side from its pool, where it is needed and is not there.
  void make_room(batch_state& b) const {
    if (columns >= 0 && !callers && !b.of(at).held())
      b.pool->take(b.of(at), bytes_of_rows(b.at.rows(), columns, sizeof(T)),
                   scalars == nullptr ? b.at.rows() * scalar_bytes : 0);
  }
  /// Zero in padding.
  void clear_gaps(seats const& s) const {
    s.for_each_gap([&](index_t first, index_t last) {
      for (index_t i = first; i < last; ++i) {
        if (columns >= 0) clear_row(rows.row(i), columns);
        if (scalar_bytes != 0) clear_row(scalars + i, 1);
      }
    });
  }
};

/// Sizes of a side that an operation opens on all ranks.
struct opened_side {
  side at;
  index_t row_bytes, scalar_bytes;
};

inline void copy_bytes(void* to, void const* from, index_t bytes) {
  if (bytes != 0) std::memcpy(to, from, static_cast<std::size_t>(bytes));
}

}  // namespace expar::inline v0::detail
