// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/gpu/router/detail/gate_backward.cuh>
#include <expar/router/route.hpp>

namespace expar::inline v0::gpu {

namespace detail {

/// So that the number of a token in the last tile is an int.
inline constexpr index_t most_tokens = index_t{1} << 30;

/// Checks, and gives what a launch that routes is told. The bias is a tensor or no_bias.
template <class Router, class Logits, class Bias, class Routes>
auto gate_arguments_of(char const* what, std::type_identity_t<char const* const (&)[4]> names,
                       context const& ctx, Router const& r, Logits const& logits, Bias const& bias,
                       Routes&& routes) {
  using expar::detail::as_output, expar::detail::as_view, expar::detail::element_of;
  static_assert(routes_like<Routes>,
                "expar: routes are anything with tensors `ids` and `weights` of rank 2");
  auto const z = as_view<2>(ctx, logits);
  auto const ids = as_output<2>(ctx, routes.ids);
  auto const weights = as_output<2>(ctx, routes.weights);
  using T = element_of<decltype(z)>;
  using W = element_of<decltype(weights)>;
  static_assert(std::is_same_v<element_of<decltype(ids)>, std::int32_t>,
                "expar: expert ids are std::int32_t");
  static_assert(element<W>,
                "expar: weights are of an element type; specialize expar::element_traits for it");
  expar::detail::check_router(what, names[0], r, z);
  index_t const tokens = z.extents[0];
  expar::detail::expects(tokens <= most_tokens, what, ": logits has ", tokens, " tokens; at most ",
                         most_tokens, " are possible");
  expar::detail::check_choices(names[1], r, ids, tokens);
  expar::detail::check_choices(names[2], r, weights, tokens);
  expar::detail::check_output(names[1], ids);
  expar::detail::check_output(names[2], weights);
  auto const made = [&](auto const* b) {
    using B = std::remove_const_t<std::remove_pointer_t<decltype(b)>>;
    return gate_arguments<Router, T, B, W>{
        r, read_only(z), b, ids, weights, false, 0, nullptr, tiles_of(tokens, r.top_k, r.experts)};
  };
  if constexpr (std::is_same_v<Bias, no_bias_t>) {
    return made(static_cast<accumulator_t<T> const*>(nullptr));
  } else {
    static_assert(Router::takes_bias,
                  "expar: the key of this router takes no bias; leave it out, or give the router "
                  "expar::biased_key");
    auto const b = as_view<1>(ctx, bias);
    static_assert(element<element_of<decltype(b)>>,
                  "expar: the bias is of an element type; specialize expar::element_traits for it");
    expar::detail::check_view(names[3], b);
    expar::detail::check_extent(names[3], b, 0, r.experts, "the router's number of experts");
    return made(static_cast<element_of<decltype(b)> const*>(b.data));
  }
}

}  // namespace detail

struct route_fn {
  template <class Router, class Logits, class Routes>
  void operator()(context const& ctx, Router const& r, Logits const& logits,
                  Routes&& routes) const {
    static_assert(!Router::takes_bias,
                  "expar: the key of this router takes a bias; pass a tensor of one number per "
                  "expert after the logits, or expar::no_bias");
    (*this)(ctx, r, logits, no_bias, routes);
  }
  template <class Router, class Logits, class Bias, class Routes>
  void operator()(context const& ctx, Router const& r, Logits const& logits, Bias const& bias,
                  Routes&& routes) const {
    auto const a = detail::gate_arguments_of(
        "route", {"route: logits", "route: ids", "route: weights", "route: bias"}, ctx, r, logits,
        bias, routes);
    detail::gate_launch const to(a);
    detail::buffer<typename decltype(a)::A> const scratch(ctx, to.scratch);
    detail::gate(ctx, "route", a, to, scratch.data());
  }
};
/// Gives every token its experts: expar::route() in one launch and without waiting, with the ids of
/// the host, and its weights bit for bit where the host's compiler contracts no product and sum
/// into one: `route(ctx, router, logits, bias, routes)`, where the bias may be left out if the
/// router's key takes none. All tensors are on the device, those in policies of the router too (a
/// table_ids, say), whose entries nothing checks; rows may be pitched.
/// Up to 2048 experts (1024 for logits of double) and 32 choices, of policies that are made expert
/// by expert (separable_score, separable_key, perhaps group_limited, no transform and no selection
/// but the largest keys; models::deepseek_v3 and most others), a token is in the registers of 8 or
/// 32 lanes. Beyond, a thread runs router.forward() for it, with scratch for 1024 tokens from the
/// context's memory, in stream order.
inline constexpr route_fn route{};

/// Bytes of a workspace_memory in which route() routes any batch of up to `tokens` tokens, with
/// logits of T. Zero where lanes have the tokens.
template <class T = float, class Router>
std::size_t route_workspace_bytes(Router const& r, index_t tokens) {
  detail::check_sizes<T>("route_workspace_bytes", r, tokens);
  auto const tiles = detail::tiles_of(tokens, r.top_k, r.experts);
  detail::carver nothing;
  nothing.take<accumulator_t<T>>(
      detail::gate_launch(detail::gate_without_tensors<T>(r, tiles)).scratch);
  return nothing.bytes();
}

struct route_backward_fn {
  template <class Router, class Logits, class Routes, class DWeights, class DLogits>
  void operator()(context const& ctx, Router const& r, Logits const& logits, Routes const& routes,
                  DWeights const& d_weights, DLogits&& d_logits) const {
    using expar::detail::as_output, expar::detail::as_view, expar::detail::element_of;
    static_assert(routes_like<Routes const>,
                  "expar: routes are anything with tensors `ids` and `weights` of rank 2");
    auto const z = as_view<2>(ctx, logits);
    auto const ids = as_view<2>(ctx, routes.ids);
    auto const dw = as_view<2>(ctx, d_weights);
    auto const dz = as_output<2>(ctx, d_logits);
    using T = element_of<decltype(z)>;
    using W = element_of<decltype(dw)>;
    using D = element_of<decltype(dz)>;
    static_assert(std::is_same_v<element_of<decltype(ids)>, std::int32_t>,
                  "expar: expert ids are std::int32_t");
    static_assert(
        element<W> && element<D>,
        "expar: gradients are of an element type; specialize expar::element_traits for it");
    expar::detail::check_router("route_backward", "route_backward: logits", r, z);
    index_t const tokens = z.extents[0];
    expar::detail::check_choices("route_backward: ids", r, ids, tokens);
    expar::detail::check_choices("route_backward: d_weights", r, dw, tokens);
    expar::detail::check_output("route_backward: d_logits", dz);
    expar::detail::check_extent("route_backward: d_logits", dz, 0, tokens, "the number of tokens");
    expar::detail::check_extent("route_backward: d_logits", dz, 1, r.experts,
                                "the router's number of experts");
    detail::gate_backward(ctx, "route_backward",
                          detail::gate_backward_arguments<Router, T, W, D>{
                              r, detail::read_only(z), detail::read_only(ids),
                              detail::read_only(dw), dz, false, false, nullptr});
  }
};
/// The adjoint of route(), as expar::route_backward() in one launch: overwrites d_logits [T,
/// experts], each number once, given d_weights [T, top_k]. Bit for bit as on the host, under the
/// same condition. An id that is not 0 .. experts - 1 takes no part. Beyond the
/// experts that lanes hold, or for a score that is not made expert by expert, a thread has a token,
/// as in route().
inline constexpr route_backward_fn route_backward{};

/// Bytes of a workspace_memory in which route_backward() takes any batch of up to `tokens` tokens,
/// with logits of T. Zero where lanes have the tokens.
template <class T = float, class Router>
std::size_t route_backward_workspace_bytes(Router const& r, index_t tokens) {
  using A = accumulator_t<T>;
  detail::check_sizes<T>("route_backward_workspace_bytes", r, tokens);
  detail::gate_backward_arguments<Router, T, A, A> const a{r,  {},    {},    {},
                                                           {}, false, false, nullptr};
  detail::carver nothing;
  nothing.take<A>(detail::gate_backward_launch(a, tokens).scratch);
  return nothing.bytes();
}

}  // namespace expar::inline v0::gpu
