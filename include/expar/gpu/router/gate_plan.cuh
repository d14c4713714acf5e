// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/gpu/router/route.cuh>

namespace expar {
inline namespace v0 {
namespace gpu {

/// route() and make_plan() of its ids in one launch, without waiting:
/// `gate_plan(ctx, router, logits, bias, layout, routes, plan)`, where the bias may be left out if
/// the router's key takes none. Writes routes.ids and routes.weights [T, top_k], and makes the plan
/// with the integers of the host's make_plan() for these ids. layout: ragged, or fixed_capacity
/// with a positive factor. experts: at most 12000. Scratch, where route() would take any, and all
/// arrays of the plan are kept in it, so that a plan which has grown to its largest batch allocates
/// no more.
inline constexpr struct gate_plan_fn {
  template <class Router, class Logits, class Layout, class Routes>
  void operator()(context const& ctx, Router const& r, Logits const& logits, Layout layout,
                  Routes&& routes, route_plan& plan) const {
    static_assert(!Router::takes_bias,
                  "expar: the key of this router takes a bias; pass a tensor of one number per "
                  "expert after the logits, or expar::no_bias");
    (*this)(ctx, r, logits, no_bias, layout, routes, plan);
  }
  template <class Router, class Logits, class Bias, class Layout, class Routes>
  void operator()(context const& ctx, Router const& r, Logits const& logits, Bias const& bias,
                  Layout layout, Routes&& routes, route_plan& plan) const {
    auto a = detail::gate_arguments_of(
        "gate_plan",
        {"gate_plan: logits", "gate_plan: ids", "gate_plan: weights", "gate_plan: bias"}, ctx, r,
        logits, bias, routes);
    using A = typename decltype(a)::A;
    expar::detail::check_layout("gate_plan", layout);
    expar::detail::expects(r.experts <= detail::most_experts, "gate_plan: experts is ", r.experts,
                           "; a device plan has 1 to ", detail::most_experts);
    index_t const tokens = a.tiles.tokens;
    expar::detail::expects(tokens <= INT32_MAX / r.top_k, "gate_plan: logits has ", tokens,
                           " tokens of ", r.top_k, " choices; at most ", INT32_MAX,
                           " routes are possible");
    constexpr bool choice_major = std::is_same_v<Layout, fixed_capacity>;
    int const parts = choice_major ? r.top_k : 1;
    a.tiles = detail::tiles_of(tokens, r.top_k, r.experts, parts);
    if (tokens == 0) a.tiles.tiles = 1;  // there are offsets nevertheless
    a.tiles.plans = true;
    a.tiles.choice_major = choice_major;
    index_t capacity = -1;
    if constexpr (choice_major) {
      detail::check_factor("gate_plan", layout);
      capacity = capacity_of(layout, tokens, r.experts, r.top_k, 0);
    }
    index_t const stride = index_t{a.tiles.tiles} << a.tiles.bits;
    a.tiles.to =
        plan.arrange(ctx, tokens, r.top_k, r.experts, capacity, layout.alignment,
                     index_t{parts} * a.tiles.tiles, {1, choice_major ? stride : 0, a.tiles.bits});
    detail::gate(ctx, "gate_plan", a, [&](index_t n) { return plan.template scratch<A>(n); });
  }
} gate_plan{};

}  // namespace gpu
}  // namespace v0
}  // namespace expar
