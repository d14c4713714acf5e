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

  EXPAR_HD T* operator()(int expert, index_t location) const {
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
EXPAR_HD constexpr A weight_of(unit_weights, index_t, int) {
  return A{1};
}
template <class A, class W>
EXPAR_HD constexpr A weight_of(matrix_weights<W> w, index_t t, int j) {
  return static_cast<A>(widen(w.at.row(t)[j]));
}

/// The weight of columns [column, column + gather_block) of a row: that of the route.
template <class A, class Weights>
EXPAR_HD constexpr A weight_of(Weights weights, plan_view const&, index_t t, int j, index_t) {
  return weight_of<A>(weights, t, j);
}

template <class T>
EXPAR_HD void copy_row(T const* from, T* to, index_t n) {
#if defined(__CUDA_ARCH__)
  for (index_t c = 0; c < n; ++c) to[c] = from[c];
#else
  if (n != 0) std::memcpy(to, from, static_cast<std::size_t>(n) * sizeof(T));
#endif
}

template <class T>
void clear_row(T* row, index_t n) {
  if (n != 0) std::memset(static_cast<void*>(row), 0, static_cast<std::size_t>(n) * sizeof(T));
}

template <class T>
EXPAR_HD void scale_row(T const* from, accumulator_t<T> w, T* to, index_t n) {
  for (index_t c = 0; c < n; ++c) to[c] = narrow<T>(w * widen(from[c]));
}

template <class T>
EXPAR_HD void add_scaled_row(T const* from, accumulator_t<T> w, T* to, index_t n) {
  for (index_t c = 0; c < n; ++c) to[c] = narrow<T>(widen(to[c]) + w * widen(from[c]));
}

/// The gradient of one number: overwritten, or added to.
template <bool Adds, class T>
EXPAR_HD void put_gradient(T& at, accumulator_t<T> g) {
  if constexpr (Adds)
    at = narrow<T>(widen(at) + g);
  else
    at = narrow<T>(g);
}

/// <a, b> in an order that depends on n alone: 16 interleaved sums, then a tree.
template <class T>
EXPAR_HD accumulator_t<T> dot_rows(T const* a, T const* b, index_t n) {
  constexpr int lanes = 16;
  accumulator_t<T> sum[lanes] = {};
  index_t c = 0;
  for (; c + lanes <= n; c += lanes)
    for (int l = 0; l < lanes; ++l) sum[l] += widen(a[c + l]) * widen(b[c + l]);
  for (int l = 0; c < n; ++c, ++l) sum[l] += widen(a[c]) * widen(b[c]);
  for (int half = lanes / 2; half > 0; half /= 2)
    for (int l = 0; l < half; ++l) sum[l] += sum[l + half];
  return sum[0];
}

/// Token t's row to each of its places: read once, written for every kept route, or added there.
template <class T, bool Adds = false, class Weights, class Rows>
EXPAR_HD void scatter_token(plan_view const& plan, index_t t, T const* x, index_t n,
                            Weights weights, Rows const& rows) {
  for (int j = 0; j < plan.top_k; ++j) {
    index_t const at = t * plan.top_k + j;
    if (plan.locations[at] < 0) continue;
    T* const to = rows(plan.ids[at], plan.locations[at]);
    if constexpr (Adds)
      add_scaled_row(x, weight_of<accumulator_t<T>>(weights, t, j), to, n);
    else if constexpr (std::is_same_v<Weights, unit_weights>)
      copy_row(x, to, n);
    else
      scale_row(x, weight_of<accumulator_t<T>>(weights, t, j), to, n);
  }
}

/// Columns of a token that are summed together.
inline constexpr int gather_block = 64;

/// `width` columns (at most gather_block; Width where it is known and not 0) of sum over kept
/// routes of w * row, in choice order, one accumulator, which begins with the residual where there
/// is one, rounded once.
template <int Width, class Rows, class Out, class Weights>
EXPAR_HD void gather_columns(plan_view const& plan, index_t t, Rows const& rows, Weights weights,
                             index_t column, int width, Out* out, Out const* residual) {
  using T = std::remove_cvref_t<decltype(*rows(0, 0))>;
  using A = accumulator_t<T>;
  int const n = Width != 0 ? Width : width;
  A sum[gather_block];
  bool first = residual == nullptr;
  if (!first)
    for (int c = 0; c < n; ++c) sum[c] = static_cast<A>(widen(residual[column + c]));
  for (int j = 0; j < plan.top_k; ++j) {
    index_t const at = t * plan.top_k + j;
    if (plan.locations[at] < 0) continue;
    T const* const from = rows(plan.ids[at], plan.locations[at]) + column;
    A const w = weight_of<A>(weights, plan, t, j, column);
    if (first)
      for (int c = 0; c < n; ++c) sum[c] = w * widen(from[c]);
    else
      for (int c = 0; c < n; ++c) sum[c] += w * widen(from[c]);
    first = false;
  }
  for (int c = 0; c < n; ++c)
    out[column + c] = narrow<Out>(static_cast<accumulator_t<Out>>(first ? A{0} : sum[c]));
}

template <class Rows, class Out, class Weights>
EXPAR_HD void gather_token(plan_view const& plan, index_t t, Rows const& rows, Weights weights,
                           Out* out, index_t n, Out const* residual = nullptr) {
  index_t column = 0;
  for (; column + gather_block <= n; column += gather_block)
    gather_columns<gather_block>(plan, t, rows, weights, column, gather_block, out, residual);
  if (column < n)
    gather_columns<0>(plan, t, rows, weights, column, static_cast<int>(n - column), out, residual);
}

/// d_weights[t, j] = <row(t, j), x>, 0 where there is no row.
template <class T, bool Adds = false, class W, class Rows>
EXPAR_HD void dot_token(plan_view const& plan, index_t t, Rows const& rows, T const* x, index_t n,
                        W* d_weights) {
  for (int j = 0; j < plan.top_k; ++j) {
    index_t const at = t * plan.top_k + j;
    auto const dot = plan.locations[at] < 0
                         ? accumulator_t<T>{0}
                         : dot_rows(rows(plan.ids[at], plan.locations[at]), x, n);
    put_gradient<Adds>(d_weights[j], static_cast<accumulator_t<W>>(dot));
  }
}

/// One scalar per kept route: to its row, and back (0 where there is no row).
template <class W, class Rows>
EXPAR_HD void scatter_scalars(plan_view const& plan, index_t t, W const* from, Rows const& rows) {
  for (int j = 0; j < plan.top_k; ++j) {
    index_t const at = t * plan.top_k + j;
    if (plan.locations[at] >= 0) *rows(plan.ids[at], plan.locations[at]) = from[j];
  }
}
template <class A, bool Adds = false, class W, class Rows>
EXPAR_HD void gather_scalars(plan_view const& plan, index_t t, Rows const& rows, W* to) {
  for (int j = 0; j < plan.top_k; ++j) {
    index_t const at = t * plan.top_k + j;
    auto const x = plan.locations[at] < 0 ? accumulator_t<A>{0}
                                          : widen(*rows(plan.ids[at], plan.locations[at]));
    put_gradient<Adds>(to[j], static_cast<accumulator_t<W>>(x));
  }
}

/// Calls f(t) for every token of a plan, in chunks that are worth a thread for rows of `bytes`
/// bytes.
template <class F>
void for_each_token(host_context const& ctx, plan_view const& plan, index_t bytes, F f) {
  index_t const grain = 1 + 262144 / (1 + bytes * (plan.top_k + 1));
  ctx.for_each_chunk(plan.tokens, grain, [&](int, index_t first, index_t last) {
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
