// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/detail/arguments.hpp>
#include <expar/detail/expert_ids.hpp>
#include <expar/plan/placement.hpp>

namespace expar::inline v0 {

struct local_routes_fn {
  template <class Ids, class Out>
  void operator()(host_context const& ctx, placement const& place, int rank, Ids const& ids,
                  Out&& out) const {
    detail::arguments a(ctx, "local_routes");
    detail::expects(rank >= 0 && rank < place.ranks(), "local_routes: rank is ", rank,
                    "; there are ", place.ranks(), " ranks");
    int const first = place.first(rank), count = place.count(rank);
    auto const from = a.ids("ids", ids);
    index_t const k = from.extents[1], shards = place.shards();
    auto to = a.written_ids("out", out, count,
                            {{from.extents[0], "the number of tokens"},
                             {k * shards, "top_k times the shards of the placement"}});
    detail::check_expert_ids("local_routes: ids", from, place.experts());
    detail::buffer<index_t> routes(ctx.memory());
    routes.assign(static_cast<std::size_t>(place.experts()), 0);
    for (index_t t = 0; t < from.extents[0]; ++t)
      for (index_t j = 0; j < k; ++j) {
        std::int32_t const e = from.row(t)[j];
        int const copies = e < 0 ? 0 : place.copies(e);
        int const copy = copies == 0 ? 0 : static_cast<int>(routes[e]++ % copies);
        for (int i = 0; i < static_cast<int>(shards); ++i) {
          int const slot = copies == 0 ? -1 : place.slot(e, copy, i) - first;
          to.row(t)[j * shards + i] = slot >= 0 && slot < count ? slot : -1;
        }
      }
    to.store();
  }
};
/// `local_routes(ctx, place, rank, ids, out)` finds what a rank computes where every rank has all
/// tokens: out [T, k * shards] becomes the number of a slot among those of the rank, or -1 where
/// the route is another rank's, or its expert has no copy. A plan over place.count(rank) experts
/// takes it as it is, with each weight repeated for the shards; what the ranks make of the tokens
/// is then summed over them.
///   ids: [T,k] experts, signed integers, -1 = no expert; equal on all ranks
/// Of several copies the p-th route of an expert, in order of token and choice, takes p mod copies.
/// Throws where an id is none. Local; O(T * k * shards).
inline constexpr local_routes_fn local_routes{};

}  // namespace expar::inline v0
