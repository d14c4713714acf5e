// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/permute/detail/columns.hpp>
#include <expar/permute/detail/rows.hpp>
#include <expar/permute/detail/stores.hpp>

EXPAR_IEEE_BEGIN
namespace expar::inline v0::detail {
inline namespace EXPAR_VECTORS {

/// Rows that are summed, each with its weight, in this order.
template <class T>
struct weighted_rows {
  using A = accumulator_t<T>;
  static constexpr int most = 32;

  T const* row[most];
  A weight[most];
  int count = 0;

  /// Those of the kept routes of token t, from a column on; there is room for all.
  template <class Rows, class Weights>
  void take(plan_view const& plan, index_t t, Rows const& rows, Weights weights,
            index_t column = 0) {
    count = 0;
    std::int32_t const *const ids = plan.ids + t * plan.top_k, *const locations =
                                                                   plan.locations + t * plan.top_k;
    for (int j = 0; j < plan.top_k; ++j)
      if (locations[j] >= 0) {
        row[count] = rows(ids[j], locations[j]) + column;
        weight[count++] = weight_of<A>(weights, plan, t, j, column);
      }
  }
  EXPAR_ALWAYS_INLINE void ask_for_first(std::size_t bytes) const {
    for (int i = 0; i < count; ++i) prefetch(row[i], bytes);
  }
};

/// How a sum of rows is written: past the caches, and how many bytes ahead its rows are asked for.
struct sum_way {
  bool streams = false;
  std::size_t ahead = 0;
  next_read next{};  // while it is streamed
};

/// The sum of rows, and of the residual before them where there is one (null: none): one
/// accumulator for each column, in the order of the rows, rounded once.
template <class T, class Out>
class row_sum {
  using A = accumulator_t<T>;
  static_assert(std::is_same_v<A, accumulator_t<Out>>);
  static constexpr bool by_vectors = in_vectors<T> || in_quads<T>;
  static constexpr index_t most_lanes = vector_bytes / index_t{sizeof(A)};
  static constexpr index_t width = by_vectors ? 4 * most_lanes : 64;  // of a block
  // Elements that are less aligned than they are large may never begin where a line does.
  static constexpr index_t in_line = line_bytes % sizeof(Out) == 0 && alignof(Out) == sizeof(Out)
                                         ? index_t{line_bytes / sizeof(Out)}
                                         : 0;
  static constexpr index_t of_lines = in_line > width ? in_line : width;

 public:
  /// Whether sums can be streamed, and of how many columns the bursts are.
  static constexpr bool can_stream = in_line != 0;
  static constexpr index_t burst_columns = of_lines;
  static constexpr index_t to_line(Out const* to) {
    return static_cast<index_t>(to_next_line(to) / sizeof(Out));
  }

  /// Columns [column, n); where they are streamed, a line begins at the first, or it is 0.
  static void put(weighted_rows<T> const& rows, Out* to, index_t n, Out const* residual,
                  sum_way way, index_t column = 0) {
    if (n < width) {
      for (; column < n; ++column) to[column] = narrow<Out>(one(rows, column, residual));
      return;
    }
    index_t const last = n - width;
    if (can_stream && way.streams) {
      index_t const head = to_line(to);
      if (column < head) {
        for (; column < head && column <= last; column += width)
          put_block(rows, column, residual, to + column, 0);
        column = column < head ? column : head;
      }
      for (; column + of_lines <= n; column += of_lines) {
        way.next.ask(static_cast<std::size_t>(column), static_cast<std::size_t>(n));
        stream_burst(rows, column, residual, to + column, way.ahead);
      }
    }
    for (; column <= last; column += width)
      put_block(rows, column, residual, to + column, way.ahead);
    if (column == n) return;
    // The rest is the end of a block of which the other columns are there already.
    Out end[width];
    put_block(rows, last, residual, end, 0);
    std::memcpy(static_cast<void*>(to + column), end + (column - last),
                static_cast<std::size_t>(n - column) * sizeof(Out));
  }
  /// Columns [column, column + burst_columns) to where a line begins.
  EXPAR_ALWAYS_INLINE static void stream_burst(weighted_rows<T> const& rows, index_t column,
                                               Out const* residual, Out* to, std::size_t ahead) {
    alignas(line_bytes) Out burst[of_lines];
    for (index_t c = 0; c < of_lines; c += width)
      put_block(rows, column + c, residual, burst + c, ahead);
    stream_lines(reinterpret_cast<std::byte*>(to), reinterpret_cast<std::byte const*>(burst),
                 sizeof burst);
  }

 private:
  EXPAR_ALWAYS_INLINE static void put_block(weighted_rows<T> const& rows, index_t column,
                                            Out const* residual, Out* to, std::size_t ahead) {
    if constexpr (by_vectors)
      put_vectors(rows, column, residual, to, ahead);
    else
      put_loops(rows, column, residual, to, ahead);
  }
  EXPAR_ALWAYS_INLINE static void put_vectors(weighted_rows<T> const& rows, index_t column,
                                              Out const* residual, Out* to, std::size_t ahead) {
    using wide = block<T>;
    using vector = typename wide::vector;
    wide sum{};
    int i = 0;
    if (residual != nullptr) {
      sum = begin_with(residual + column);
    } else if (rows.count != 0) {
      T const* const from = rows.row[0] + column;
      vector const w = rows.weight[0] - vector{};
      wide const x = wide::load(from);
      sum.a = w * x.a, sum.b = w * x.b, sum.c = w * x.c, sum.d = w * x.d;
      ask(from, ahead);
      i = 1;
    }
    for (; i < rows.count; ++i) {
      T const* const from = rows.row[i] + column;
      vector const w = rows.weight[i] - vector{};
      wide const x = wide::load(from);
      sum.a += w * x.a, sum.b += w * x.b, sum.c += w * x.c, sum.d += w * x.d;
      ask(from, ahead);
    }
    if constexpr (alike) {
      block<Out>{sum.a, sum.b, sum.c, sum.d}.store(to);
    } else {
      A lanes[width];
      std::memcpy(lanes, &sum, sizeof lanes);
      for (int c = 0; c < width; ++c) to[c] = narrow<Out>(lanes[wide::place(c)]);
    }
  }
  /// Whether columns of both types stand in the same lanes.
  static constexpr bool alike = [] {
    if constexpr (by_vectors && in_vectors<Out>)
      return block<T>::apart == block<Out>::apart;
    else
      return false;
  }();
  EXPAR_ALWAYS_INLINE static auto begin_with(Out const* residual) {
    if constexpr (alike) {
      auto const x = block<Out>::load(residual);
      return block<T>{x.a, x.b, x.c, x.d};
    } else {
      A lanes[width];
      for (int c = 0; c < width; ++c) lanes[block<T>::place(c)] = widen(residual[c]);
      block<T> x;
      std::memcpy(&x, lanes, sizeof x);
      return x;
    }
  }
  static void put_loops(weighted_rows<T> const& rows, index_t column, Out const* residual, Out* to,
                        std::size_t ahead) {
    A sum[width] = {};
    int i = 0;
    if (residual != nullptr) {
      for (int c = 0; c < width; ++c) sum[c] = widen(residual[column + c]);
    } else if (rows.count != 0) {
      T const* const from = rows.row[0] + column;
      A const w = rows.weight[0];
      for (int c = 0; c < width; ++c) sum[c] = w * widen(from[c]);
      ask(from, ahead);
      i = 1;
    }
    for (; i < rows.count; ++i) {
      T const* const from = rows.row[i] + column;
      A const w = rows.weight[i];
      for (int c = 0; c < width; ++c) sum[c] += w * widen(from[c]);
      ask(from, ahead);
    }
    for (int c = 0; c < width; ++c) to[c] = narrow<Out>(sum[c]);
  }
  EXPAR_ALWAYS_INLINE static void ask(T const* from, std::size_t ahead) {
    if (ahead != 0) prefetch(reinterpret_cast<std::byte const*>(from) + ahead, width * sizeof(T));
  }
  static A one(weighted_rows<T> const& rows, index_t column, Out const* residual) {
    A sum = residual != nullptr ? widen(residual[column]) : A{0};
    for (int i = 0; i < rows.count; ++i) {
      A const product = rows.weight[i] * widen(rows.row[i][column]);
      sum = i == 0 && residual == nullptr ? product : sum + product;
    }
    return sum;
  }
};

}  // namespace EXPAR_VECTORS
}  // namespace expar::inline v0::detail
EXPAR_IEEE_END
