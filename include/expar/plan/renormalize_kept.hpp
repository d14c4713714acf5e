// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/detail/arguments.hpp>
#include <expar/router/per_token.hpp>
#include <expar/router/weight.hpp>

namespace expar::inline v0 {

struct renormalize_kept_fn {
  template <class Kept, class Weights, class Out>
  void operator()(host_context const& ctx, Kept const& kept, Weights const& weights,
                  renormalize const& rule, Out&& out) const {
    detail::arguments a(ctx, "renormalize_kept");
    auto const ids = a.ids("kept", kept);
    detail::rule const tokens{ids.extents[0], "the number of tokens"},
        choices{ids.extents[1], "the number of choices per token"};
    auto const w = a.read("weights", weights, {tokens, choices});
    auto const o = a.written("out", out, {tokens, choices, detail::may_be("weights")});
    rule.validate(a, 0, 0, 0);
    index_t const k = ids.extents[1];
    using A = accumulator_t<detail::element_of<decltype(w)>>;
    detail::for_each_token_with<A>(ctx, ids.extents[0], k, k, [&](index_t t, A* x) {
      for (index_t j = 0; j < k; ++j) x[j] = ids.row(t)[j] < 0 ? A(0) : A(widen(w.row(t)[j]));
      rule(ids.row(t), x, static_cast<int>(k));
      detail::narrow_row(static_cast<A const*>(x), o.row(t), k);
    });
  }
};
/// `renormalize_kept(ctx, kept, weights, rule, out)` divides the weights of each token's kept
/// routes by their sum, between drop_to_capacity() and decode().
///   kept: [T,k] signed integers; a route of a negative id was dropped, and gets weight 0
///   weights: [T,k] of any element type, of a router that does not renormalize
///   rule: a renormalize, whose sum is that of the kept weights
///   out: [T,k] of any element type, written. It may be weights, and is otherwise apart from them
/// A token without a kept route has weights of 0. Where a system renormalizes matters:
///   after dropping: DeepSpeed (max(sum, epsilon of the type)), fairscale and NLLB the same
///   before dropping, by a weight policy of the router: Mesh TensorFlow (sum + 1e-9), Tutel, NLLB
///   with normalize_router_prob_before_dropping
///   never: Switch, V-MoE
/// Computes in float, or in double for weights of double. Throws where shapes do not fit.
inline constexpr renormalize_kept_fn renormalize_kept{};

struct renormalize_kept_backward_fn {
  template <class Kept, class Weights, class DOut, class DWeights>
  void operator()(host_context const& ctx, Kept const& kept, Weights const& weights,
                  renormalize const& rule, DOut const& d_out, DWeights&& d_weights) const {
    detail::arguments a(ctx, "renormalize_kept_backward");
    auto const ids = a.ids("kept", kept);
    detail::rule const tokens{ids.extents[0], "the number of tokens"},
        choices{ids.extents[1], "the number of choices per token"};
    auto const w = a.read("weights", weights, {tokens, choices});
    auto const d = a.read("d_out", d_out, {tokens, choices});
    auto const dw =
        a.gradient("d_weights", d_weights,
                   {tokens, choices, detail::may_be("weights"), detail::may_be("d_out")});
    rule.validate(a, 0, 0, 0);
    index_t const k = ids.extents[1];
    using A = accumulator_t<detail::element_of<decltype(w)>>;
    detail::for_each_token_with<A>(ctx, ids.extents[0], k, 3 * k, [&](index_t t, A* x) {
      A *const y = x + k, *const g = y + k;
      std::int32_t const* const id = ids.row(t);
      for (index_t j = 0; j < k; ++j) {
        x[j] = y[j] = id[j] < 0 ? A(0) : A(widen(w.row(t)[j]));
        g[j] = id[j] < 0 ? A(0) : static_cast<A>(widen(d.row(t)[j]));
      }
      rule(id, y, static_cast<int>(k));
      rule.vjp(id, static_cast<A const*>(x), static_cast<A const*>(y), g, static_cast<int>(k));
      dw.put_row(dw.row(t), g, k);
    });
  }
};
/// `renormalize_kept_backward(ctx, kept, weights, rule, d_out, d_weights)`: the adjoint of
/// renormalize_kept(). Overwrites d_weights [T,k], the gradient for `weights`, or adds to it by
/// add_to(), given d_out [T,k], the gradient for `out`. 0 where a route was dropped, and, but for
/// epsilon, where it is the only one that was kept, for its weight is 1. d_weights may be weights
/// or d_out, and is otherwise apart from them.
inline constexpr renormalize_kept_backward_fn renormalize_kept_backward{};

}  // namespace expar::inline v0
