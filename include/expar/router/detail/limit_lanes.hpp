// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/router/detail/pack.hpp>
#include <expar/router/limit.hpp>
#include <expar/tensor.hpp>

EXPAR_IEEE_BEGIN
namespace expar::inline v0::detail {
inline namespace EXPAR_VECTORS {

inline constexpr int most_groups = 64;

/// Keys [experts][lanes] of groups that are not among the best become -inf, or 0 where they are no
/// -inf, as group_limited says.
/// At most most_groups, judged by their best 1 or 2.
template <class A>
void limit_lanes(group_limited const& step, A* keys, int experts) {
  using p = pack<A>;
  constexpr int lanes = p::lanes;
  using mask = mask_of<A>;
  int const size = experts / step.groups;
  p const none = p::all(-infinity<A>);
  alignas(64) A sums[most_groups * lanes];
  for (int g = 0; g < step.groups; ++g) {
    A const* const run = keys + index_t{g} * size * lanes;
    p first = none, second = none;
    for (int i = 0; i < size; ++i) {
      p const key = p::load(run + index_t{i} * lanes);
      p const smaller = {smaller_lanes(first.v, key.v)};
      first = larger(key, first);
      second = larger(smaller, second);
    }
    p const both = step.best_of == 1 ? first : select(second.v > none.v, add(first, second), first);
    both.store(sums + g * lanes);
  }
  for (int g = 0; g < step.groups; ++g) {
    p const mine = p::load(sums + g * lanes);
    mask before = {};
    for (int h = 0; h < step.groups; ++h) {
      p const other = p::load(sums + h * lanes);
      before -= h < g ? other.v >= mine.v : other.v > mine.v;
    }
    mask const keeps = before < static_cast<typename p::integer>(step.top_groups);
    A* const run = keys + index_t{g} * size * lanes;
    for (int i = 0; i < size; ++i) {
      p const key = p::load(run + index_t{i} * lanes);
      p const other = step.zero_others ? select(key.v > none.v, p::all(0), none) : none;
      select(keeps, key, other).store(run + index_t{i} * lanes);
    }
  }
}

}  // namespace EXPAR_VECTORS
}  // namespace expar::inline v0::detail
EXPAR_IEEE_END
