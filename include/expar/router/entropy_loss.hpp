// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/detail/arguments.hpp>
#include <expar/router/math.hpp>
#include <expar/router/score.hpp>
#include <expar/router/token_loss.hpp>

EXPAR_IEEE_BEGIN
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

template <class Logits, class... DLogits>
double entropy_loss_of(host_context const& ctx, char const* operation, Logits const& logits,
                       entropy_loss_options const& o, DLogits&... d_logits) {
  arguments a(ctx, operation);
  auto const z = logits_of_loss(a, "logits", logits);
  auto const dz = gradient_of_loss(a, z, d_logits...);
  expects(o.tokens >= 0, a, ": tokens is ", o.tokens, "; it is at least 0");
  entropy_term const term{o.coefficient / token_count(o.tokens, z), static_cast<int>(z.extents[1])};
  return loss_of_tokens(ctx, z, term, dz);
}

}  // namespace detail

struct entropy_loss_fn {
  template <class Logits>
  double operator()(host_context const& ctx, Logits const& logits,
                    entropy_loss_options const& options) const {
    return detail::entropy_loss_of(ctx, "entropy_loss", logits, options);
  }
};
/// `entropy_loss(ctx, logits, options)`: the entropy of the router,
///   L = coefficient * mean over tokens of -(sum over e of p log p),  p = softmax(logits).
/// With a positive coefficient routes become surer of their experts (Dynamic_MoE,
/// arXiv:2403.07652), with a negative one less.
///   logits: [T, experts], any element type, or only(valid, logits). NaN and -inf have p = 0, and
///           p log p is 0 there
/// Returns this call's part: the sum over its tokens, divided by options.tokens.
inline constexpr entropy_loss_fn entropy_loss{};

struct entropy_loss_backward_fn {
  template <class Logits, class DLogits>
  void operator()(host_context const& ctx, Logits const& logits,
                  entropy_loss_options const& options, DLogits&& d_logits) const {
    detail::entropy_loss_of(ctx, "entropy_loss_backward", logits, options, d_logits);
  }
};
/// `entropy_loss_backward(ctx, logits, options, d_logits)`: the gradient of entropy_loss() to
/// d_logits [T, experts], any element type, overwritten, or added to by add_to(d_logits). That of
/// tokens left out is 0.
inline constexpr entropy_loss_backward_fn entropy_loss_backward{};

}  // namespace expar::inline v0
EXPAR_IEEE_END
