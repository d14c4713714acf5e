// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <cstring>

#include <expar/router/detail/column_slots.hpp>  // most_slots
#include <expar/router/detail/score_lanes.hpp>
#include <expar/router/expert_weights.hpp>
#include <expar/router/normalize.hpp>
#include <expar/router/weight.hpp>

EXPAR_IEEE_BEGIN
namespace expar::inline v0::detail {
inline namespace EXPAR_VECTORS {

// What weight policies do, for all lanes: weights w and ids are [k][lanes].

/// Lanes with an expert.
EXPAR_ALWAYS_INLINE mask_of<float> chosen(std::int32_t const* ids) {
  mask_of<float> id;
  std::memcpy(&id, ids, sizeof id);
  return id >= 0;
}

/// Any policy, lane by lane.
template <class Step, class A, class K>
void weigh_lanes(Step const& step, std::int32_t const* ids, A* w, K k) {
  constexpr int lanes = pack<A>::lanes;
  std::int32_t id[most_slots];
  A mine[most_slots];
  for (int l = 0; l < lanes; ++l) {
    for (int j = 0; j < k; ++j) id[j] = ids[j * lanes + l], mine[j] = w[j * lanes + l];
    step(static_cast<std::int32_t const*>(id), static_cast<A*>(mine), int{k});
    for (int j = 0; j < k; ++j) w[j * lanes + l] = mine[j];
  }
}
template <class A, class K>
EXPAR_ALWAYS_INLINE void weigh_lanes(scale const& step, std::int32_t const*, A* w, K k) {
  using p = pack<A>;
  for (int j = 0; j < k; ++j)
    multiply(p::load(w + j * p::lanes), p::all(static_cast<A>(step.factor)))
        .store(w + j * p::lanes);
}
template <class A, class K>
EXPAR_ALWAYS_INLINE void weigh_lanes(renormalize const& step, std::int32_t const*, A* w, K k) {
  using p = pack<A>;
  if (k == 1 && !step.single) return;
  p const epsilon = p::all(static_cast<A>(step.epsilon)), zero = p::all(0);
  p sum = zero;
  for (int j = 0; j < k; ++j) sum = add(sum, p::load(w + j * p::lanes));
  p const divisor = step.kind == renormalize::guard::add
                        ? add(sum, epsilon)
                        : select(sum.v < epsilon.v, epsilon, add(sum, zero));
  for (int j = 0; j < k; ++j) {
    p const mine = divide(p::load(w + j * p::lanes), divisor);
    zero_unless(divisor.v != zero.v, mine).store(w + j * p::lanes);
  }
}

template <class K>
EXPAR_ALWAYS_INLINE void weigh_lanes(softmax_weights const&, std::int32_t const* ids, float* w,
                                     K k) {
  using p = pack<float>;
  p const none = p::all(-infinity<float>), zero = p::all(0);
  p most = none, sum = zero;
  for (int j = 0; j < k; ++j)
    most = larger(select(chosen(ids + j * p::lanes), p::load(w + j * p::lanes), none), most);
  for (int j = 0; j < k; ++j) {
    p const mine = p::load(w + j * p::lanes);
    p const below = zero_unless(mine.v != most.v, subtract(mine, most));  // +inf below itself: 0
    auto const counts = chosen(ids + j * p::lanes) & (mine.v > none.v);
    p const term = zero_unless(counts, small_exponential(below));
    term.store(w + j * p::lanes);
    sum = add(sum, term);
  }
  p const inverse = inverse_of_sum(sum);
  for (int j = 0; j < k; ++j) multiply(p::load(w + j * p::lanes), inverse).store(w + j * p::lanes);
}

/// softmax_weights of logits that descend, -inf where there is no expert.
template <class K>
EXPAR_ALWAYS_INLINE void descending_softmax(float* w, K k) {
  using p = pack<float>;
  p const none = p::all(-infinity<float>), one = p::all(1);
  p const most = p::load(w);
  p sum = zero_unless(most.v > none.v, one);
  sum.store(w);
  for (int j = 1; j < k; ++j) {
    p const mine = p::load(w + j * p::lanes);
    p const below = zero_unless(mine.v != most.v, subtract(mine, most));  // +inf below itself: 0
    p const term = zero_unless(mine.v > none.v, small_exponential(below));
    term.store(w + j * p::lanes);
    sum = add(sum, term);
  }
  p const inverse = divide(one, larger(sum, one));  // the sum is 0 if there is no expert
  for (int j = 0; j < k; ++j) multiply(p::load(w + j * p::lanes), inverse).store(w + j * p::lanes);
}

}  // namespace EXPAR_VECTORS
}  // namespace expar::inline v0::detail
EXPAR_IEEE_END
