// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/detail/arguments.hpp>
#include <expar/detail/expert_ids.hpp>
#include <expar/router/detail/block_gate.hpp>
#include <expar/router/per_token.hpp>
#include <expar/router/router.hpp>
#include <expar/router/routes.hpp>

EXPAR_IEEE_BEGIN
namespace expar::inline v0 {
namespace detail {

/// The steps' own checks, or those of a router of another kind.
template <class Router>
void validate_steps(argument_table& a, Router const& r, index_t tokens, bool entries) {
  validate_step(a, r, r.experts, r.top_k, tokens, entries);
}
template <int N = 0, class... Steps>
void validate_steps(argument_table& a, router<Steps...> const& r, index_t tokens, bool entries) {
  if constexpr (N < static_cast<int>(sizeof...(Steps))) {
    validate_step(a, step_of<N>(r.steps), r.experts, r.top_k, tokens, entries);
    validate_steps<N + 1>(a, r, tokens, entries);
  }
}

template <class Router>
void check_router(argument_table& a, Router const& r, index_t tokens, bool entries) {
  expects(r.top_k >= 1, a, ": top_k is ", r.top_k, "; it is at least 1");
  expects(r.top_k <= r.experts, a, ": top_k is ", r.top_k, ", but there are only ", r.experts,
          " experts");
  validate_steps(a, r, tokens, entries);
}

/// The logits [T, experts] of a router, whose values and tensors are checked with them.
template <class Context, class Router, class Logits>
auto read_logits(arguments<Context>& a, Router const& r, Logits const& logits,
                 bool entries = Context::space == memory_space::host) {
  auto const z =
      a.read("logits", logits, {any_extent, {r.experts, "the router's number of experts"}});
  check_router(a, r, z.extents[0], entries);
  return z;
}

}  // namespace detail

struct route_fn {
  template <class Router, class Logits, class Routes>
  void operator()(host_context const& ctx, Router const& r, Logits const& logits,
                  Routes&& routes) const {
    static_assert(!Router::takes_bias,
                  "expar: the key of this router takes a bias; pass a tensor of one number per "
                  "expert after the logits, or expar::no_bias");
    (*this)(ctx, r, logits, no_bias, routes);
  }

  template <class Router, class Logits, class Bias, class Routes>
  void operator()(host_context const& ctx, Router const& r, Logits const& logits, Bias const& bias,
                  Routes&& routes) const {
    static_assert(routes_like<Routes>,
                  "expar: routes are anything with tensors `ids` and `weights` of rank 2");
    detail::arguments a(ctx, "route");
    auto const z = detail::read_logits(a, r, logits);
    index_t const tokens = z.extents[0];
    detail::rule const each_token{tokens, "the number of tokens"}, each_choice{r.top_k, "top_k"};
    auto const ids = a.written_ids("ids", routes.ids, r.experts, {each_token, each_choice});
    auto const weights = a.written("weights", routes.weights, {each_token, each_choice});
    using A = accumulator_t<detail::element_of<decltype(z)>>;
    detail::buffer<A> wide_bias(ctx.memory());
    A const* const b = widen_bias(a, r, bias, wide_bias);
    if constexpr (detail::block_gate<Router, A>::possible) {
      detail::block_gate<Router, A> const block{r, b};
      if (block.fits() && block.scratch() <= on_stack<A>) {
        in_blocks(ctx, block, z, ids, weights);
        ids.store();
        return;
      }
    }
    index_t const k = r.top_k;
    detail::for_each_token_with<A>(
        ctx, tokens, r.experts, r.experts + k + r.forward_scratch(), [&](index_t t, A* scratch) {
          A* const w = scratch + r.experts;
          detail::widen_row(z.row(t), scratch, r.experts);
          detail::bind(r, t).forward(static_cast<A const*>(scratch), b, w + k, ids.row(t), w);
          detail::narrow_row(w, weights.row(t), k);
        });
    ids.store();
  }

 private:
  template <class A>
  static constexpr index_t on_stack = 65536 / sizeof(A);

  template <class Router, class A, class Logits, class Weights>
  static void in_blocks(host_context const& ctx, detail::block_gate<Router, A> const& block,
                        Logits const& z, tensor_view<std::int32_t, 2> ids, Weights const& weights) {
    constexpr index_t lanes = detail::block_gate<Router, A>::lanes;
    index_t const grain = 131072 / (block.r.experts + 16) + lanes;  // some 20 to 100 us
    ctx.for_each_chunk(z.extents[0], grain, [&](int, index_t first, index_t last) {
      alignas(64) A scratch[on_stack<A>];
      auto const tokens = [first, last](auto view) {
        view.data = view.row(first);
        view.extents[0] = last - first;
        return view;
      };
      block(tokens(z), scratch, tokens(ids), tokens(weights));
    });
  }

