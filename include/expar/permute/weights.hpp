// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/permute/detail/moves.hpp>

namespace expar::inline v0 {

namespace detail {

/// A vector as rows of one column.
template <class T>
tensor_view<T, 2> as_column(tensor_view<T, 1> const& v) {
  return make_view(v.data, v.extents[0], index_t{1}, v.strides[0]);
}

template <class W, class Out>
void carry_weights(host_context const& ctx, route_plan const& plan,
                   tensor_view<W, 2> const& weights, tensor_view<Out, 1> const& out, fill fillers) {
  static_assert(std::is_same_v<std::remove_const_t<W>, Out>,
                "expar: weights are copied to rows, so both have the same element type");
  auto const table = rows_of(as_column(out), plan.offsets().data());
  for_each_token(ctx, plan.view(), 8,
                 [&](index_t t) { scatter_scalars<Out>(plan.view(), t, weights.row(t), table); });
  if (fillers == fill::zero) zero_padding(plan, table, 1);
}

}  // namespace detail

struct encode_weights_fn {
  template <class Weights, class Out>
  void operator()(host_context const& ctx, route_plan const& plan, Weights const& weights,
                  Out&& out, fill fillers = fill::zero) const {
    detail::arguments a(ctx, "encode_weights");
    auto const w = detail::read_weights(a, plan, weights);
    auto const o = a.written_vector("out", out, {detail::row_count_of(plan)});
    detail::carry_weights(ctx, plan, w.at, o, fillers);
  }
};
/// `encode_weights(ctx, plan, weights, out)`, and fill::none behind: one number per route to one
/// number per row, for experts that apply the weights themselves. out [plan.rows()]: weights[t,j]
/// at row(t,j); zero in rows that no route has, or with fill::none what they held.
inline constexpr encode_weights_fn encode_weights{};

struct encode_weights_backward_fn {
  template <class DOut, class DWeights>
  void operator()(host_context const& ctx, route_plan const& plan, DOut const& d_out,
                  DWeights&& d_weights) const {
    detail::arguments a(ctx, "encode_weights_backward");
    auto const o = a.read_vector("d_out", d_out, {detail::row_count_of(plan)});
    auto const dw =
        a.gradient("d_weights", d_weights, {detail::tokens_of(plan), detail::choices_of(plan)});
    using A = detail::element_of<decltype(o)>;
    auto const table = detail::rows_of<A const>(detail::as_column(o), plan.offsets().data());
    detail::for_each_token(ctx, plan.view(), 8, [&](index_t t) {
      detail::gather_scalars<A, dw.adds>(plan.view(), t, table, dw.row(t));
    });
  }
};
/// `encode_weights_backward(ctx, plan, d_out, d_weights)`, its adjoint: d_weights [T,k] is
/// d_out[row(t,j)], zero where the route has no row; overwritten, or added to by add_to().
inline constexpr encode_weights_backward_fn encode_weights_backward{};

}  // namespace expar::inline v0
