// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <type_traits>

#include <expar/context.hpp>
#include <expar/detail/in_place.hpp>
#include <expar/element.hpp>
#include <expar/plan/detail/kept.hpp>
#include <expar/router/per_token.hpp>
#include <expar/router/weight.hpp>
#include <expar/tensor.hpp>

namespace expar::inline v0 {
namespace detail {

template <class Kept, class T>
void check_kept_weights(char const* what, tensor_view<Kept, 2> kept, tensor_view<T, 2> weights) {
  static_assert(element<std::remove_cv_t<T>>,
                "expar: weights and their gradients are of an element type; specialize "
                "expar::element_traits for it");
  check_view(what, weights);
  check_extent(what, weights, 0, kept.extents[0], "the number of tokens");
  check_extent(what, weights, 1, kept.extents[1], "the number of choices per token");
}

}  // namespace detail

struct renormalize_kept_fn {
  template <class Kept, class Weights, class Out>
  void operator()(host_context const& ctx, Kept const& kept, Weights const& weights,
                  renormalize const& rule, Out&& out) const {
    auto const ids = detail::as_view<2>(ctx, kept);
    auto const w = detail::as_view<2>(ctx, weights);
    auto const o = detail::as_output<2>(ctx, out);
    static_assert(std::is_same_v<detail::element_of<decltype(ids)>, std::int32_t>,
                  "expar: expert ids are std::int32_t");
    detail::check_view("renormalize_kept: kept", ids);
    detail::check_kept_weights("renormalize_kept: weights", ids, w);
    detail::check_kept_weights("renormalize_kept: out", ids, o);
    detail::check_output("renormalize_kept: out", o);
    detail::check_apart("renormalize_kept: out", o, "kept", ids);
    detail::check_in_place("renormalize_kept: out", o, "weights", w);
    index_t const k = ids.extents[1];
    using A = accumulator_t<detail::element_of<decltype(w)>>;
    detail::for_each_token_with<A>(ctx, ids.extents[0], k, k, [&](index_t t, A* x) {
      for (index_t j = 0; j < k; ++j) x[j] = ids.row(t)[j] < 0 ? A(0) : A(widen(w.row(t)[j]));
      rule(ids.row(t), x, static_cast<int>(k));
      detail::narrow_row(static_cast<A const*>(x), o.row(t), k);
    });
  }
};
/// Divides the weights of each token's kept routes by their sum: `renormalize_kept(ctx, kept,
/// weights, rule, out)`, between drop_to_capacity() and decode().
///   kept: [T,k] std::int32_t; a route of a negative id was dropped, and gets weight 0
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
    auto const ids = detail::as_view<2>(ctx, kept);
    auto const w = detail::as_view<2>(ctx, weights);
    auto const d = detail::as_view<2>(ctx, d_out);
    auto const dw = detail::as_output<2>(ctx, d_weights);
    static_assert(std::is_same_v<detail::element_of<decltype(ids)>, std::int32_t>,
                  "expar: expert ids are std::int32_t");
    detail::check_view("renormalize_kept_backward: kept", ids);
    detail::check_kept_weights("renormalize_kept_backward: weights", ids, w);
    detail::check_kept_weights("renormalize_kept_backward: d_out", ids, d);
    detail::check_kept_weights("renormalize_kept_backward: d_weights", ids, dw);
    detail::check_output("renormalize_kept_backward: d_weights", dw);
    detail::check_apart("renormalize_kept_backward: d_weights", dw, "kept", ids);
    detail::check_in_place("renormalize_kept_backward: d_weights", dw, "weights", w);
    detail::check_in_place("renormalize_kept_backward: d_weights", dw, "d_out", d);
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
      detail::narrow_row(static_cast<A const*>(g), dw.row(t), k);
    });
  }
};
/// The adjoint of renormalize_kept(): overwrites d_weights [T,k], the gradient for `weights`, given
/// d_out [T,k], the gradient for `out`. 0 where a route was dropped, and, but for epsilon, where it
/// is the only one that was kept, for its weight is 1. d_weights may be weights or d_out, and is
/// otherwise apart from them.
inline constexpr renormalize_kept_backward_fn renormalize_kept_backward{};

}  // namespace expar::inline v0
