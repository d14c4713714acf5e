// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/gpu/permute/detail/vectors.cuh>
#include <expar/gpu/plan/plan.cuh>

namespace expar::inline v0::gpu::detail {

template <class W>
matrix_weights<std::remove_const_t<W>> weights_of(tensor_view<W, 2> const& v) {
  return {read_only(v)};
}

template <class T>
void check_tokens(route_plan const& plan, char const* what, tensor_view<T, 2> const& v) {
  expar::detail::check_extent(what, v, 0, plan.tokens(), "the number of tokens in the plan");
}
/// [T,k].
template <class T>
void check_routes(route_plan const& plan, char const* what, tensor_view<T, 2> const& v) {
  if constexpr (std::is_const_v<T>)
    expar::detail::check_view(what, v);
  else
    expar::detail::check_output(what, v);
  check_tokens(plan, what, v);
  expar::detail::check_extent(what, v, 1, plan.top_k(), "top_k of the plan");
}
/// Expert rows: their number is exact where it is known here.
template <class T, int Rank>
void check_rows(route_plan const& plan, char const* what, tensor_view<T, Rank> const& v) {
  if (plan.capacity() >= 0)
    expar::detail::check_extent(what, v, 0, plan.max_rows(), "the number of rows in the plan");
}
/// One number to each expert row.
template <class T>
void check_numbers(route_plan const& plan, char const* what, tensor_view<T, 1> const& v) {
  if constexpr (std::is_const_v<T>)
    expar::detail::check_view(what, v);
  else
    expar::detail::check_output(what, v);
  check_rows(plan, what, v);
}
/// From token rows to expert rows of the same type.
template <class X, class Y>
void check_move(route_plan const& plan, char const* x_name, tensor_view<X, 2> const& x,
                char const* y_name, tensor_view<Y, 2> const& y) {
  static_assert(std::is_same_v<std::remove_const_t<X>, Y>,
                "expar: token rows and expert rows must have the same element type here");
  expar::detail::check_view(x_name, x);
  check_tokens(plan, x_name, x);
  expar::detail::check_output(y_name, y);
  check_rows(plan, y_name, y);
  expar::detail::check_extent(y_name, y, 1, x.extents[1], "the row size on the other side");
  expar::detail::check_apart(y_name, y, x_name, x);
}
/// Expert rows and token rows of which dot products are made.
template <class Y, class X>
void check_inner(route_plan const& plan, char const* y_name, tensor_view<Y, 2> const& y,
                 tensor_view<X, 2> const& x) {
  static_assert(std::is_same_v<std::remove_const_t<X>, std::remove_const_t<Y>>,
                "expar: token rows and expert rows must have the same element type here");
  expar::detail::check_view(y_name, y);
  check_rows(plan, y_name, y);
  expar::detail::check_extent(y_name, y, 1, x.extents[1], "the row size on the other side");
}
/// From expert rows to token rows.
template <class Y, class X>
void check_return(route_plan const& plan, char const* y_name, tensor_view<Y, 2> const& y,
                  char const* x_name, tensor_view<X, 2> const& x) {
  expar::detail::check_view(y_name, y);
  check_rows(plan, y_name, y);
  expar::detail::check_output(x_name, x);
  check_tokens(plan, x_name, x);
  expar::detail::check_extent(x_name, x, 1, y.extents[1], "the row size on the other side");
  expar::detail::check_apart(x_name, x, y_name, y);
}

}  // namespace expar::inline v0::gpu::detail
