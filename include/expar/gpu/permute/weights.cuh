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
    auto const w = expar::detail::as_view<2>(ctx, weights);
    auto const o = expar::detail::as_output<1>(ctx, out);
    static_assert(std::is_same_v<expar::detail::element_of<decltype(w)>,
                                 expar::detail::element_of<decltype(o)>>,
                  "expar: weights are copied to rows, so both have the same element type");
    detail::check_routes(plan, "encode_weights: weights", w);
    detail::check_numbers(plan, "encode_weights: out", o);
    detail::carry(ctx, "encode_weights", plan,
                  detail::carry_weights{detail::read_only(w), detail::number_rows(o)},
                  fillers == fill::zero ? plan.experts() : 0, 0);
  }
};
/// One number per route to one number per row, as expar::encode_weights() in one launch:
/// out[row(t,j)] = weights[t,j]; rows of the layout that no route has become zero, or with
/// fill::none keep what they hold. out: [N], N as for encode(), which carries weights beside rows
/// too.
inline constexpr encode_weights_fn encode_weights{};

struct encode_weights_backward_fn {
  template <class DOut, class DWeights>
  void operator()(context const& ctx, route_plan const& plan, DOut const& d_out,
                  DWeights&& d_weights) const {
    auto const o = expar::detail::as_view<1>(ctx, d_out);
    auto const w = expar::detail::as_output<2>(ctx, d_weights);
    using A = expar::detail::element_of<decltype(o)>;
    detail::check_numbers<A const>(plan, "encode_weights_backward: d_out", o);
    detail::check_routes(plan, "encode_weights_backward: d_weights", w);
    detail::carry(ctx, "encode_weights_backward", plan,
                  detail::carry_back{detail::number_rows(tensor_view<A const, 1>(o)), w}, 0, 0);
  }
};
/// Its adjoint in one launch: d_weights[t,j] = d_out[row(t,j)], zero where the route has no row.
inline constexpr encode_weights_backward_fn encode_weights_backward{};

}  // namespace expar::inline v0::gpu
