// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/detail/arguments.hpp>
#include <expar/permute/detail/movers.hpp>
#include <expar/permute/detail/products.hpp>
#include <expar/permute/detail/residual.hpp>
#include <expar/permute/fill.hpp>

namespace expar::inline v0::detail {

// What the tensors that go with a plan must be.

template <class Plan>
rule tokens_of(Plan const& plan) {
  return {plan.tokens(), "the number of tokens in the plan"};
}
template <class Plan>
rule choices_of(Plan const& plan) {
  return {plan.top_k(), "top_k of the plan"};
}
template <class Plan>
rule row_count_of(Plan const& plan) {
  return {plan.rows(), "the number of rows in the plan"};
}
inline rule same_width(index_t columns) {
  return {columns, "the row size on the other side"};
}

/// Weights [T,k] of the routes of a plan.
template <class Context, class Plan, class Weights>
auto read_weights(arguments<Context>& a, Plan const& plan, Weights const& weights) {
  auto const w = a.read("weights", weights, {tokens_of(plan), choices_of(plan)});
  return matrix_weights<element_of<decltype(w)>>{w};
}

/// Rows that an operation copies or multiplies have one type on both sides.
template <class T, class U>
constexpr auto check_same_elements() {
  static_assert(std::is_same_v<std::remove_const_t<T>, std::remove_const_t<U>>,
                "expar: token rows and expert rows must have the same element type here");
}

/// Every token row to the rows of its kept routes; elsewhere zero, or what was there.
template <bool Adds = false, class X, class T, class Weights>
void scatter(host_context const& ctx, route_plan const& plan, tensor_view<X, 2> const& tokens,
             Weights weights, tensor_view<T, 2> const& rows, fill fillers) {
  check_same_elements<X, T>();
  index_t const n = tokens.extents[1];
  auto const table = rows_of(rows, plan.offsets().data());
  auto const next = next_token(plan.view(), tokens);
  scatter_tokens(ctx, plan.view(), n * index_t{sizeof(T)}, [&](index_t t, bool streams) {
    scatter_token<T, Adds>(plan.view(), t, tokens.row(t), n, weights, table, streams, next);
  });
  if (!Adds && fillers == fill::zero) zero_padding(plan, table, n);
}

/// Every token row from the rows of its kept routes, beginning with that of the residual.
template <class T, class Out, class Weights>
void gather(host_context const& ctx, route_plan const& plan, tensor_view<T, 2> const& rows,
            Weights weights, tensor_view<Out, 2> const& out,
            std::type_identity_t<tensor_view<Out const, 2>> const& residual = {}) {
  auto const table = rows_of<std::remove_const_t<T> const>(rows, plan.offsets().data());
  gather_tokens(ctx, plan.view(), table, weights, out, residual, [](index_t, bool) {});
}
/// A gradient gathers into itself where it is added to. `before(t, beyond)` as for
/// gather_tokens().
template <class T, class Out, bool Adds, class Weights, class Before>
void gather(host_context const& ctx, route_plan const& plan, tensor_view<T, 2> const& rows,
            Weights weights, gradient_view<Out, 2, Adds> const& out, Before before) {
  auto const table = rows_of<std::remove_const_t<T> const>(rows, plan.offsets().data());
  if constexpr (Adds) check_summed_alike<T, Out>();
  tensor_view<Out, 2> const to = out;
  gather_tokens(ctx, plan.view(), table, weights, to, Adds ? to : tensor_view<Out, 2>{}, before);
}

/// What makes d_weights[t, j] = <row(t, j), tokens[t]>, token by token.
template <class T, class X, class W, bool Adds>
auto dots(route_plan const& plan, tensor_view<T, 2> const& rows, tensor_view<X, 2> const& tokens,
          gradient_view<W, 2, Adds> const& d_weights) {
  check_same_elements<X, T>();
  using row = std::remove_const_t<T>;
  return [table = rows_of<row const>(rows, plan.offsets().data()), routes = plan.view(), tokens,
          d_weights](index_t t, bool beyond) {
    for (int j = 0; j < routes.top_k; ++j)
      put_dot<row, Adds>(routes, t, j, table, tokens.row(t), tokens.extents[1], d_weights.row(t),
                         beyond);
  };
}
/// The gradients of gather(): d_rows of the row of each route, weight * tokens[t], and those dots.
template <class X, class T, class Weights, class R, bool Adds, class W, bool AddsWeights>
void scatter_products(host_context const& ctx, route_plan const& plan,
                      tensor_view<X, 2> const& tokens, tensor_view<T, 2> const& rows,
                      Weights weights, gradient_view<R, 2, Adds> const& d_rows,
                      gradient_view<W, 2, AddsWeights> const& d_weights, fill fillers) {
  check_same_elements<X, T>(), check_same_elements<X, R>();
  using row = std::remove_const_t<T>;
  plan_view const routes = plan.view();
  auto const y = rows_of<row const>(rows, plan.offsets().data());
  auto const to = rows_of<R>(d_rows, plan.offsets().data());
  auto const put = [&](index_t at, accumulator_t<row> dot) {
    put_gradient<AddsWeights>(d_weights.row(at / routes.top_k)[at % routes.top_k],
                              static_cast<accumulator_t<W>>(dot));
  };
  scatter_products<Adds>(
      ctx, routes, tokens,
      [&](index_t at) {
        index_t const l = routes.locations[at];
        return l < 0 ? nullptr : y(routes.ids[at], l);
      },
      weights, to, put, [&](index_t at, bool) { put(at, 0); });
  if (!Adds && fillers == fill::zero) zero_padding(plan, to, tokens.extents[1]);
}

}  // namespace expar::inline v0::detail
