// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <concepts>

#include <expar/config.hpp>

namespace expar {
inline namespace v0 {

/// The second policy of a router: what experts are selected by. No gradient flows through it.
///   key(z, s, bias, keys, experts)  writes keys [experts] from logits z, scores s and the bias,
///   which
///                                   is null where the caller has none; -inf or NaN: never selected
///   key.takes_bias                  whether it reads the bias
template <class K>
concept key_policy = requires(K const key, float const* in, float* out, int experts) {
  key(in, in, in, out, experts);
  { K::takes_bias } -> std::convertible_to<bool>;
};

/// The score itself.
struct score_key {
  static constexpr bool takes_bias = false;

  template <class A>
  EXPAR_HD void operator()(A const* /*z*/, A const* s, A const* /*bias*/, A* keys,
                           int experts) const {
    for (int e = 0; e < experts; ++e) keys[e] = s[e];
  }
};

/// score + bias of the expert. The bias steers which experts are selected; weights and gradients
/// never see it.
struct biased_key {
  static constexpr bool takes_bias = true;

  template <class A>
  EXPAR_HD void operator()(A const* /*z*/, A const* s, A const* bias, A* keys, int experts) const {
    for (int e = 0; e < experts; ++e) keys[e] = bias == nullptr ? s[e] : s[e] + bias[e];
  }
};

/// In place of a bias: there is none, as if it were zero.
inline constexpr struct no_bias_t { } no_bias{}; }  // namespace v0
}  // namespace expar
