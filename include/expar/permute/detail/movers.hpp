// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/permute/detail/sums.hpp>

EXPAR_IEEE_BEGIN
namespace expar::inline v0::detail {

/// Whether the rows of all routes and those of their tokens, of `bytes` bytes each, are more than
/// stays in the caches.
inline bool exceed_caches(host_context const& ctx, plan_view const& plan, index_t bytes) {
  return size_product(plan.tokens * (plan.top_k + 1), bytes) > ctx.cache_bytes();
}

template <class T>
void put_row(T const* x, T* to, index_t n, bool streams, next_read next = {}) {
  if (streams)
    stream_row(to, x, static_cast<std::size_t>(n) * sizeof(T), next);
  else
    copy_row(x, to, n);
}
/// w * x, or what is there and that.
template <class T, bool Adds = false>
void put_scaled(T const* x, accumulator_t<T> w, T* to, index_t n, bool streams,
                next_read next = {}) {
  weighted_rows<T> one;
  one.row[0] = x, one.weight[0] = w, one.count = 1;
  row_sum<T, T>::put(one, to, n, Adds ? to : nullptr, {streams && !Adds, 0, next});
}

/// Token t's row to each of its places: read once, written for every kept route, or added there.
/// `next_of(t, j, streams)`: what is read after that route.
template <class T, bool Adds = false, class Weights, class Rows, class Next>
void scatter_token(plan_view const& plan, index_t t, T const* x, index_t n, Weights weights,
                   Rows const& rows, bool streams, Next next_of) {
  for (int j = 0; j < plan.top_k; ++j) {
    index_t const at = t * plan.top_k + j;
    next_read const next = next_of(t, j, streams);
    if (plan.locations[at] < 0) continue;
    T* const to = rows(plan.ids[at], plan.locations[at]);
    if constexpr (Adds || !std::is_same_v<Weights, unit_weights>)
      put_scaled<T, Adds>(x, weight_of<accumulator_t<T>>(weights, t, j), to, n, streams, next);
    else
      put_row(x, to, n, streams, next);
  }
}
/// The next token: a part of its row after each route.
template <class T>
auto next_token(plan_view const& plan, tensor_view<T, 2> const& tokens) {
  auto const bytes = static_cast<std::size_t>(tokens.extents[1]) * sizeof(T);
  auto const routes = static_cast<std::size_t>(plan.top_k > 0 ? plan.top_k : 1);
  std::size_t const part = (bytes / routes / line_bytes + 1) * line_bytes;
  return [tokens, bytes, part](index_t t, int j, bool streams) -> next_read {
    std::size_t const first = static_cast<std::size_t>(j) * part;
    if (!streams || t + 1 >= tokens.extents[0] || first >= bytes) return {};
    return {reinterpret_cast<std::byte const*>(tokens.row(t + 1)) + first,
            part < bytes - first ? part : bytes - first};
  };
}

/// Calls f(t, whether rows of `bytes` bytes go past the caches) for every token of a plan.
template <class F>
void scatter_tokens(host_context const& ctx, plan_view const& plan, index_t bytes, F f) {
  bool const streams = exceed_caches(ctx, plan, bytes);
  for_each_chunk_of_tokens(ctx, plan, bytes, [&](index_t first, index_t last) {
    for (index_t t = first; t < last; ++t) f(t, streams);
    if (streams) end_streams();
  });
}

/// Columns [column, column + n) of the sum of a token, as row_sum has it, for weights that depend
/// on the column, types that are summed in another one, and any top_k. At most `sum_block` of them.
inline constexpr int sum_block = 64;
template <class Rows, class Weights, class Out>
void sum_columns(plan_view const& plan, index_t t, Rows const& rows, Weights weights,
                 index_t column, int n, Out* out, Out const* residual) {
  using A = accumulator_t<std::remove_cvref_t<decltype(*rows(0, 0))>>;
  A sum[sum_block];
  bool first = residual == nullptr;
  for (int c = 0; c < n; ++c) sum[c] = first ? A{0} : static_cast<A>(widen(residual[column + c]));
  for (int j = 0; j < plan.top_k; ++j) {
    index_t const at = t * plan.top_k + j;
    if (plan.locations[at] < 0) continue;
    auto const* const from = rows(plan.ids[at], plan.locations[at]) + column;
    A const w = weight_of<A>(weights, plan, t, j, column);
    if (first)
      for (int c = 0; c < n; ++c) sum[c] = w * widen(from[c]);
    else
      for (int c = 0; c < n; ++c) sum[c] += w * widen(from[c]);
    first = false;
  }
  for (int c = 0; c < n; ++c)
    out[column + c] = narrow<Out>(static_cast<accumulator_t<Out>>(sum[c]));
}

/// gather_tokens() of tokens [first, last), whose routes are few enough to be listed.
template <class T, class Rows, class Weights, class Out, class Before>
void sum_tokens(plan_view const& plan, index_t first, index_t last, Rows const& rows,
                Weights weights, tensor_view<Out, 2> const& out,
                tensor_view<Out const, 2> const& residual, sum_way way, Before before) {
  index_t const n = out.extents[1];
  bool const beyond = way.ahead != 0;
  weighted_rows<T> lists[2];
  if constexpr (!requires { Weights::columns; })
    if (first < last) lists[0].take(plan, first, rows, weights);
  for (index_t t = first; t < last; ++t) {
    Out const* const begins_with = residual.data == nullptr ? nullptr : residual.row(t);
    before(t, beyond);
    if constexpr (requires { Weights::columns; }) {
      for (index_t c = 0; c < n; c += Weights::columns) {
        lists[0].take(plan, t, rows, weights, c);
        row_sum<T, Out>::put(lists[0], out.row(t) + c,
                             n - c < Weights::columns ? n - c : Weights::columns,
                             begins_with == nullptr ? nullptr : begins_with + c, way);
      }
    } else {
      auto &now = lists[(t - first) % 2], &next = lists[(t - first + 1) % 2];
      if (t + 1 < last) next.take(plan, t + 1, rows, weights);
      if (beyond && t + 1 < last) next.ask_for_first(rows_ahead);
      row_sum<T, Out>::put(now, out.row(t), n, begins_with, way);
    }
  }
}

/// The sum over kept routes of w * row, in choice order, one accumulator, which begins with the
/// residual where there is one, rounded once. `before(t, beyond)` comes in front of token t,
/// beyond where rows exceed the caches.
template <class Rows, class Weights, class Out, class Before>
void gather_tokens(host_context const& ctx, plan_view const& plan, Rows const& rows,
                   Weights weights, tensor_view<Out, 2> const& out,
                   std::type_identity_t<tensor_view<Out const, 2>> const& residual, Before before) {
  using T = std::remove_cvref_t<decltype(*rows(0, 0))>;
  constexpr bool alike = std::is_same_v<accumulator_t<T>, accumulator_t<Out>>;
  index_t const n = out.extents[1], bytes = n * index_t{sizeof(T)};
  auto const begins_with = [&](index_t t) {
    return residual.data == nullptr ? nullptr : residual.row(t);
  };
  bool const beyond = exceed_caches(ctx, plan, bytes);
  sum_way const way{beyond && residual.data == nullptr, beyond ? rows_ahead : 0};
  for_each_chunk_of_tokens(ctx, plan, bytes, [&](index_t first, index_t last) {
    if constexpr (alike)
      if (plan.top_k <= weighted_rows<T>::most) {
        sum_tokens<T>(plan, first, last, rows, weights, out, residual, way, before);
        if (way.streams) end_streams();
        return;
      }
    for (index_t t = first; t < last; ++t) {
      before(t, beyond);
      for (index_t column = 0; column < n; column += sum_block)
        sum_columns(plan, t, rows, weights, column,
                    static_cast<int>(n - column < sum_block ? n - column : sum_block), out.row(t),
                    begins_with(t));
    }
  });
}

}  // namespace expar::inline v0::detail
EXPAR_IEEE_END
