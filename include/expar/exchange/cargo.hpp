// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <exception>

#include <expar/detail/argument_table.hpp>
#include <expar/exchange/batch_state.hpp>
#include <expar/permute/detail/rows.hpp>
#include <expar/permute/detail/stores.hpp>

namespace expar::inline v0::detail {

template <class Layout>
class routing;
template <class From, class Layout, class Site>
class engine;
template <class From>
struct transport_of;

/// Where the rows of a rank begin, wherever that is; null where this one cannot reach them.
struct seat {
  std::byte* first;
  index_t pitch;
};
/// What a transport tells an operation: where the rows of this rank's routes are.
template <class T>
struct slot_rows {
  seat const* at;        // [ranks]
  int const* rank_of;    // [slots]
  index_t const* first;  // [slots]: of this rank's rows for a slot, the number behind `at`

  bool reach(int slot) const { return at[rank_of[slot]].first != nullptr; }
  EXPAR_HD T* operator()(int slot, index_t location) const {
    seat const& s = at[rank_of[slot]];
    return reinterpret_cast<T*>(s.first + (first[slot] + location) * s.pitch);
  }
};
template <class T>
slot_rows<T> rows_at(buffer<seat> const& ranks, seats const& s) {
  return {ranks.data(), s.place.rank_of_slots().data(), s.to.data()};
}

/// Of rows that are here.
template <class T>
seat seat_of(tensor_view<T, 2> const& rows) {
  auto* const data = reinterpret_cast<std::byte const*>(rows.data);
  return {const_cast<std::byte*>(data), rows.strides[0] * index_t{sizeof(T)}};
}

/// f(peer, place among the rows of these slots that come from it, first row here, rows) for runs of
/// rows of the local slots [first_local, last_local) that come from other ranks, in chunks that are
/// worth a thread for rows of `bytes` bytes.
template <class F>
void for_each_foreign_run(host_context const& ctx, seats const& s, int first_local, int last_local,
                          index_t bytes, F f) {
  if (first_local == last_local) return;
  index_t const locals = s.locals(), grain = 1 + 262144 / (1 + 2 * bytes);
  index_t const begin = s.offsets[first_local], all = s.offsets[last_local] - begin;
  int const first_slot = s.place.first(s.rank);
  bool const equal = s.equal_rows >= 0;
  ctx.for_each_chunk(all, grain, [&](int, index_t from_here, index_t to_here) {
    index_t const first = begin + from_here, last = begin + to_here;
    for (int p = 0; p < s.place.ranks(); ++p) {
      if (p == s.rank) continue;
      index_t const* const arrived = s.arrived.data() + p * locals;
      index_t const* const first_row = s.first_row.data() + p * locals;
      index_t place = 0;
      for (int l = first_local; l < last_local; ++l) {
        if (index_t const n = arrived[l]; n != 0) {
          index_t const at = first_row[l], from = first > at ? first : at;
          index_t const to = last < at + n ? last : at + n;
          if (from < to) f(p, place + from - at, from, to - from);
        }
        place += equal ? s.room_of(first_slot + l) : arrived[l];
      }
    }
  });
}

/// What travels between tokens and one side of a batch: rows of T, and beside each a scalar S.
template <class T, class S>
struct cargo {
  side at;
  index_t columns = -1;        // of a row; -1: scalars travel alone
  index_t scalar_bytes = 0;    // sizeof(S), where they travel
  bool callers = false;        // whether the caller has brought what follows, instead of the side's
  std::exception_ptr wrong{};  // or why not
  tensor_view<T, 2> rows{};
  S* scalars = nullptr;

  index_t row_bytes() const { return columns < 0 ? 0 : columns * index_t{sizeof(T)}; }
  tensor_view<T, 2> rows_of(batch_state const& b) const {
    side_memory const& m = b.of(at);
    bool const held = m.held();
    return make_view(held ? reinterpret_cast<T*>(m.rows()) : nullptr, held ? b.at.rows() : 0,
                     columns);
  }

