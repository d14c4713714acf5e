// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include <expar/config.hpp>
#include <expar/detail/argument_table.hpp>
#include <expar/detail/arithmetic.hpp>
#include <expar/error.hpp>
#include <expar/router/top_k.hpp>
#include <expar/tensor.hpp>

EXPAR_IEEE_BEGIN
namespace expar::inline v0 {

/// Which experts a token takes, given their keys:
///   x.select(keys, s, experts, k, ids, scratch)  writes ids [k], -1 where there is none, from keys
///                                                [experts] (-inf or NaN: not to be selected) and
///                                                scores s [experts]
/// It may have scratch(), at(), validate() and validate_entries(), as limit_policy says.
template <class X>
concept selection_policy = requires(X const x, float const* in, int n, std::int32_t* ids,
                                    float* scratch) {
  x.select(in, in, n, n, ids, scratch);
};

/// The k largest keys; see select_top_k(). What a router does that names no selection.
struct top_k_selection {
  EXPAR_HD constexpr int scratch(int /*experts*/, int top_k) const { return top_k; }
  template <class A>
  EXPAR_HD void select(A const* keys, A const* /*s*/, int experts, int k, std::int32_t* ids,
                       A* scratch) const {
    select_top_k(keys, experts, k, ids, scratch);
  }
};

/// All experts whose key is above 0, by ascending id, for a router whose top_k is the number of
/// experts: with relu_score, as many as fire (ReMoE); with a bias that is minus a threshold, those
/// above theirs (DynMoE). With `or_best`, a token for which none is takes the one with the largest
/// score, of equal ones the lower id. O(experts).
struct positive_keys {
  bool or_best = false;

  template <class A>
  EXPAR_HD void select(A const* keys, A const* s, int experts, int k, std::int32_t* ids,
                       A* /*scratch*/) const {
    int found = 0, best = -1;
    for (int e = 0; e < experts; ++e) {
      if (keys[e] > A(0)) ids[found++] = e;
      if (!detail::masked(keys[e]) && (best < 0 || s[e] > s[best])) best = e;
    }
    if (or_best && found == 0 && best >= 0) ids[found++] = best;
    for (; found < k; ++found) ids[found] = -1;
  }
  void validate(char const* what, int experts, int top_k, index_t /*tokens*/) const {
    detail::expects(top_k == experts, what, ": top_k is ", top_k, ", but any number of the ",
                    experts, " experts may have a positive key");
  }
};

/// k / groups experts of each of `groups` runs of experts, run after run (Pangu Pro's mixture of
/// grouped experts, arXiv:2505.21411).
struct top_k_per_group {
  int groups;

  EXPAR_HD constexpr int scratch(int /*experts*/, int top_k) const { return top_k; }
  template <class A>
  EXPAR_HD void select(A const* keys, A const* /*s*/, int experts, int k, std::int32_t* ids,
                       A* scratch) const {
    int const size = experts / groups, share = k / groups;
    for (int g = 0; g < groups; ++g) {
      std::int32_t* const mine = ids + g * share;
      select_top_k(keys + g * size, size, share, mine, scratch);
      for (int j = 0; j < share; ++j)
        if (mine[j] >= 0) mine[j] += g * size;
    }
  }
  void validate(char const* what, int experts, int top_k, index_t /*tokens*/) const {
    detail::expects(groups >= 1 && experts % groups == 0 && top_k % groups == 0, what,
                    ": groups is ", groups, "; it divides the ", experts, " experts and top_k, ",
                    top_k);
  }
};

/// By descending key until the scores of the selected experts add up to more than p, at most k
/// (Dynamic_MoE, p = 0.4). Where all k do not, all k.
struct top_p {
  double p;

  EXPAR_HD constexpr int scratch(int /*experts*/, int top_k) const { return top_k; }
  template <class A>
  EXPAR_HD void select(A const* keys, A const* s, int experts, int k, std::int32_t* ids,
                       A* scratch) const {
    select_top_k(keys, experts, k, ids, scratch);
    A sum = 0;
    for (int j = 0; j < k && ids[j] >= 0; ++j) {
      if (sum > static_cast<A>(p))
        ids[j] = -1;
      else
        sum = detail::add(sum, s[ids[j]]);
    }
  }
  void validate(char const* what, int /*experts*/, int /*top_k*/, index_t /*tokens*/) const {
    detail::expects(p >= 0 && p < detail::infinity<double>, what, ": p is ", p,
                    "; it is at least 0 and finite");
  }
};

namespace detail {

template <class Noise>
struct first_then_perturbed {
  Noise noise;

  EXPAR_HD constexpr int scratch(int experts, int top_k) const { return experts + top_k; }
  template <class A>
  EXPAR_HD void select(A const* keys, A const* /*s*/, int experts, int k, std::int32_t* ids,
                       A* scratch) const {
    A* const others = scratch + k;
    select_top_k(keys, experts, 1, ids, scratch);
    for (int e = 0; e < experts; ++e)
      others[e] = masked(keys[e]) || e == ids[0] ? -infinity<A> : noise.of(keys[e], e);
    if (k > 1) select_top_k(static_cast<A const*>(others), experts, k - 1, ids + 1, scratch);
  }
};

}  // namespace detail

/// The expert with the largest key first, and the others by keys on which a transform has worked:
/// GShard's second expert by Gumbel noise (fairscale, DeepSpeed, NLLB). The keys are the logits
/// where the router compares those, which it does by score_key without a limit.
template <class Noise>
struct perturbed_rest {
  Noise noise;

  EXPAR_HD constexpr int scratch(int experts, int top_k) const { return experts + top_k; }
  EXPAR_HD constexpr auto at(index_t token) const {
    if constexpr (requires { noise.at(token); })
      return detail::first_then_perturbed<decltype(noise.at(token))>{noise.at(token)};
    else
      return detail::first_then_perturbed<Noise>{noise};
  }
  void validate(detail::argument_table& a, int experts, int top_k, index_t tokens) const {
    if constexpr (requires { noise.validate(a, experts, top_k, tokens); })
      noise.validate(a, experts, top_k, tokens);
  }
};
template <class Noise>
perturbed_rest(Noise) -> perturbed_rest<Noise>;

}  // namespace expar::inline v0
EXPAR_IEEE_END
