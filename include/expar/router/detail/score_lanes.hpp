// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <type_traits>

#include <expar/router/detail/pack.hpp>
#include <expar/router/key.hpp>
#include <expar/router/score.hpp>

EXPAR_IEEE_BEGIN
namespace expar::inline v0::detail {
inline namespace EXPAR_VECTORS {

// What score and key policies do, for all lanes.

/// score.term() of the logits of one expert; `plain`: no lane's `most` is +inf.
template <class Score, class A>
inline pack<A> term_of(Score const& score, pack<A> z, [[maybe_unused]] pack<A> most,
                       [[maybe_unused]] bool plain) {
  if constexpr (std::is_same_v<Score, logit_score>) {
    return add(z, pack<A>::all(0));
  } else if constexpr (std::is_same_v<Score, sigmoid_score> && std::is_same_v<A, float>) {
    pack<A> const one = pack<A>::all(1);
    return divide(one, add(one, exponential(pack<A>{-z.v})));
  } else {
    if constexpr (std::is_same_v<Score, softmax_score> && std::is_same_v<A, float>)
      if (plain) return small_exponential(subtract(z, most));
    A x[pack<A>::lanes], m[pack<A>::lanes];
    z.store(x), most.store(m);
    for (int l = 0; l < pack<A>::lanes; ++l) x[l] = score.term(x[l], m[l]);
    return pack<A>::load(x);
  }
}
template <class A>
inline pack<A> inverse_of_sum(pack<A> sum) {
  pack<A> const one = pack<A>::all(1);
  return divide(one, select(sum.v > pack<A>::all(0).v, sum, one));
}
template <class Key, class A>
inline pack<A> key_of(Key const& key, pack<A> z, pack<A> s, A bias) {
  if constexpr (std::is_same_v<Key, score_key>) {
    return s;
  } else if constexpr (std::is_same_v<Key, biased_key>) {
    return add(s, pack<A>::all(bias));
  } else {
    A x[pack<A>::lanes], y[pack<A>::lanes];
    z.store(x), s.store(y);
    for (int l = 0; l < pack<A>::lanes; ++l) x[l] = key.of(x[l], y[l], bias);
    return pack<A>::load(x);
  }
}

}  // namespace EXPAR_VECTORS
}  // namespace expar::inline v0::detail
EXPAR_IEEE_END
