// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/permute/detail/rows.hpp>

namespace expar {
inline namespace v0 {

/// One number per route to one number per row: out[row(t,j)] = weights[t,j]; zero in rows that no
/// route has. For experts that apply the weights themselves. out: [plan.rows()].
inline constexpr struct encode_weights_fn {
  template <class Weights, class Out>
  void operator()(host_context const& ctx, route_plan const& plan, Weights const& weights,
                  Out&& out) const {
    auto const w = detail::as_view<2>(ctx, weights);
    auto const o = detail::as_output<1>(ctx, out);
    using W = detail::element_of<decltype(w)>;
    static_assert(std::is_same_v<W, detail::element_of<decltype(o)>>,
                  "expar: encode_weights copies, so weights and out have the same element type");
    detail::check_view("encode_weights: weights", w);
    detail::check_route_matrix("encode_weights: weights", plan, w);
    detail::check_output("encode_weights: out", o);
    detail::check_extent("encode_weights: out", o, 0, plan.rows(),
                         "the number of rows in the plan");
    auto const table =
        detail::rows_of(make_view(o.data, o.extents[0], index_t{1}), plan.offsets().data());
    detail::for_each_token(ctx, plan, 8, [&](index_t t) {
      detail::scatter_scalars<W>(plan.view(), t, w.row(t), table);
    });
    detail::zero_padding(plan, table, 1);
  }
} encode_weights{};

/// Its adjoint: d_weights[t,j] = d_out[row(t,j)], zero where the route has no row.
inline constexpr struct encode_weights_backward_fn {
  template <class DOut, class DWeights>
  void operator()(host_context const& ctx, route_plan const& plan, DOut const& d_out,
                  DWeights&& d_weights) const {
    auto const o = detail::as_view<1>(ctx, d_out);
    auto const w = detail::as_output<2>(ctx, d_weights);
    using A = detail::element_of<decltype(o)>;
    detail::check_view("encode_weights_backward: d_out", o);
    detail::check_extent("encode_weights_backward: d_out", o, 0, plan.rows(),
                         "the number of rows in the plan");
    detail::check_output("encode_weights_backward: d_weights", w);
    detail::check_route_matrix("encode_weights_backward: d_weights", plan, w);
    auto const table = detail::rows_of(make_view<A const>(o.data, o.extents[0], index_t{1}),
                                       plan.offsets().data());
    detail::for_each_token(ctx, plan, 8, [&](index_t t) {
      detail::gather_scalars<A>(plan.view(), t, table, w.row(t));
    });
  }
} encode_weights_backward{};

}  // namespace v0
}  // namespace expar
