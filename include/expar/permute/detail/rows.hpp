// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstring>
#include <type_traits>

#include <expar/element.hpp>
#include <expar/plan/plan.hpp>

EXPAR_IEEE_BEGIN
namespace expar::inline v0::detail {

/// Where the rows of each expert stand: row l of expert e begins `start[e] * unit + l * pitch`
/// bytes after `base`. Serves tensors (start counts rows) and message buffers (start counts bytes).
/// What follows takes any such function of (expert, location).
template <class T>
struct expert_rows {
  using byte = std::conditional_t<std::is_const_v<T>, std::byte const, std::byte>;
  byte* base;
  index_t const* start;
  index_t unit, pitch;

  T* operator()(int expert, index_t location) const {
    return reinterpret_cast<T*>(base + start[expert] * unit + location * pitch);
  }
};

template <class T>
expert_rows<T> rows_of(tensor_view<T, 2> v, index_t const* offsets) {
  using byte = typename expert_rows<T>::byte;
  index_t const pitch = v.strides[0] * static_cast<index_t>(sizeof(T));
  return {reinterpret_cast<byte*>(v.data), offsets, pitch, pitch};
}

/// The weight of route (t, j): one, or an entry of a [T,k] tensor.
struct unit_weights {};
template <class W>
struct matrix_weights {
  tensor_view<W const, 2> at;
};
template <class A>
constexpr A weight_of(unit_weights, index_t, int) {
  return A{1};
}
template <class A, class W>
constexpr A weight_of(matrix_weights<W> w, index_t t, int j) {
  return static_cast<A>(widen(w.at.row(t)[j]));
}

/// The same of a column: a weight that depends on it has `columns`, for as many of which it holds.
template <class A, class Weights>
requires requires(Weights w) {
  weight_of<A>(w, index_t{0}, 0);
}
A weight_of(Weights weights, plan_view const&, index_t t, int j, index_t) {
  return weight_of<A>(weights, t, j);
}

template <class T>
void copy_row(T const* from, T* to, index_t n) {
  if (n != 0) std::memcpy(to, from, static_cast<std::size_t>(n) * sizeof(T));
}

template <class T>
void clear_row(T* row, index_t n) {
  if (n != 0) std::memset(static_cast<void*>(row), 0, static_cast<std::size_t>(n) * sizeof(T));
}

/// The gradient of one number: overwritten, or added to.
template <bool Adds, class T>
void put_gradient(T& at, accumulator_t<T> g) {
  if constexpr (Adds)
    at = narrow<T>(widen(at) + g);
  else
    at = narrow<T>(g);
}

/// One scalar per kept route: to its row, and back (0 where there is no row).
template <class W, class Rows>
void scatter_scalars(plan_view const& plan, index_t t, W const* from, Rows const& rows) {
  for (int j = 0; j < plan.top_k; ++j) {
    index_t const at = t * plan.top_k + j;
    if (plan.locations[at] >= 0) *rows(plan.ids[at], plan.locations[at]) = from[j];
  }
}
template <class A, bool Adds = false, class W, class Rows>
void gather_scalars(plan_view const& plan, index_t t, Rows const& rows, W* to) {
  for (int j = 0; j < plan.top_k; ++j) {
    index_t const at = t * plan.top_k + j;
    auto const x = plan.locations[at] < 0 ? accumulator_t<A>{0}
                                          : widen(*rows(plan.ids[at], plan.locations[at]));
    put_gradient<Adds>(to[j], static_cast<accumulator_t<W>>(x));
  }
}

/// Calls f(first, last) for all tokens of a plan, in chunks that are worth a thread for rows of
/// `bytes` bytes.
template <class F>
void for_each_chunk_of_tokens(host_context const& ctx, plan_view const& plan, index_t bytes, F f) {
  index_t const grain = 1 + 262144 / (1 + bytes * (plan.top_k + 1));
  ctx.for_each_chunk(plan.tokens, grain, [&](int, index_t first, index_t last) { f(first, last); });
}
/// Calls f(t) for every token.
template <class F>
void for_each_token(host_context const& ctx, plan_view const& plan, index_t bytes, F f) {
  for_each_chunk_of_tokens(ctx, plan, bytes, [&](index_t first, index_t last) {
    for (index_t t = first; t < last; ++t) f(t);
  });
}

/// Zero in the rows of the layout that no route has.
template <class T>
void zero_padding(route_plan const& plan, expert_rows<T> const& rows, index_t n) {
  for (int e = 0; e < plan.experts(); ++e) {
    index_t const end = plan.offsets()[static_cast<std::size_t>(e) + 1] -
                        plan.offsets()[static_cast<std::size_t>(e)];
    for (index_t l = plan.kept(e); l < end; ++l) clear_row(rows(e, l), n);
  }
}

}  // namespace expar::inline v0::detail
EXPAR_IEEE_END
