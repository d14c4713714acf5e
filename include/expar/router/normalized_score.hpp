// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <type_traits>

#include <expar/config.hpp>
#include <expar/detail/arithmetic.hpp>
#include <expar/error.hpp>
#include <expar/router/score.hpp>
#include <expar/tensor.hpp>

EXPAR_IEEE_BEGIN
namespace expar::inline v0 {

/// q = s / (sum of s over the experts + epsilon), where s are the scores of a policy that scores
/// each expert for itself: the probability that balancing losses of sigmoid and sqrt(softplus)
/// routers are made of. It is a score policy itself.
///   DeepSeek-V3 (arXiv:2412.19437, eq. 18)                         epsilon = 0
///   Megatron-LM, moe_utils.py, compute_routing_scores_for_aux_loss  epsilon = 1e-20
/// Where the divisor is 0, all q are 0. Where the sum is infinite, q is its limit without a
/// gradient: one score of +inf has q = 1, m of them 1/m each. epsilon is at least 0 and finite.
template <separable_score Score>
struct normalized_score {
  static_assert(!Score::normalized, "expar: this score is normalized already");
  static_assert(!std::is_same_v<Score, logit_score>,
                "expar: logits can be negative; a score that is normalized is at least 0");
  static constexpr bool monotone = Score::monotone;

  Score score;
  double epsilon;

  template <class A>
  EXPAR_HD void operator()(A const* z, A* q, int experts) const {
    score(z, q, experts);
    auto const score_of = [q](int e) { return q[e]; };
    A sum = detail::interleaved_sum<A>(experts, score_of);
    if (!(sum < detail::infinity<A>)) {
      A const most = detail::largest_logit(q, experts);
      for (int e = 0; e < experts; ++e)
        q[e] = most < detail::infinity<A> ? detail::divide(q[e], most)
                                          : detail::zero_unless(q[e] == most, A(1));
      sum = detail::interleaved_sum<A>(experts, score_of);
    }
    A const divisor = detail::add(sum, static_cast<A>(epsilon));
    for (int e = 0; divisor > A(0) && e < experts; ++e) q[e] = detail::divide(q[e], divisor);
  }
  void validate(char const* what, int /*experts*/, int /*top_k*/, index_t /*tokens*/) const {
    detail::expects(epsilon >= 0 && epsilon < detail::infinity<double>, what, ": epsilon is ",
                    epsilon, "; it is at least 0 and finite");
  }
  template <class A>
  EXPAR_HD void vjp(A const* z, A const* q, A const* dq, A* dz, int experts) const {
    Score const of = score;
    auto const raw = [of, z](int e) {
      return detail::zero_unless(!detail::masked(z[e]), of.term(z[e], A(0)));
    };
    A const divisor =
        detail::add(detail::interleaved_sum<A>(experts, raw), static_cast<A>(epsilon));
    A const mean = detail::interleaved_sum<A>(
        experts, [q, dq](int e) { return detail::multiply(dq[e], q[e]); });
    for (int e = 0; e < experts; ++e)
      dz[e] = divisor > A(0)
                  ? score.slope(raw(e), detail::divide(detail::add(dq[e], -mean), divisor), A(0))
                  : A(0);
  }
};
template <class Score>
normalized_score(Score, double) -> normalized_score<Score>;

}  // namespace expar::inline v0
EXPAR_IEEE_END
