// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/context.hpp>
#include <expar/element.hpp>
#include <expar/router/math.hpp>
#include <expar/router/score.hpp>
#include <expar/router/token_loss.hpp>
#include <expar/tensor.hpp>

namespace expar::inline v0 {

struct z_loss_options {
  double coefficient = 1;
  /// How many tokens the loss is a mean over; 0: the valid tokens of this call, at least 1. Where
  /// ranks share a loss, the tokens of all of them: then the ranks' parts add up to it.
  index_t tokens = 0;
};

namespace detail {

/// factor * (log of the sum of exp(z))^2; 0 where all logits are masked
struct z_term {
  double factor;
  int experts;

  template <class A>
  A log_sum_exp(A const* z) const {
    A const most = largest_logit(z, experts);
    A const sum = interleaved_sum<A>(
        experts, [z, most](int e) { return zero_unless(!masked(z[e]), shifted_exp(z[e], most)); });
    return sum > A(0) ? most + logarithm(sum) : A(0);
  }
  template <class A>
  double value(A const* z, A*) const {
    double const lse = static_cast<double>(log_sum_exp(z));
    return factor * lse * lse;
  }
  template <class A>
  void gradient(A const* z, A* p) const {
    softmax_score{}(z, p, experts);
    A const slope = static_cast<A>(2 * factor) * log_sum_exp(z);
    for (int e = 0; e < experts; ++e)
      if (p[e] != A(0)) p[e] *= slope;  // a slope of infinity leaves the others 0
  }
};

}  // namespace detail

struct z_loss_fn {
  template <class Logits>
  double operator()(host_context const& ctx, Logits const& logits,
                    z_loss_options const& options = {}) const {
    return part(ctx, detail::as_view<2>(ctx, logits), detail::every_token{}, options);
  }
  template <class Logits, class Valid>
  double operator()(host_context const& ctx, Logits const& logits, Valid const& valid,
                    z_loss_options const& options) const {
    auto const z = detail::as_view<2>(ctx, logits);
    return part(ctx, z, detail::marks_of("z_loss: valid", ctx, valid, z.extents[0]), options);
  }

 private:
  template <class T, class Valid>
  static double part(host_context const& ctx, tensor_view<T, 2> z, Valid valid,
                     z_loss_options const& o) {
    detail::check_loss_logits("z_loss: logits", z);
    detail::expects(o.tokens >= 0, "z_loss: tokens is ", o.tokens, "; it is at least 0");
    double const tokens = detail::token_count(o.tokens, z.extents[0], valid);
    detail::z_term const term{o.coefficient / tokens, static_cast<int>(z.extents[1])};
    return detail::sum_over_tokens(ctx, z, valid, term);
  }
};
/// The router z-loss of ST-MoE, L = coefficient * mean over tokens of (log sum over e of
/// exp(logit))^2, as `z_loss(ctx, logits, options)` or `z_loss(ctx, logits, valid, options)`.
///   logits: [T, experts], any element type; NaN and -inf are not in the sum, and a token
///           without any other logit adds 0
///   valid: [T] of bool or std::uint8_t; tokens whose mark is 0 are left out
/// Returns this call's part: the sum over its tokens, divided by options.tokens.
inline constexpr z_loss_fn z_loss{};

struct z_loss_backward_fn {
  template <class Logits, class DLogits>
  void operator()(host_context const& ctx, Logits const& logits, z_loss_options const& options,
                  DLogits&& d_logits) const {
    add(ctx, detail::as_view<2>(ctx, logits), detail::every_token{}, options,
        detail::as_output<2>(ctx, d_logits));
  }
  template <class Logits, class Valid, class DLogits>
  void operator()(host_context const& ctx, Logits const& logits, Valid const& valid,
                  z_loss_options const& options, DLogits&& d_logits) const {
    auto const z = detail::as_view<2>(ctx, logits);
    add(ctx, z, detail::marks_of("z_loss_backward: valid", ctx, valid, z.extents[0]), options,
        detail::as_output<2>(ctx, d_logits));
  }

 private:
  template <class T, class Valid, class D>
  static void add(host_context const& ctx, tensor_view<T, 2> z, Valid valid,
                  z_loss_options const& o, tensor_view<D, 2> dz) {
    detail::check_loss_logits("z_loss_backward: logits", z);
    detail::expects(o.tokens >= 0, "z_loss_backward: tokens is ", o.tokens, "; it is at least 0");
    detail::check_loss_gradient("z_loss_backward: d_logits", z, dz);
    double const tokens = detail::token_count(o.tokens, z.extents[0], valid);
    detail::z_term const term{o.coefficient / tokens, static_cast<int>(z.extents[1])};
    detail::add_gradients(ctx, z, valid, term, dz);
  }
};
/// ADDS the gradient of z_loss() to d_logits [T, experts]; the last argument, after those of the
/// loss. Tokens that are not valid stay as they are.
inline constexpr z_loss_backward_fn z_loss_backward{};

}  // namespace expar::inline v0
