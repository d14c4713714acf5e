// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/detail/arguments.hpp>
#include <expar/router/math.hpp>
#include <expar/router/score.hpp>
#include <expar/router/token_loss.hpp>

EXPAR_IEEE_BEGIN
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

template <class Logits, class... DLogits>
double z_loss_of(host_context const& ctx, char const* operation, Logits const& logits,
                 z_loss_options const& o, DLogits&... d_logits) {
  arguments a(ctx, operation);
  auto const z = logits_of_loss(a, "logits", logits);
  auto const dz = gradient_of_loss(a, z, d_logits...);
  expects(o.tokens >= 0, a, ": tokens is ", o.tokens, "; it is at least 0");
  z_term const term{o.coefficient / token_count(o.tokens, z), static_cast<int>(z.extents[1])};
  return loss_of_tokens(ctx, z, term, dz);
}

}  // namespace detail

struct z_loss_fn {
  template <class Logits>
  double operator()(host_context const& ctx, Logits const& logits,
                    z_loss_options const& options = {}) const {
    return detail::z_loss_of(ctx, "z_loss", logits, options);
  }
};
/// `z_loss(ctx, logits, options)`: the router z-loss of ST-MoE,
///   L = coefficient * mean over tokens of (log sum over e of exp(logit))^2.
///   logits: [T, experts], any element type, or only(valid, logits). NaN and -inf are not in the
///           sum, and a token without any other logit adds 0
/// Returns this call's part: the sum over its tokens, divided by options.tokens.
inline constexpr z_loss_fn z_loss{};

struct z_loss_backward_fn {
  template <class Logits, class DLogits>
  void operator()(host_context const& ctx, Logits const& logits, z_loss_options const& options,
                  DLogits&& d_logits) const {
    detail::z_loss_of(ctx, "z_loss_backward", logits, options, d_logits);
  }
};
/// `z_loss_backward(ctx, logits, options, d_logits)`: the gradient of z_loss() to d_logits
/// [T, experts], any element type, overwritten, or added to by add_to(d_logits). That of tokens
/// left out is 0.
inline constexpr z_loss_backward_fn z_loss_backward{};

}  // namespace expar::inline v0
EXPAR_IEEE_END
