// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/permute/detail/rows.hpp>
#include <expar/permute/fill.hpp>

namespace expar::inline v0::detail {

/// A view and what errors call it: "operation: argument".
template <class T>
struct named {
  char const* what;
  tensor_view<T, 2> view;
};
template <class T>
named(char const*, tensor_view<T, 2>) -> named<T>;

template <class W>
auto route_weights(char const* what, route_plan const& plan, tensor_view<W, 2> weights) {
  check_view(what, weights);
  check_route_matrix(what, plan, weights);
  return matrix_weights<std::remove_const_t<W>>{weights};
}

/// Every token row to the rows of its kept routes; elsewhere zero, or what was there.
template <class X, class T, class Weights>
void scatter(host_context const& ctx, route_plan const& plan, named<X> tokens, Weights weights,
             named<T> rows, fill fillers) {
  static_assert(std::is_same_v<std::remove_const_t<X>, T>,
                "expar: token rows and expert rows must have the same element type here");
  index_t const n = tokens.view.extents[1];
  check_view(tokens.what, tokens.view);
  check_tokens(tokens.what, plan, tokens.view);
  check_output(rows.what, rows.view);
  check_rows(rows.what, plan, rows.view);
  check_extent(rows.what, rows.view, 1, n, "the row size on the other side");
  check_apart(rows.what, rows.view, tokens.what, tokens.view);
  auto const table = rows_of(rows.view, plan.offsets().data());
  for_each_token(ctx, plan, n * static_cast<index_t>(sizeof(T)), [&](index_t t) {
    scatter_token<T>(plan.view(), t, tokens.view.row(t), n, weights, table);
  });
  if (fillers == fill::zero) zero_padding(plan, table, n);
}

/// Every token row from the rows of its kept routes.
template <class T, class Out, class Weights>
void gather(host_context const& ctx, route_plan const& plan, named<T> rows, Weights weights,
            named<Out> out, Out const* residual = nullptr, index_t residual_pitch = 0) {
  using row = std::remove_const_t<T>;
  index_t const n = out.view.extents[1];
  check_view(rows.what, rows.view);
  check_rows(rows.what, plan, rows.view);
  check_output(out.what, out.view);
  check_tokens(out.what, plan, out.view);
  check_extent(out.what, out.view, 1, rows.view.extents[1], "the row size on the other side");
  check_apart(out.what, out.view, rows.what, rows.view);
  auto const table = rows_of<row const>(rows.view, plan.offsets().data());
  for_each_token(ctx, plan, n * static_cast<index_t>(sizeof(T)), [&](index_t t) {
    gather_token(plan.view(), t, table, weights, out.view.row(t), n,
                 residual == nullptr ? nullptr : residual + t * residual_pitch);
  });
}

/// d_weights[t,j] = <row(t,j), tokens[t]>.
template <class T, class X, class W>
void dots(host_context const& ctx, route_plan const& plan, named<T> rows, named<X> tokens,
          named<W> d_weights) {
  using row = std::remove_const_t<T>;
  static_assert(std::is_same_v<std::remove_const_t<X>, row>,
                "expar: token rows and expert rows must have the same element type here");
  index_t const n = tokens.view.extents[1];
  check_view(rows.what, rows.view);
  check_rows(rows.what, plan, rows.view);
  check_view(tokens.what, tokens.view);
  check_tokens(tokens.what, plan, tokens.view);
  check_extent(rows.what, rows.view, 1, n, "the row size on the other side");
  check_output(d_weights.what, d_weights.view);
  check_route_matrix(d_weights.what, plan, d_weights.view);
  check_apart(d_weights.what, d_weights.view, rows.what, rows.view);
  check_apart(d_weights.what, d_weights.view, tokens.what, tokens.view);
  auto const table = rows_of<row const>(rows.view, plan.offsets().data());
  for_each_token(ctx, plan, n * static_cast<index_t>(sizeof(T)), [&](index_t t) {
    dot_token<row>(plan.view(), t, table, tokens.view.row(t), n, d_weights.view.row(t));
  });
}

}  // namespace expar::inline v0::detail
