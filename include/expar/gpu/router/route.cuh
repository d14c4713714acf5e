// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/gpu/detail/arguments.cuh>
#include <expar/gpu/router/detail/gate_backward.cuh>
#include <expar/router/route.hpp>

namespace expar::inline v0::gpu {

namespace detail {

/// So that the number of a token in the last tile is an int.
inline constexpr index_t most_tokens = index_t{1} << 30;

/// Names the arguments of an operation that routes, and gives what its launch is told. The bias is
/// a tensor or no_bias.
template <class Router, class Logits, class Bias, class Routes>
auto gate_arguments_of(char const* what, context const& ctx, Router const& r, Logits const& logits,
                       Bias const& bias, Routes&& routes) {
  using expar::detail::element_of;
  static_assert(routes_like<Routes>,
                "expar: routes are anything with tensors `ids` and `weights` of rank 2");
  expar::detail::arguments a(ctx, what);
  auto const z = expar::detail::read_logits(a, r, logits);
  index_t const tokens = z.extents[0];
  expar::detail::expects(tokens <= most_tokens, what, ": logits has ", tokens, " tokens; at most ",
                         most_tokens, " are possible");
  expar::detail::rule const each_token{tokens, "the number of tokens"},
      each_choice{r.top_k, "top_k"};
  auto const ids = a.written_ids("ids", routes.ids, r.experts, {each_token, each_choice});
  auto const weights = a.written("weights", routes.weights, {each_token, each_choice});
  using T = element_of<decltype(z)>;
  using W = element_of<decltype(weights)>;
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
    auto const b = a.read_vector("bias", bias, {{r.experts, "the router's number of experts"}});
    check_packed(what, "bias", b);
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
    auto const a = detail::gate_arguments_of("route", ctx, r, logits, bias, routes);
    detail::gate_launch const to(a);
    detail::buffer<typename decltype(a)::A> const scratch(ctx, to.scratch);
    detail::gate(ctx, "route", a, to, scratch.data());
  }
};
/// `route(ctx, router, logits, bias, routes)` gives every token its experts: expar::route() in one
/// launch and without waiting, with the ids of the host, and its weights bit for bit where the
/// host's compiler contracts no product and sum into one. The bias may be left out if the router's
/// key takes none. All tensors are on the device, those in policies of the router too (a
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
    static_assert(routes_like<Routes const>,
                  "expar: routes are anything with tensors `ids` and `weights` of rank 2");
    expar::detail::arguments a(ctx, "route_backward");
    auto const z = expar::detail::read_logits(a, r, logits);
    expar::detail::rule const each_token{z.extents[0], "the number of tokens"},
        each_choice{r.top_k, "top_k"};
    auto const ids = a.ids("ids", routes.ids, {each_token, each_choice});
    auto const dw = a.read("d_weights", d_weights, {each_token, each_choice});
    auto const dz = detail::overwritten(a, "d_logits", d_logits,
                                        {each_token,
                                         {r.experts, "the router's number of experts"},
                                         expar::detail::may_be("logits")});
    using T = expar::detail::element_of<decltype(z)>;
    using W = expar::detail::element_of<decltype(dw)>;
    using D = expar::detail::element_of<decltype(dz)>;
    detail::gate_backward(ctx, "route_backward",
                          detail::gate_backward_arguments<Router, T, W, D>{
                              r, detail::read_only(z), detail::read_only(ids),
                              detail::read_only(dw), dz, false, false, nullptr});
  }
};
/// `route_backward(ctx, router, logits, routes, d_weights, d_logits)`: the adjoint of route(), as
/// expar::route_backward() in one launch. Overwrites d_logits [T, experts], each number once, given
/// d_weights [T, top_k]; d_logits may be logits. Bit for bit as on the host, under the
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
