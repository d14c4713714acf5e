// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/context.hpp>
#include <expar/detail/arithmetic.hpp>
#include <expar/detail/in_place.hpp>
#include <expar/element.hpp>
#include <expar/router/detail/steps.hpp>
#include <expar/router/per_token.hpp>
#include <expar/router/score.hpp>  // masked
#include <expar/router/transform.hpp>
#include <expar/tensor.hpp>

namespace expar::inline v0 {
namespace detail {

template <class Transform>
void check_transform(char const* what, Transform const& transform, index_t tokens,
                     index_t experts) {
  int const n = static_cast<int>(experts);
  if constexpr (requires { transform.validate(what, n, 1, tokens); })
    transform.validate(what, n, 1, tokens);
}
template <class T, class U>
void check_like_logits(char const* what, tensor_view<T, 2> const& v,
                       tensor_view<U, 2> const& logits) {
  check_extent(what, v, 0, logits.extents[0], "the number of tokens");
  check_extent(what, v, 1, logits.extents[1], "the number of experts");
}

}  // namespace detail

struct transform_logits_fn {
  template <class Transform, class Logits, class Out>
  void operator()(host_context const& ctx, Transform const& transform, Logits const& logits,
                  Out&& out) const {
    static_assert(transform_policy<detail::bound<Transform>>,
                  "expar: the second argument is a transform_policy");
    auto const z = detail::as_view<2>(ctx, logits);
    auto const x = detail::as_output<2>(ctx, out);
    static_assert(
        element<detail::element_of<decltype(z)>> && element<detail::element_of<decltype(x)>>,
        "expar: logits are of an element type; specialize expar::element_traits for it");
    using A = accumulator_t<detail::element_of<decltype(z)>>;
    detail::check_view("transform_logits: logits", z);
    detail::check_output("transform_logits: out", x);
    detail::check_like_logits("transform_logits: out", x, z);
    detail::check_in_place("transform_logits: out", x, "logits", z);
    index_t const tokens = z.extents[0], experts = z.extents[1];
    detail::check_transform("transform_logits", transform, tokens, experts);
    detail::for_each_token_with<A>(ctx, tokens, experts, experts, [&](index_t t, A* row) {
      auto const of_token = detail::bind(transform, t);
      detail::widen_row(z.row(t), row, experts);
      for (int e = 0; e < experts; ++e)
        row[e] = detail::masked(row[e]) ? -detail::infinity<A> : of_token.of(row[e], e);
      detail::narrow_row(row, x.row(t), experts);
    });
  }
};
/// Writes what a transform makes of logits, as the router that has it sees them, for losses that
/// need them: `transform_logits(ctx, transform, logits, out)`.
///   logits, out: [T, experts], any element types; the same tensor, or apart. What is NaN or -inf
///                becomes -inf
/// Computes in float, or in double for logits of double, and rounds once. Throws where shapes do
/// not fit; then out is untouched.
inline constexpr transform_logits_fn transform_logits{};

struct transform_logits_backward_fn {
  template <class Transform, class Logits, class DOut, class DLogits>
  void operator()(host_context const& ctx, Transform const& transform, Logits const& logits,
                  DOut const& d_out, DLogits&& d_logits) const {
    static_assert(transform_policy<detail::bound<Transform>>,
                  "expar: the second argument is a transform_policy");
    auto const z = detail::as_view<2>(ctx, logits);
    auto const dx = detail::as_view<2>(ctx, d_out);
    auto const dz = detail::as_output<2>(ctx, d_logits);
    static_assert(element<detail::element_of<decltype(z)>>,
                  "expar: logits are of an element type; specialize expar::element_traits for it");
    static_assert(
        element<detail::element_of<decltype(dx)>> && element<detail::element_of<decltype(dz)>>,
        "expar: gradients are of an element type; specialize expar::element_traits for it");
    using A = accumulator_t<detail::element_of<decltype(z)>>;
    detail::check_view("transform_logits_backward: logits", z);
    detail::check_view("transform_logits_backward: d_out", dx);
    detail::check_like_logits("transform_logits_backward: d_out", dx, z);
    detail::check_output("transform_logits_backward: d_logits", dz);
    detail::check_like_logits("transform_logits_backward: d_logits", dz, z);
    detail::check_in_place("transform_logits_backward: d_logits", dz, "logits", z);
    detail::check_in_place("transform_logits_backward: d_logits", dz, "d_out", dx);
    index_t const tokens = z.extents[0], experts = z.extents[1];
    detail::check_transform("transform_logits_backward", transform, tokens, experts);
    detail::for_each_token_with<A>(ctx, tokens, experts, 2 * experts, [&](index_t t, A* row) {
      auto const of_token = detail::bind(transform, t);
      A* const g = row + experts;
      detail::widen_row(z.row(t), row, experts);
      detail::widen_row(dx.row(t), g, experts);
      for (int e = 0; e < experts; ++e)
        g[e] = detail::masked(row[e]) ? A(0) : detail::multiply(g[e], of_token.slope(row[e], e));
      detail::narrow_row(g, dz.row(t), experts);
    });
  }
};
/// The adjoint of transform_logits(): overwrites d_logits [T, experts] with d_out times the slope
/// of the transform at logits, which are those that it read; 0 where they are masked. d_logits may
/// be d_out or logits, and is otherwise apart from them. Throws where shapes do not fit; then
/// d_logits is untouched.
inline constexpr transform_logits_backward_fn transform_logits_backward{};

}  // namespace expar::inline v0
