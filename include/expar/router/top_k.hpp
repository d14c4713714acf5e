// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include <expar/config.hpp>
#include <expar/router/score.hpp>  // infinity, masked

EXPAR_IEEE_BEGIN
namespace expar::inline v0 {

/// Writes the k experts with the largest keys to ids [k]: key descending, expert id ascending among
/// equal keys; -0 equals +0. A key of NaN or -inf is never selected, so that fewer than k may be
/// found; the ids behind them are -1. `best` [k] is scratch. Returns how many were found. Requires:
/// 1 <= k. Cost: one pass over the keys, and at most k moves for each that enters.
template <class A>
EXPAR_HD constexpr int select_top_k(A const* keys, int experts, int k, std::int32_t* ids, A* best) {
  int found = 0;
  for (int e = 0; e < experts; ++e) {
    A const key = keys[e];
    if (detail::masked(key)) continue;
    if (found == k && !(key > best[k - 1])) continue;
    int at = found < k ? found++ : k - 1;
    for (; at > 0 && key > best[at - 1]; --at) {
      best[at] = best[at - 1];
      ids[at] = ids[at - 1];
    }
    best[at] = key;
    ids[at] = e;
  }
  for (int j = found; j < k; ++j) ids[j] = -1;
  return found;
}

}  // namespace expar::inline v0
EXPAR_IEEE_END
