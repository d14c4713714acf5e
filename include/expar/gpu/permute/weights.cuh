// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/gpu/permute/detail/carry.cuh>
#include <expar/gpu/permute/detail/checks.cuh>
#include <expar/permute/fill.hpp>

namespace expar::inline v0::gpu {

struct encode_weights_fn {
  template <class Weights, class Out>
  void operator()(context const& ctx, route_plan const& plan, Weights const& weights, Out&& out,
                  fill fillers = fill::zero) const {
    expar::detail::arguments a(ctx, "encode_weights");
    auto const w = detail::read_weights(a, plan, weights);
    auto const o = a.written_vector("out", out, {detail::row_count_of(plan)});
    detail::check_carried<expar::detail::element_of<decltype(w.matrix)>,
                          expar::detail::element_of<decltype(o)>>();
    detail::carry(ctx, "encode_weights", plan,
                  detail::carry_weights{w.matrix, detail::number_rows(o)},
                  fillers == fill::zero ? plan.experts() : 0, 0);
  }
};
/// `encode_weights(ctx, plan, weights, out)`, and fill::none behind: one number per route to one
/// number per row, as expar::encode_weights() in one launch. out[row(t,j)] = weights[t,j]; rows of
/// the layout that no route has become zero, or with fill::none keep what they hold. out: [N], N as
/// for encode(), which carries weights beside rows too.
inline constexpr encode_weights_fn encode_weights{};

struct encode_weights_backward_fn {
  template <class DOut, class DWeights>
  void operator()(context const& ctx, route_plan const& plan, DOut const& d_out,
                  DWeights&& d_weights) const {
    expar::detail::arguments a(ctx, "encode_weights_backward");
    auto const o = a.read_vector("d_out", d_out, {detail::row_count_of(plan)});
    auto const w = detail::overwritten(a, "d_weights", d_weights,
                                       {detail::tokens_of(plan), detail::choices_of(plan)});
    using A = expar::detail::element_of<decltype(o)>;
    detail::carry(ctx, "encode_weights_backward", plan,
                  detail::carry_back{detail::number_rows(tensor_view<A const, 1>(o)), w}, 0, 0);
  }
};
/// `encode_weights_backward(ctx, plan, d_out, d_weights)`, its adjoint in one launch:
/// d_weights[t,j] = d_out[row(t,j)], zero where the route has no row.
inline constexpr encode_weights_backward_fn encode_weights_backward{};

}  // namespace expar::inline v0::gpu
