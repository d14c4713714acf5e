// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/detail/arguments.hpp>
#include <expar/detail/arithmetic.hpp>
#include <expar/router/detail/steps.hpp>
#include <expar/router/per_token.hpp>
#include <expar/router/score.hpp>  // masked
#include <expar/router/transform.hpp>

namespace expar::inline v0 {
namespace detail {

/// Logits [T, experts] of which a transform is made, whose tensors and values are checked too.
template <class Context, class Transform, class Logits>
auto read_for(arguments<Context>& a, Transform const& transform, Logits const& logits) {
  static_assert(transform_policy<bound<Transform>>,
                "expar: the second argument is a transform_policy");
  auto const z = a.read("logits", logits);
  validate_step(a, transform, row_size(a, "logits", z.extents[1], "experts"), 1, z.extents[0]);
  return z;
}

}  // namespace detail

struct transform_logits_fn {
  template <class Transform, class Logits, class Out>
  void operator()(host_context const& ctx, Transform const& transform, Logits const& logits,
                  Out&& out) const {
    detail::arguments a(ctx, "transform_logits");
    auto const z = detail::read_for(a, transform, logits);
    index_t const tokens = z.extents[0], experts = z.extents[1];
    auto const x = a.written("out", out,
                             {{tokens, "the number of tokens"},
                              {experts, "the number of experts"},
                              detail::may_be("logits")});
    using A = accumulator_t<detail::element_of<decltype(z)>>;
    detail::for_each_token_with<A>(ctx, tokens, experts, experts, [&](index_t t, A* row) {
      auto const of_token = detail::bind(transform, t);
      detail::widen_row(z.row(t), row, experts);
      for (int e = 0; e < experts; ++e)
        row[e] = detail::masked(row[e]) ? -detail::infinity<A> : of_token.of(row[e], e);
      detail::narrow_row(row, x.row(t), experts);
    });
  }
};
/// `transform_logits(ctx, transform, logits, out)`: what a transform makes of logits, as the router
/// that has it sees them, for losses that need them.
///   logits, out: [T, experts], any element types; out may be logits, and is otherwise apart from
///                them. What is NaN or -inf becomes -inf
/// Computes in float, or in double for logits of double, and rounds once. Throws where shapes do
/// not fit, or what the transform has; then out is untouched.
inline constexpr transform_logits_fn transform_logits{};

struct transform_logits_backward_fn {
  template <class Transform, class Logits, class DOut, class DLogits>
  void operator()(host_context const& ctx, Transform const& transform, Logits const& logits,
                  DOut const& d_out, DLogits&& d_logits) const {
    detail::arguments a(ctx, "transform_logits_backward");
    auto const z = detail::read_for(a, transform, logits);
    index_t const tokens = z.extents[0], experts = z.extents[1];
    detail::rule const each_token{tokens, "the number of tokens"},
        each_expert{experts, "the number of experts"};
    auto const dx = a.read("d_out", d_out, {each_token, each_expert});
    auto const dz =
        a.gradient("d_logits", d_logits,
                   {each_token, each_expert, detail::may_be("logits"), detail::may_be("d_out")});
    using A = accumulator_t<detail::element_of<decltype(z)>>;
    detail::for_each_token_with<A>(ctx, tokens, experts, 2 * experts, [&](index_t t, A* row) {
      auto const of_token = detail::bind(transform, t);
      A* const g = row + experts;
      detail::widen_row(z.row(t), row, experts);
      detail::widen_row(dx.row(t), g, experts);
      for (int e = 0; e < experts; ++e)
        g[e] = detail::masked(row[e]) ? A(0) : detail::multiply(g[e], of_token.slope(row[e], e));
      dz.put_row(dz.row(t), g, experts);
    });
  }
};
/// `transform_logits_backward(ctx, transform, logits, d_out, d_logits)`, the adjoint: d_out times
/// the slope of the transform at the logits that it read, to d_logits [T, experts]; 0 where they
/// are masked. d_logits may be d_out or logits, and is otherwise apart from them. Throws as
/// transform_logits(); then d_logits is untouched.
inline constexpr transform_logits_backward_fn transform_logits_backward{};

}  // namespace expar::inline v0