  template <class Router, class Bias, class A>
  static A const* widen_bias(detail::arguments<host_context>& a, Router const& r, Bias const& bias,
                             detail::buffer<A>& to) {
    if constexpr (std::is_same_v<Bias, no_bias_t>) {
      return nullptr;
    } else {
      static_assert(Router::takes_bias,
                    "expar: the key of this router takes no bias; leave it out, or give the router "
                    "expar::biased_key");
      auto const v = a.read_vector("bias", bias, {{r.experts, "the router's number of experts"}});
      if constexpr (std::is_same_v<detail::element_of<decltype(v)>, A>)
        if (v.strides[0] == 1) return v.data;
      A* const wide = to.resize(v.extents[0]);
      for (index_t e = 0; e < v.extents[0]; ++e) wide[e] = static_cast<A>(widen(v(e)));
      return wide;
    }
  }
};
/// `route(ctx, router, logits, bias, routes)` gives every token its experts.
///   logits: [T, experts], any element type. What is NaN or -inf is masked, and never selected,
///           whatever selects
///   bias: [experts], of which only the selection knows, or expar::no_bias. May be left out where
///         the router's key takes none
///   routes: `ids` [T, top_k] of a signed integer type and `weights` [T, top_k] of any element type
///           are written; see routes_like
/// Computes in float, or in double for logits of double, and rounds the weights once. Choices are
/// in the order of the selection: of top_k_selection, descending keys, and equal keys by ascending
/// expert id. Memory: some 64 KiB per
/// thread on its stack, or from the context where there are more than some thousand experts or the
/// bias has another type than float (double for logits of double). Throws where shapes do not fit,
/// or unless 1 <= top_k <= experts. Fastest for float and at most 16 choices by a router whose
/// score and key are made expert by expert, with no limit or group_limited: such tokens are routed
/// several at once.
inline constexpr route_fn route{};

struct route_backward_fn {
  template <class Router, class Logits, class Routes, class DWeights, class DLogits>
  void operator()(host_context const& ctx, Router const& r, Logits const& logits,
                  Routes const& routes, DWeights const& d_weights, DLogits&& d_logits) const {
    static_assert(routes_like<Routes const>,
                  "expar: routes are anything with tensors `ids` and `weights` of rank 2");
    detail::arguments a(ctx, "route_backward");
    auto const z = detail::read_logits(a, r, logits);
    index_t const tokens = z.extents[0];
    detail::rule const each_token{tokens, "the number of tokens"}, each_choice{r.top_k, "top_k"};
    auto const ids = a.ids("ids", routes.ids, {each_token, each_choice});
    auto const dw = a.read("d_weights", d_weights, {each_token, each_choice});
    auto const dz = a.gradient(
        "d_logits", d_logits,
        {each_token, {r.experts, "the router's number of experts"}, detail::may_be("logits")});
    using A = accumulator_t<detail::element_of<decltype(z)>>;
    detail::check_expert_ids("route_backward: ids", ids, r.experts);
    index_t const k = r.top_k;
    detail::for_each_token_with<A>(
        ctx, tokens, r.experts, 2 * index_t{r.experts} + k + r.vjp_scratch(),
        [&](index_t t, A* scratch) {
          A* const g = scratch + r.experts;
          A* const d = g + r.experts;
          detail::widen_row(z.row(t), scratch, r.experts);
          detail::widen_row(dw.row(t), d, k);
          detail::bind(r, t).vjp(static_cast<A const*>(scratch), ids.row(t),
                                 static_cast<A const*>(d), d + k, g);
          dz.put_row(dz.row(t), g, r.experts);
        });
  }
};
/// `route_backward(ctx, router, logits, routes, d_weights, d_logits)`: the adjoint of route().
/// Overwrites d_logits [T, experts], or adds to it by add_to(), given d_weights [T, top_k], the
/// gradient for the weights that route() wrote. The logits are those that route() read; of the
/// routes only the ids are read, and taken as constants, so an id that is set to -1 on the way
/// takes no part at all. A route that is dropped for want of capacity keeps its id and has a
/// d_weights of 0. The bias gets no gradient. Element types are free; d_logits may be logits.
/// Memory: as route(). Throws
/// where shapes do not fit, or if an id is not -1 .. experts - 1; then d_logits is untouched.
inline constexpr route_backward_fn route_backward{};

}  // namespace expar::inline v0
EXPAR_IEEE_END
