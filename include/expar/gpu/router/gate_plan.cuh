// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/gpu/router/route.cuh>

namespace expar::inline v0::gpu {

namespace detail {

/// Parts of the order in which routes take their places: choices, if all first choices come first.
template <class Layout>
int parts_of(int top_k) {
  return std::is_same_v<Layout, fixed_capacity> ? top_k : 1;
}

/// Checks, and cuts the tokens into tiles that make a plan.
template <class Router, class Layout>
token_tiles plan_tiles(char const* what, Router const& r, index_t tokens, Layout layout) {
  expar::detail::check_layout(what, layout);
  if constexpr (std::is_same_v<Layout, fixed_capacity>) check_factor(what, layout);
  expar::detail::expects(r.experts <= most_experts, what, ": experts is ", r.experts,
                         "; a device plan has 1 to ", most_experts);
  expar::detail::expects(tokens <= INT32_MAX / r.top_k, what, ": logits has ", tokens,
                         " tokens of ", r.top_k, " choices; at most ", INT32_MAX,
                         " routes are possible");
  auto tiles = tiles_of(tokens, r.top_k, r.experts, parts_of<Layout>(r.top_k));
  if (tokens == 0) tiles.tiles = 1;  // there are offsets nevertheless
  tiles.plans = true;
  tiles.choice_major = std::is_same_v<Layout, fixed_capacity>;
  return tiles;
}

template <class Layout, class Router, class T, class B, class W>
plan_shape shape_of(gate_arguments<Router, T, B, W> const& a, gate_launch const& to) {
  int const parts = parts_of<Layout>(a.router.top_k);
  return {a.tiles.tokens, a.router.top_k, a.router.experts, parts * most_tiles(a.tiles, parts),
          static_cast<std::size_t>(to.scratch) * sizeof(accumulator_t<T>)};
}

}  // namespace detail

struct gate_plan_fn {
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
    auto a = detail::gate_arguments_of("gate_plan", ctx, r, logits, bias, routes);
    using A = typename decltype(a)::A;
    index_t const tokens = a.tiles.tokens;
    a.tiles = detail::plan_tiles("gate_plan", r, tokens, layout);
    index_t capacity = -1;
    if constexpr (std::is_same_v<Layout, fixed_capacity>)
      capacity = capacity_of(layout, tokens, r.experts, r.top_k, 0);
    detail::gate_launch const to(a);
    index_t const tiles = a.tiles.tiles;
    a.tiles.to = plan.arrange(ctx, detail::shape_of<Layout>(a, to), capacity, layout.alignment,
                              detail::parts_of<Layout>(r.top_k) * tiles,
                              {1, a.tiles.choice_major ? tiles << a.tiles.bits : 0, a.tiles.bits});
    detail::gate(ctx, "gate_plan", a, to, reinterpret_cast<A*>(a.tiles.to.scratch));
    plan.finish();
  }
};
/// `gate_plan(ctx, router, logits, bias, layout, routes, plan)`: route() and make_plan() of its ids
/// in one launch, without waiting. The bias may be left out if the router's key takes none. Writes
/// routes.ids and routes.weights [T, top_k], and makes the plan with the integers of the host's
/// make_plan() for these ids. layout: ragged, or fixed_capacity with rows or a positive factor.
/// experts: at most 12000. Scratch, where route() would take any, and all arrays of the plan are
/// kept in it, so that a plan which has grown to its largest batch allocates no more.
inline constexpr gate_plan_fn gate_plan{};

/// Bytes of a workspace_memory in which gate_plan() makes the plan of any batch of up to `tokens`
/// tokens, with logits of T.
template <class T = float, class Router, class Layout = ragged>
std::size_t gate_plan_workspace_bytes(Router const& r, index_t tokens, Layout layout = {}) {
  constexpr char const* what = "gate_plan_workspace_bytes";
  detail::check_sizes<T>(what, r, tokens);
  auto const a = detail::gate_without_tensors<T>(r, detail::plan_tiles(what, r, tokens, layout));
  return detail::bytes_of(detail::shape_of<Layout>(a, detail::gate_launch(a)));
}

}  // namespace expar::inline v0::gpu
