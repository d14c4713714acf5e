// SPDX-License-Identifier: Apache-2.0
// The limit of a plan: each route takes its place among the routes of its expert, and nothing else
// is done. No id is checked and no layout made.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include <expar/context.hpp>

namespace limits {

using expar::index_t;

inline void rank_routes(std::int32_t const* ids, index_t first, index_t last, std::int32_t* next,
                        std::int32_t* places) {
  for (index_t i = first; i < last; ++i) places[i] = next[ids[i]]++;
}

/// On one thread: one pass.
inline void rank_in_one_pass(std::int32_t const* ids, index_t routes, int experts,
                             std::vector<std::int32_t>& next, std::int32_t* places) {
  next.assign(static_cast<std::size_t>(experts), 0);
  rank_routes(ids, 0, routes, next.data(), places);
}

/// On all threads: each counts its own part first.
inline void rank_in_two_passes(expar::host_context const& ctx, std::int32_t const* ids,
                               index_t routes, int experts, std::vector<std::int32_t>& next,
                               std::int32_t* places) {
  auto const e = static_cast<std::size_t>(experts);
  auto const parts = static_cast<std::size_t>(ctx.threads());
  next.assign(parts * e, 0);
  auto const table = [&](int part) { return next.data() + static_cast<std::size_t>(part) * e; };
  ctx.for_each_chunk(routes, 1, [&](int part, index_t first, index_t last) {
    std::int32_t* const counts = table(part);
    for (index_t i = first; i < last; ++i) ++counts[ids[i]];
  });
  for (std::size_t expert = 0; expert < e; ++expert) {
    std::int32_t before = 0;
    for (std::size_t part = 0; part < parts; ++part) {
      std::int32_t const count = next[part * e + expert];
      next[part * e + expert] = before;
      before += count;
    }
  }
  ctx.for_each_chunk(routes, 1, [&](int part, index_t first, index_t last) {
    rank_routes(ids, first, last, table(part), places);
  });
}

}  // namespace limits