  /// Takes memory for the side from its pool, where it is needed and is not there.
  void make_room(batch_state& b) const {
    index_t const beside = scalars == nullptr ? b.at.rows() * scalar_bytes : 0;
    bool const needed = (columns >= 0 && !callers) || beside != 0;
    if (needed && !b.of(at).held())
      b.pool->take(b.of(at), bytes_of_rows(b.at.rows(), columns, sizeof(T)), beside);
  }
  /// What the caller has not brought is the side's.
  void take_from(batch_state const& b) {
    if (columns >= 0 && !callers) rows = rows_of(b);
    if (scalar_bytes != 0 && scalars == nullptr) scalars = reinterpret_cast<S*>(b.of(at).scalars());
  }
  /// Zero in padding.
  void clear_gaps(seats const& s) const {
    if (!s.rule.pads()) return;
    s.for_each_gap([&](index_t first, index_t last) {
      for (index_t i = first; i < last; ++i) {
        if (columns >= 0) clear_row(rows.row(i), columns);
        if (scalar_bytes != 0) clear_row(scalars + i, 1);
      }
    });
  }

  /// Names the rows among the arguments of an operation; `width`: what their columns are.
  void read_in(argument_table& a, char const* name, batch_state const& b, char const* width) const {
    if (wrong) std::rethrow_exception(wrong);
    expects(callers || b.of(at).held(), a.c_str(), ": the batch has no ", name, "; fill batch.",
            name, "() before, or pass one");
    a.reads(name, callers ? rows : rows_of(b),
            {{b.at.rows(), "the number of rows in the batch"}, {columns, width}});
    name_side(a, b);
  }
  void written_in(argument_table& a, char const* name, batch_state const& b,
                  char const* width) const {
    if (wrong) std::rethrow_exception(wrong);
    if (callers || b.of(at).held())
      a.writes(name, callers ? rows : rows_of(b),
               {{b.at.rows(), "the number of rows in the batch"}, {columns, width}});
    name_side(a, b);
  }

 private:
  /// Over windows what the caller has brought goes through the side, if that is there.
  void name_side(argument_table& a, batch_state const& b) const {
    constexpr char const* sides[] = {"batch.rows()", "batch.y()", "batch.d_y()", "batch.d_rows()",
                                     "what is carried"};
    if (callers && b.of(at).held()) a.writes(sides[static_cast<int>(at)], rows_of(b));
  }
};

/// Rows of the caller's, as `view` gives them, or the side of the batch, `own`, if they are that.
/// If `view` throws, ranks hear of it when they meet.
template <class R, class S, class View>
cargo<R, S> cargo_of_caller(side at, batch_state const& b, tensor_view<R, 2> const& own,
                            View view) {
  bool const no_rows = b.at.rows() == 0 && !b.of(at).held();
  cargo<R, S> c{at};
  try {
    c.rows = view();
    c.callers = no_rows || c.rows.data != own.data || c.rows.strides[0] != own.strides[0] ||
                c.rows.extents[0] != own.extents[0] || c.rows.extents[1] != own.extents[1];
  } catch (...) {
    c.wrong = std::current_exception();
  }
  return c;
}
/// Gradients of row weights that do not stand beside the side's rows make both the caller's.
template <class T, class S, class X>
tensor_view<S const, 1> bring_row_weights(host_context const& ctx, X const& x, batch_state const& b,
                                          cargo<T, S>& c) {
  auto const v = as_view<1>(ctx, x);
  static_assert(std::is_same_v<element_of<decltype(v)>, S>,
                "expar: d_row_weights has the accumulator type of the rows");
  c.scalars = const_cast<S*>(v.data);
  side_memory const& own = b.of(side::d_rows);
  if (!c.callers && !(own.held() && v.data == reinterpret_cast<S const*>(own.scalars())))
    c.callers = true, c.rows = c.rows_of(b);
  return v;
}

/// A side that an operation opens on all ranks: bytes of a row, and of the scalar beside it.
struct opened_side {
  side at;
  index_t row_bytes, scalar_bytes;
};

/// Copies bytes that are one of several pieces; `streams`: past the caches.
inline void copy_bytes(void* to, void const* from, index_t bytes, bool streams = false) {
  if (bytes == 0) return;
  if (!streams) {
    std::memcpy(to, from, static_cast<std::size_t>(bytes));
    return;
  }
  stream_row(to, from, static_cast<std::size_t>(bytes));
  end_streams();
}
/// Whether a copy of so many rows does not stay in the caches.
inline bool copy_exceeds_caches(host_context const& ctx, index_t rows, index_t bytes) {
  return size_product(2 * rows, bytes) > ctx.cache_bytes();
}

}  // namespace expar::inline v0::detail
