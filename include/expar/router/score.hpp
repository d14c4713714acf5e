// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <limits>

#include <expar/config.hpp>

namespace expar {
inline namespace v0 {
namespace detail {

// Variables, because kernels may read constants but not call what computes them.
template <class A>
inline constexpr A infinity = std::numeric_limits<A>::infinity();

/// A logit of NaN or -inf takes part in nothing: its score is 0, it is never selected, and its
/// gradient is 0.
template <class A>
EXPAR_HD constexpr bool masked(A z) {
  return !(z > -infinity<A>);
}

/// The largest of the logits that are not masked, or -inf.
template <class A>
EXPAR_HD constexpr A largest_logit(A const* z, int experts) {
  A most = -infinity<A>;
  for (int e = 0; e < experts; ++e)
    if (z[e] > most) most = z[e];
  return most;
}

/// exp(z - most) for an unmasked z <= most; a logit of +inf counts as the limit of a large one.
template <class A>
EXPAR_HD A shifted_exp(A z, A most) {
  return z == most ? A(1) : std::exp(z - most);
}

}  // namespace detail

/// The first policy of a router: the logits z of one token to its scores s, both [experts].
///   score(z, s, experts)              writes s; 0 where z is NaN or -inf
///   score.vjp(z, s, ds, dz, experts)  overwrites dz with the gradient for z, given s and the
///   gradient
///                                     ds for it; dz may be ds
template <class S>
concept score_policy = requires(S const score, float const* in, float* out, int experts) {
  score(in, out, experts);
  score.vjp(in, in, in, out, experts);
};

/// s = exp(z) / sum of exp(z) over the experts. One logit of +inf has score 1, m of them 1/m each.
struct softmax_score {
  template <class A>
  EXPAR_HD void operator()(A const* z, A* s, int experts) const {
    A const most = detail::largest_logit(z, experts);
    A sum = 0;
    for (int e = 0; e < experts; ++e) {
      s[e] = detail::masked(z[e]) ? A(0) : detail::shifted_exp(z[e], most);
      sum += s[e];
    }
    if (sum > A(0))
      for (int e = 0; e < experts; ++e) s[e] /= sum;
  }
  template <class A>
  EXPAR_HD void vjp(A const* /*z*/, A const* s, A const* ds, A* dz, int experts) const {
    A mean = 0;
    for (int e = 0; e < experts; ++e) mean += ds[e] * s[e];
    for (int e = 0; e < experts; ++e) dz[e] = s[e] * (ds[e] - mean);
  }
};

/// s = 1 / (1 + exp(-z)), each expert for itself.
struct sigmoid_score {
  template <class A>
  EXPAR_HD void operator()(A const* z, A* s, int experts) const {
    for (int e = 0; e < experts; ++e)
      s[e] = detail::masked(z[e]) ? A(0) : A(1) / (A(1) + std::exp(-z[e]));
  }
  template <class A>
  EXPAR_HD void vjp(A const* /*z*/, A const* s, A const* ds, A* dz, int experts) const {
    for (int e = 0; e < experts; ++e) dz[e] = ds[e] * s[e] * (A(1) - s[e]);
  }
};

}  // namespace v0
}  // namespace expar
