// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/permute/detail/rows.hpp>
#include <expar/permute/fill.hpp>

namespace expar::inline v0 {

namespace detail {

template <class W, class Out>
void carry_weights(host_context const& ctx, route_plan const& plan, char const* weights_name,
                   tensor_view<W, 2> weights, char const* out_name, tensor_view<Out, 1> out,
                   fill fillers) {
  static_assert(std::is_same_v<std::remove_const_t<W>, Out>,
                "expar: weights are copied to rows, so both have the same element type");
  check_view(weights_name, weights);
  check_route_matrix(weights_name, plan, weights);
  check_output(out_name, out);
  check_extent(out_name, out, 0, plan.rows(), "the number of rows in the plan");
  auto const table =
      rows_of(make_view(out.data, out.extents[0], index_t{1}), plan.offsets().data());
  for_each_token(ctx, plan, 8,
                 [&](index_t t) { scatter_scalars<Out>(plan.view(), t, weights.row(t), table); });
  if (fillers == fill::zero) zero_padding(plan, table, 1);
}

}  // namespace detail

struct encode_weights_fn {
  template <class Weights, class Out>
  void operator()(host_context const& ctx, route_plan const& plan, Weights const& weights,
                  Out&& out, fill fillers = fill::zero) const {
    detail::carry_weights(ctx, plan, "encode_weights: weights", detail::as_view<2>(ctx, weights),
                          "encode_weights: out", detail::as_output<1>(ctx, out), fillers);
  }
};
/// One number per route to one number per row: out[row(t,j)] = weights[t,j]; zero in rows that no
/// route has, or with fill::none what they held. For experts that apply the weights themselves.
/// out: [plan.rows()].
inline constexpr encode_weights_fn encode_weights{};

struct encode_weights_backward_fn {
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
};
/// Its adjoint: d_weights[t,j] = d_out[row(t,j)], zero where the route has no row.
inline constexpr encode_weights_backward_fn encode_weights_backward{};

}  // namespace expar::inline v0
