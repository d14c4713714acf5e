// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include <expar/config.hpp>
#include <expar/router/key.hpp>
#include <expar/router/score.hpp>
#include <expar/router/top_k.hpp>
#include <expar/router/weight.hpp>

namespace expar {
inline namespace v0 {

struct router_shape {
  int experts;
  int top_k;
};

/// Logits to routes, as a composition of policies that is written in the order in which they run:
///
///   expar::router r({.experts = 64, .top_k = 6},
///                   expar::sigmoid_score{},         // scores = sigmoid(logits)
///                   expar::biased_key{},            // ids = the 6 largest of scores + bias
///                   expar::renormalize{1e-20},      // weights = scores[ids] / (their sum + 1e-20)
///                   expar::scale{2.5});             // weights * 2.5
///
/// A value that enters kernels. The members below work on one token; route() on many. A is float,
/// or double for logits of double. A policy of your own is a struct with the members that the
/// concepts score_policy, key_policy and weight_policy name.
template <score_policy Score, key_policy Key, weight_policy... Weights>
struct router {
  static constexpr bool takes_bias = Key::takes_bias;
  /// Whether experts are compared by their logits; see score_key.
  static constexpr bool by_logit = detail::selects_by_logit<Score, Key>;

  int experts;
  int top_k;
  Score score;
  Key key;
  weight_chain<Weights...> weigh;

  EXPAR_HD constexpr router(router_shape shape, Score s, Key k, Weights... steps)
      : experts(shape.experts), top_k(shape.top_k), score(s), key(k), weigh(steps...) {}

  /// How many numbers of type A the scratch of forward() and vjp() holds.
  EXPAR_HD constexpr std::ptrdiff_t forward_scratch() const {
    int const behind = detail::key_scratch(key);
    return std::ptrdiff_t{2} * experts + (behind > top_k ? behind : top_k);
  }
  EXPAR_HD constexpr std::ptrdiff_t vjp_scratch() const {
    return experts + std::ptrdiff_t{weigh.length + 2} * top_k;
  }

  /// The routes of one token: logits z [experts] and bias [experts] or null to ids [top_k] and
  /// weights w [top_k]. Where fewer than top_k experts can be selected, the last ids are -1 with
  /// weight 0.
  template <class A>
  EXPAR_HD void forward(A const* z, A const* bias, A* scratch, std::int32_t* ids, A* w) const {
    A* const scores = scratch;
    A* const keys = scores + experts;
    score(z, scores, experts);
    if constexpr (by_logit) {
      select_top_k(z, experts, top_k, ids, keys);
    } else {
      key(z, scores, bias, keys, experts);
      for (int e = 0; e < experts; ++e)
        if (detail::masked(z[e])) keys[e] = -detail::infinity<A>;
      select_top_k(static_cast<A const*>(keys), experts, top_k, ids, keys + experts);
    }
    gather(scores, ids, w);
    weigh(ids, w, top_k);
  }

  /// The gradient of one token: overwrites dz [experts], given the gradient dw [top_k] for the
  /// weights. The selection is a constant; an id of -1 takes no part. dz is not z.
  template <class A>
  EXPAR_HD void vjp(A const* z, std::int32_t const* ids, A const* dw, A* scratch, A* dz) const {
    A* const scores = scratch;
    A* const d = scores + experts;
    A* const values = d + top_k;
    score(z, scores, experts);
    gather(scores, ids, values);
    for (int j = 0; j < top_k; ++j) d[j] = ids[j] < 0 ? A(0) : dw[j];
    weigh.vjp(ids, values, d, top_k);
    for (int e = 0; e < experts; ++e) dz[e] = 0;
    for (int j = 0; j < top_k; ++j)
      if (ids[j] >= 0) dz[ids[j]] += d[j];
    score.vjp(z, scores, dz, dz, experts);
    for (int e = 0; e < experts; ++e)
      if (detail::masked(z[e])) dz[e] = 0;
  }

 private:
  template <class A>
  EXPAR_HD void gather(A const* scores, std::int32_t const* ids, A* w) const {
    for (int j = 0; j < top_k; ++j) w[j] = ids[j] < 0 ? A(0) : scores[ids[j]];
  }
};

}  // namespace v0
}  // namespace expar
