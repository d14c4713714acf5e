// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/context.hpp>
#include <expar/element.hpp>
#include <expar/router/math.hpp>
#include <expar/router/score.hpp>
#include <expar/router/token_loss.hpp>
#include <expar/tensor.hpp>

namespace expar::inline v0 {

struct entropy_loss_options {
  double coefficient = 1;
  /// How many tokens the loss is a mean over; 0: the valid tokens of this call, at least 1. Where
  /// ranks share a loss, the tokens of all of them: then the ranks' parts add up to it.
  index_t tokens = 0;
};

namespace detail {

/// factor * entropy of softmax(z)
struct entropy_term {
  double factor;
  int experts;

  template <class A>
  A entropy(A const* p) const {
    A sum = 0;
    for (int e = 0; e < experts; ++e)
      if (p[e] > A(0)) sum -= p[e] * logarithm(p[e]);
    return sum;
  }
  template <class A>
  double value(A const* z, A* p) const {
    softmax_score{}(z, p, experts);
    return factor * static_cast<double>(entropy(p));
  }
  template <class A>
  void gradient(A const* z, A* p) const {
    softmax_score{}(z, p, experts);
    A const all = entropy(p);
    for (int e = 0; e < experts; ++e)
      if (p[e] > A(0)) p[e] *= static_cast<A>(-factor) * (logarithm(p[e]) + all);
  }
};

template <class T, class Valid>
entropy_term make_entropy_term(char const* op, tensor_view<T, 2> z, Valid valid,
                               entropy_loss_options const& o) {
  check_loss_logits(argument(op, "logits"), z);
  expects(o.tokens >= 0, op, ": tokens is ", o.tokens, "; it is at least 0");
  return {o.coefficient / token_count(o.tokens, z.extents[0], valid),
          static_cast<int>(z.extents[1])};
}

}  // namespace detail

struct entropy_loss_fn {
  template <class Logits>
  double operator()(host_context const& ctx, Logits const& logits,
                    entropy_loss_options const& options) const {
    return (*this)(ctx, logits, detail::every_token{}, options);
  }
  template <class Logits, class Valid>
  double operator()(host_context const& ctx, Logits const& logits, Valid const& valid,
                    entropy_loss_options const& options) const {
    auto const z = detail::as_view<2>(ctx, logits);
    auto const marks = detail::marks_of("entropy_loss: valid", ctx, valid, z.extents[0]);
    return detail::sum_over_tokens(ctx, z, marks,
                                   detail::make_entropy_term("entropy_loss", z, marks, options));
  }
};
/// The entropy of the router, L = coefficient * mean over tokens of -(sum over e of p log p),
/// p = softmax(logits), as entropy_loss(ctx, logits, [valid,] options): with a positive coefficient
/// routes become surer of their experts (Dynamic_MoE, arXiv:2403.07652), with a negative one less.
///   logits: [T, experts], any element type; NaN and -inf have p = 0, and p log p is 0 there
///   valid: [T] of bool or std::uint8_t; tokens whose mark is 0 are left out
/// Returns this call's part: the sum over its tokens, divided by options.tokens.
inline constexpr entropy_loss_fn entropy_loss{};

struct entropy_loss_backward_fn {
  template <class Logits, class DLogits>
  void operator()(host_context const& ctx, Logits const& logits,
                  entropy_loss_options const& options, DLogits&& d_logits) const {
    (*this)(ctx, logits, detail::every_token{}, options, d_logits);
  }
  template <class Logits, class Valid, class DLogits>
  void operator()(host_context const& ctx, Logits const& logits, Valid const& valid,
                  entropy_loss_options const& options, DLogits&& d_logits) const {
    auto const z = detail::as_view<2>(ctx, logits);
    auto const dz = detail::as_output<2>(ctx, d_logits);
    auto const marks = detail::marks_of("entropy_loss_backward: valid", ctx, valid, z.extents[0]);
    auto const term = detail::make_entropy_term("entropy_loss_backward", z, marks, options);
    detail::check_loss_gradient("entropy_loss_backward: d_logits", z, dz);
    detail::add_gradients(ctx, z, marks, term, dz);
  }
};
/// ADDS the gradient of entropy_loss() to d_logits [T, experts]; the last argument, after those of
/// the loss. Tokens that are not valid stay as they are.
inline constexpr entropy_loss_backward_fn entropy_loss_backward{};

}  // namespace expar::inline v0
