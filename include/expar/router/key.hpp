// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <concepts>
#include <type_traits>

#include <expar/config.hpp>
#include <expar/detail/argument_table.hpp>
#include <expar/detail/arithmetic.hpp>
#include <expar/element.hpp>
#include <expar/router/score.hpp>
#include <expar/tensor.hpp>

EXPAR_IEEE_BEGIN
namespace expar::inline v0 {

/// What experts are selected by. No gradient flows through it.
///   key(z, s, bias, keys, experts)  writes keys [experts] from logits z, scores s and the bias,
///                                   which is null where the caller has none; -inf or NaN: never
///                                   selected
///   key.takes_bias                  whether it reads the bias
/// What depends on the token has at(token), which gives the key of that token.
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

/// logit + bias of the expert: quantile balancing, whose bias is minus its beta.
struct biased_logit_key {
  static constexpr bool takes_bias = true;

  template <class A>
  EXPAR_HD A of(A z, A /*s*/, A bias) const {
    return detail::add(z, bias);
  }
  template <class A>
  EXPAR_HD void operator()(A const* z, A const* s, A const* bias, A* keys, int experts) const {
    detail::separable_keys(*this, z, s, bias, keys, experts);
  }
};

/// Another score than the one that becomes the weight (GroveMoE).
template <score_policy Score>
struct scored_key {
  static constexpr bool takes_bias = false;
  Score score;

  template <class A>
  EXPAR_HD void operator()(A const* z, A const* /*s*/, A const* /*bias*/, A* keys,
                           int experts) const {
    score(z, keys, experts);
  }
};
template <class Score>
scored_key(Score) -> scored_key<Score>;

/// What a transform makes of the logit: with Gumbel noise the expert is a sample of the softmax,
/// while its weight is without noise (Switch, DeepSpeed).
template <class Transform>
struct perturbed_key {
  static constexpr bool takes_bias = false;
  Transform transform;

  EXPAR_HD constexpr auto at(index_t token) const requires requires(Transform const& t) {
    t.at(index_t{});
  }
  { return perturbed_key<decltype(transform.at(token))>{transform.at(token)}; }
  template <class A>
  EXPAR_HD void operator()(A const* z, A const* /*s*/, A const* /*bias*/, A* keys,
                           int experts) const {
    for (int e = 0; e < experts; ++e)
      keys[e] = detail::masked(z[e]) ? -detail::infinity<A> : transform.of(z[e], e);
  }
  void validate(detail::argument_table& a, int experts, int top_k, index_t tokens) const {
    if constexpr (requires { transform.validate(a, experts, top_k, tokens); })
      transform.validate(a, experts, top_k, tokens);
  }
};
template <class Transform>
perturbed_key(Transform) -> perturbed_key<Transform>;

namespace detail {

template <class T>
struct keys_of_row {
  static constexpr bool takes_bias = false;
  T const* row;

  template <class A>
  EXPAR_HD void operator()(A const*, A const*, A const*, A* keys, int experts) const {
    for (int e = 0; e < experts; ++e) keys[e] = static_cast<A>(widen(row[e]));
  }
};

}  // namespace detail

/// Keys [T, experts] that the caller has: a Sinkhorn plan, say.
template <class T>
struct given_keys {
  tensor_view<T const, 2> keys;

  EXPAR_HD constexpr detail::keys_of_row<T> at(index_t token) const { return {keys.row(token)}; }
  void validate(detail::argument_table& a, int experts, int /*top_k*/, index_t tokens) const {
    a.reads("given keys", keys,
            {{tokens, "the number of tokens"}, {experts, "the number of experts"}});
  }
};
template <class T>
given_keys(tensor_view<T, 2>) -> given_keys<std::remove_const_t<T>>;

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

}  // namespace expar::inline v0
EXPAR_IEEE_END
