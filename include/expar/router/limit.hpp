// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/config.hpp>
#include <expar/detail/arithmetic.hpp>
#include <expar/error.hpp>
#include <expar/router/score.hpp>  // infinity, masked
#include <expar/tensor.hpp>

EXPAR_IEEE_BEGIN
namespace expar::inline v0 {

/// What takes experts out of the choice of a token:
///   l.limit(keys, experts, scratch)  sets keys [experts] to -inf where an expert is not to be
///                                    selected; keys that are -inf or NaN are so already
/// A policy may have scratch(experts, top_k), the numbers of scratch that it overwrites; at(token),
/// which gives the policy for that token; check(what, experts, top_k, tokens), which throws where
/// its values do not fit; and validate_entries(), the same for what is in its tensors, which is
/// asked on the host alone.
template <class L>
concept limit_policy = requires(L const l, float* keys, int experts) {
  l.limit(keys, experts, keys);
};

/// A few groups alone: the experts are `groups` runs of equal length, a run counts as the sum of
/// its `best_of` largest keys (of those it has, where fewer can be selected), and the experts
/// outside of the `top_groups` best runs are not selected. Equal sums: the lower run. DeepSeek-V2
/// takes best_of = 1, DeepSeek-V3 takes 2. With `zero_others` those experts have key 0 instead, and
/// are selected before experts of the best runs whose keys are below 0 (A.X K2, Mistral 4).
struct group_limited {
  int groups;
  int top_groups;
  int best_of = 2;
  bool zero_others = false;

  EXPAR_HD constexpr int scratch(int /*experts*/, int /*top_k*/) const { return groups; }

  /// The sum of one run, of which at(i) is the i-th key; -inf if there is nothing to select.
  template <class A, class At>
  EXPAR_HD A sum_of_best(int size, At at) const {
    return best_of <= 2 ? sum_of_two<A>(size, at) : sum_of_many<A>(size, at);
  }
  /// Whether run g is among the best, given all sums.
  template <class A>
  EXPAR_HD bool keeps(A const* sums, int g) const {
    int before = 0;
    for (int h = 0; h < groups; ++h)
      before += static_cast<int>(sums[h] > sums[g] || (sums[h] == sums[g] && h < g));
    return before < top_groups;
  }

  /// What the key of an expert outside of the best runs becomes.
  template <class A>
  EXPAR_HD A other(A key) const {
    return zero_others && !detail::masked(key) ? A(0) : -detail::infinity<A>;
  }

  template <class A>
  EXPAR_HD void limit(A* keys, int experts, A* sums) const {
    int const size = experts / groups;
    for (int g = 0; g < groups; ++g) {
      A const* const run = keys + g * size;
      sums[g] = sum_of_best<A>(size, [run](int i) { return run[i]; });
    }
    for (int g = 0; g < groups; ++g)
      if (!keeps(sums, g))
        for (int i = 0; i < size; ++i) keys[g * size + i] = other(keys[g * size + i]);
  }

  void validate(char const* what, int experts, int top_k, index_t /*tokens*/) const {
    detail::expects(groups >= 1 && experts % groups == 0, what, ": groups is ", groups,
                    "; it divides the ", experts, " experts");
    detail::expects(top_groups >= 1 && top_groups <= groups, what, ": top_groups is ", top_groups,
                    "; it is at least 1 and at most the ", groups, " groups");
    detail::expects(best_of >= 1 && best_of <= experts / groups, what, ": best_of is ", best_of,
                    "; it is at least 1 and at most the ", experts / groups, " experts of a group");
    index_t const left = index_t{top_groups} * (experts / groups);
    detail::expects(zero_others || top_k <= left, what, ": top_k is ", top_k, ", but ", top_groups,
                    " groups have only ", left, " experts");
  }

 private:
  template <class A, class At>
  EXPAR_HD A sum_of_two(int size, At at) const {
    A first = -detail::infinity<A>, second = first;
    for (int i = 0; i < size; ++i) {
      A const key = at(i);
      if (key > first)
        second = first, first = key;
      else if (key > second)
        second = key;
    }
    return best_of == 1 || detail::masked(second) ? first : detail::add(first, second);
  }
  /// By descending key; nothing is stored, so each key costs a pass.
  template <class A, class At>
  EXPAR_HD A sum_of_many(int size, At at) const {
    A sum = -detail::infinity<A>, last = 0;
    int last_at = -1;
    for (int n = 0; n < best_of; ++n) {
      A best = -detail::infinity<A>;
      int best_at = -1;
      for (int i = 0; i < size; ++i) {
        A const key = at(i);
        bool const taken = last_at >= 0 && !(key < last || (key == last && i > last_at));
        if (!taken && key > best) best = key, best_at = i;
      }
      if (best_at < 0) break;
      sum = n == 0 ? best : detail::add(sum, best);
      last = best, last_at = best_at;
    }
    return sum;
  }
};

}  // namespace expar::inline v0
EXPAR_IEEE_END
