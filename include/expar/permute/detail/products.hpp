// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/permute/detail/dots.hpp>
#include <expar/permute/detail/movers.hpp>

EXPAR_IEEE_BEGIN
namespace expar::inline v0::detail {
inline namespace EXPAR_VECTORS {

/// Routes of one token, of each of which a row y is here: w * x goes to its place, and <y, x> is
/// its dot.
template <class T>
struct dotted_routes {
  static constexpr int most = 16;

  T const* x = nullptr;
  int count = 0;
  T const* y[most];
  T* to[most];
  accumulator_t<T> weight[most];
  index_t route[most];

  /// From route `at` on as many of its token as there is room for; returns the one behind them.
  template <class X, class Y, class Weights, class Rows, class Without>
  index_t take(plan_view const& plan, index_t at, tensor_view<X, 2> const& tokens, Y y_of,
               Weights weights, Rows const& rows, Without without) {
    index_t const t = at / plan.top_k, end = (t + 1) * plan.top_k;
    x = tokens.row(t), count = 0;
    for (; at < end && count < most; ++at) {
      y[count] = y_of(at);
      if (y[count] == nullptr) {
        without(at);
        continue;
      }
      to[count] = rows(plan.ids[at], plan.locations[at]);
      weight[count] = weight_of<accumulator_t<T>>(weights, t, static_cast<int>(at % plan.top_k));
      route[count++] = at;
    }
    return at;
  }
};

/// Both products of the routes `now`, part by part of x, so that memory is read and written for all
/// of them at once; `next` is asked for. put(route, dot) takes the dots. `beyond`: rows exceed the
/// caches.
template <bool Adds, class T, class Put>
void put_products(dotted_routes<T> const& now, dotted_routes<T> const& next, index_t n, bool beyond,
                  Put put) {
  using products = row_sum<T, T>;
  constexpr index_t burst = products::burst_columns, lines = index_t{4 * line_bytes / sizeof(T)},
                    many = lines > burst ? lines / burst * burst : burst,
                    ahead = index_t{rows_ahead / sizeof(T)};
  bool const streams = beyond && !Adds && products::can_stream;
  dot_sums<T> dots[dotted_routes<T>::most];
  weighted_rows<T> one;
  one.row[0] = now.x, one.count = 1;
  for (index_t c = 0, end; c < n; c = end) {
    end = beyond && n - c > many ? c + many : n;
    auto const later = [&](T const* row, T const* after) {
      index_t const first = c + ahead;
      return !beyond            ? nullptr
             : first < n        ? row + first
             : after == nullptr ? after
                                : after + (first - n);
    };
    if (T const* const from = later(now.x, next.x))
      prefetch(from, static_cast<std::size_t>(end - c) * sizeof(T));
    for (int i = 0; i < now.count; ++i) {
      dots[i].add(now.y[i] + c, now.x + c, end - c - (end - c) % dots[i].count,
                  later(now.y[i], i < next.count ? next.y[i] : nullptr));
      one.weight[0] = now.weight[i];
      T* const to = now.to[i];
      // What is written is so far in front of what is read that a line begins there.
      index_t const head = streams ? products::to_line(to) : 0;
      index_t const from = c == 0 ? 0 : c + head < n ? c + head : n;
      index_t const stop = end == n || end + head > n ? n : end + head;
      if (streams && stop - from == many && (c != 0 || head == 0))
        for (index_t b = 0; b < many; b += burst)
          products::stream_burst(one, from + b, nullptr, to + from + b, 0);
      else
        products::put(one, to, stop, Adds ? to : nullptr, {streams, 0}, from);
    }
  }
  index_t const whole = n - n % dot_sums<T>::count;
  for (int i = 0; i < now.count; ++i)
    put(now.route[i], dots[i].total(now.y[i] + whole, now.x + whole, n - whole));
}

}  // namespace EXPAR_VECTORS

/// Every token row times the weight to each of its places, or added there, and its dots with the
/// rows y: put(route, dot) takes them. y_of(route): a row, or null; then without(route, streams)
/// takes the route.
template <bool Adds, class X, class Y, class Weights, class Rows, class Put, class Without>
void scatter_products(host_context const& ctx, plan_view const& plan,
                      tensor_view<X, 2> const& tokens, Y y_of, Weights weights, Rows const& rows,
                      Put put, Without without) {
  using T = std::remove_const_t<X>;
  index_t const n = tokens.extents[1], bytes = n * index_t{sizeof(T)};
  bool const beyond = exceed_caches(ctx, plan, bytes);
  for_each_chunk_of_tokens(ctx, plan, bytes, [&](index_t first, index_t last) {
    dotted_routes<T> lists[2];
    index_t const end = last * plan.top_k;
    index_t at = first * plan.top_k, behind = at;
    auto const take = [&](dotted_routes<T>& list) {
      list.x = nullptr, list.count = 0;
      if (behind < end)
        behind = list.take(plan, behind, tokens, y_of, weights, rows,
                           [&](index_t route) { without(route, beyond); });
    };
    take(lists[0]);
    for (int i = 0; at < end; i ^= 1) {
      at = behind;
      take(lists[i ^ 1]);
      put_products<Adds>(lists[i], lists[i ^ 1], n, beyond, put);
    }
    if (beyond) end_streams();
  });
}

}  // namespace expar::inline v0::detail
EXPAR_IEEE_END
