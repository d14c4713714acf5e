// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/config.hpp>
#include <expar/detail/arithmetic.hpp>
#include <expar/router/exp.hpp>
#include <expar/router/math.hpp>

EXPAR_IEEE_BEGIN
namespace expar::inline v0 {
namespace detail {

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
  return small_exponential(zero_unless(z != most, add(z, -most)));
}

/// The sum of term(e) over the experts in an order that vectors, threads and lanes all can follow:
/// expert e goes to partial sum e mod 32, by ascending e, and the 32 partial sums are halved: l
/// takes up l + 16, then l + 8, 4, 2 and 1.
template <class A, class Term>
EXPAR_HD A interleaved_sum(int experts, Term term) {
  constexpr int lanes = 32;
  A part[lanes] = {};
  int first = 0;
  for (; first + lanes <= experts; first += lanes)
    for (int l = 0; l < lanes; ++l) part[l] = add(part[l], term(first + l));
  for (int l = 0; l < lanes; ++l)  // of constant length, so that the sums can be registers
    if (first + l < experts) part[l] = add(part[l], term(first + l));
  for (int half = lanes / 2; half > 0; half /= 2)
    for (int l = 0; l < half; ++l) part[l] = add(part[l], part[l + half]);
  return part[0];
}

/// What terms are multiplied by to be normalized: one division for all of them.
template <class A>
EXPAR_HD A inverse_of_sum(A sum) {
  return sum > A(0) ? divide(A(1), sum) : A(1);
}

/// The scores s of one token, by a score that is made expert by expert, and their adjoint.
template <class Score, class A>
EXPAR_HD void separable_scores(Score score, A const* z, A* s, int experts) {
  A const most = Score::normalized ? largest_logit(z, experts) : A(0);
  for (int e = 0; e < experts; ++e) {
    A const x = z[e];
    s[e] = zero_unless(!masked(x), score.term(x, most));
  }
  if constexpr (Score::normalized) {
    A const sum = interleaved_sum<A>(experts, [s](int e) { return s[e]; });
    A const inverse = inverse_of_sum(sum);
    for (int e = 0; e < experts; ++e) s[e] = multiply(s[e], inverse);
  }
}
template <class Score, class A>
EXPAR_HD void separable_vjp(Score score, A const* s, A const* ds, A* dz, int experts) {
  A mean = 0;
  if constexpr (Score::normalized)
    mean = interleaved_sum<A>(experts, [s, ds](int e) { return multiply(ds[e], s[e]); });
  for (int e = 0; e < experts; ++e) dz[e] = score.slope(s[e], ds[e], mean);
}

/// What makes a score_policy of a separable_score.
template <class Score>
struct made_expert_by_expert {
  template <class A>
  EXPAR_HD void operator()(A const* z, A* s, int experts) const {
    separable_scores(static_cast<Score const&>(*this), z, s, experts);
  }
  template <class A>
  EXPAR_HD void vjp(A const* /*z*/, A const* s, A const* ds, A* dz, int experts) const {
    separable_vjp(static_cast<Score const&>(*this), s, ds, dz, experts);
  }
};

}  // namespace detail

/// The logits z of one token to its scores s, both [experts].
///   score(z, s, experts)              writes s; 0 where z is NaN or -inf
///   score.vjp(z, s, ds, dz, experts)  overwrites dz with the gradient for z, given s and the
///                                     gradient ds for it; dz may be ds. What it gives for a
///                                     masked logit is not used
/// A policy may say `monotone = true`: of two logits of a token, the larger has the larger score
/// wherever numbers are exact. Then a router that selects by the score compares logits.
template <class S>
concept score_policy = requires(S const score, float const* in, float* out, int experts) {
  score(in, out, experts);
  score.vjp(in, in, in, out, experts);
};

/// A score policy that is made expert by expert, which lets a device hold a token in registers:
///   score.term(z, most)       the score of a logit, or what becomes it when multiplied by the
///                             inverse of the interleaved sum over the unmasked experts, which is
///                             0 or has a finite inverse; most is their largest logit. What it
///                             gives for a masked logit is not used. Where the score is monotone,
///                             a logit of -0 may come as 0
///   score.normalized          whether to normalize; if not, most is not given
///   score.slope(s, ds, mean)  the gradient for z of one expert; mean is the interleaved
///                             sum of ds * s, or 0 unless normalized
template <class S>
concept separable_score = score_policy<S> && requires(S const score, float x) {
  score.term(x, x);
  score.slope(x, x, x);
  requires S::normalized || !S::normalized;
};

/// s = exp(z) / sum of exp(z) over the experts. One logit of +inf has score 1, m of them 1/m each.
struct softmax_score : detail::made_expert_by_expert<softmax_score> {
  static constexpr bool monotone = true, normalized = true;

  template <class A>
  EXPAR_HD A term(A z, A most) const {
    return detail::shifted_exp(z, most);
  }
  template <class A>
  EXPAR_HD A slope(A s, A ds, A mean) const {
    return detail::multiply(s, detail::add(ds, -mean));
  }
};

/// s = 1 / (1 + exp(-z)), each expert for itself.
struct sigmoid_score : detail::made_expert_by_expert<sigmoid_score> {
  static constexpr bool monotone = true, normalized = false;

  template <class A>
  EXPAR_HD A term(A z, A /*most*/) const {
    return detail::divide(A(1), detail::add(A(1), detail::exponential(-z)));
  }
  template <class A>
  EXPAR_HD A slope(A s, A ds, A /*mean*/) const {
    return detail::multiply(detail::multiply(ds, s), detail::add(A(1), -s));
  }
};

/// s = z, and 0 where z is -0. What weighs by the selected logits alone starts here:
/// softmax_weights, sigmoid_weights.
struct logit_score : detail::made_expert_by_expert<logit_score> {
  static constexpr bool monotone = true, normalized = false;

  template <class A>
  EXPAR_HD A term(A z, A /*most*/) const {
    return detail::add(z, A(0));
  }
  template <class A>
  EXPAR_HD A slope(A /*s*/, A ds, A /*mean*/) const {
    return ds;
  }
};

/// s = max(z, 0) (ReMoE).
struct relu_score : detail::made_expert_by_expert<relu_score> {
  static constexpr bool monotone = false, normalized = false;  // all below 0 are alike

  template <class A>
  EXPAR_HD A term(A z, A /*most*/) const {
    return z > A(0) ? z : A(0);
  }
  template <class A>
  EXPAR_HD A slope(A s, A ds, A /*mean*/) const {
    return s > A(0) ? ds : A(0);
  }
};

/// s = sqrt(log(1 + exp(z))) (DeepSeek-V4). Where exp(z) is below the smallest normal number, s and
/// its gradient are 0; a logit of +inf counts as the largest number.
struct sqrt_softplus_score : detail::made_expert_by_expert<sqrt_softplus_score> {
  static constexpr bool monotone = true, normalized = false;

  template <class A>
  EXPAR_HD A term(A z, A /*most*/) const {
    A const most = detail::largest_number<A>;
    return detail::square_root(detail::softplus(z < most ? z : most));
  }
  /// sigmoid(z) / (2 s), where sigmoid(z) = 1 - exp(-s^2).
  template <class A>
  EXPAR_HD A slope(A s, A ds, A /*mean*/) const {
    if (!(s > A(0))) return A(0);
    A const sigmoid = detail::one_minus_exp(detail::multiply(s, s));
    return detail::multiply(ds, detail::divide(sigmoid, detail::multiply(A(2), s)));
  }
};

}  // namespace expar::inline v0
EXPAR_IEEE_END
