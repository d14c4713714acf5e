// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <concepts>

#include <expar/config.hpp>
#include <expar/detail/arithmetic.hpp>
#include <expar/router/score.hpp>  // infinity, masked

namespace expar {
inline namespace v0 {

/// The second policy of a router: what experts are selected by. No gradient flows through it.
///   key(z, s, bias, keys, experts)  writes keys [experts] from logits z, scores s and the bias,
///                                   which is null where the caller has none; -inf or NaN: never
///                                   selected
///   key.takes_bias                  whether it reads the bias
/// A policy may have scratch(), the numbers that it may overwrite behind the keys.
template <class K>
concept key_policy = requires(K const key, float const* in, float* out, int experts) {
  key(in, in, in, out, experts);
  { K::takes_bias } -> std::convertible_to<bool>;
};

/// A key policy that is made expert by expert, which lets a device hold a token in registers:
///   key.of(z, s, bias)  the key of one expert; the bias is 0 where the caller has none
template <class K>
concept separable_key = key_policy<K> && requires(K const key, float x) {
  key.of(x, x, x);
};

namespace detail {

template <class Key>
EXPAR_HD constexpr int key_scratch(Key const& key) {
  if constexpr (requires { key.scratch(); })
    return key.scratch();
  else
    return 0;
}

template <class Key, class A>
EXPAR_HD void separable_keys(Key const& key, A const* z, A const* s, A const* bias, A* keys,
                             int experts) {
  if (bias == nullptr)
    for (int e = 0; e < experts; ++e) keys[e] = key.of(z[e], s[e], A(0));
  else
    for (int e = 0; e < experts; ++e) keys[e] = key.of(z[e], s[e], bias[e]);
}

}  // namespace detail

/// The score itself. Where the score is monotone in the logit, the router compares logits, which
/// are exact: ties are ties of logits, and scores that rounding has made equal are none.
struct score_key {
  static constexpr bool takes_bias = false;

  template <class A>
  EXPAR_HD A of(A /*z*/, A s, A /*bias*/) const {
    return s;
  }
  template <class A>
  EXPAR_HD void operator()(A const* z, A const* s, A const* bias, A* keys, int experts) const {
    detail::separable_keys(*this, z, s, bias, keys, experts);
  }
};

/// score + bias of the expert. The bias steers which experts are selected; weights and gradients
/// never see it.
struct biased_key {
  static constexpr bool takes_bias = true;

  template <class A>
  EXPAR_HD A of(A /*z*/, A s, A bias) const {
    return detail::add(s, bias);
  }
  template <class A>
  EXPAR_HD void operator()(A const* z, A const* s, A const* bias, A* keys, int experts) const {
    detail::separable_keys(*this, z, s, bias, keys, experts);
  }
};

/// The key of another policy, in a few groups alone: the experts are `groups` runs of equal length,
/// a run counts as the sum of its `best_of` largest keys (of those it has, where fewer can be
/// selected), and the experts outside of the `top_groups` best runs are not selected. Equal sums:
/// the lower run. DeepSeek-V2 takes best_of = 1, DeepSeek-V3 takes 2.
template <key_policy Inner>
struct group_limited {
  static constexpr bool takes_bias = Inner::takes_bias;

  Inner inner;
  int groups;
  int top_groups;
  int best_of = 2;

  EXPAR_HD constexpr int scratch() const {
    int const behind = detail::key_scratch(inner);
    return groups > behind ? groups : behind;
  }

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

  template <class A>
  EXPAR_HD void operator()(A const* z, A const* s, A const* bias, A* keys, int experts) const {
    inner(z, s, bias, keys, experts);
    for (int e = 0; e < experts; ++e)
      if (detail::masked(z[e])) keys[e] = -detail::infinity<A>;
    A* const sums = keys + experts;
    int const size = experts / groups;
    for (int g = 0; g < groups; ++g) {
      A const* const run = keys + g * size;
      sums[g] = sum_of_best<A>(size, [run](int i) { return run[i]; });
    }
    for (int g = 0; g < groups; ++g)
      if (!keeps(sums, g))
        for (int i = 0; i < size; ++i) keys[g * size + i] = -detail::infinity<A>;
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
template <class Inner>
group_limited(Inner, int, int, int = 2) -> group_limited<Inner>;

namespace detail {

/// Whether comparing logits is comparing keys, wherever numbers are exact.
template <class Score, class Key>
inline constexpr bool selects_by_logit = false;
template <class Score>
requires(Score::monotone) inline constexpr bool selects_by_logit<Score, score_key> = true;

}  // namespace detail

/// In place of a bias: there is none, as if it were zero.
struct no_bias_t {};
inline constexpr no_bias_t no_bias{};

}  // namespace v0
}  // namespace expar
