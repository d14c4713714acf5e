// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/plan/placement.hpp>

namespace expar::inline v0 {

/// What prepare() takes where copies are chosen as the placement says: in turn, so that no rank
/// asks another, or the nearest. Other quotas are functions of the routes of all ranks:
///   quotas(counts, place, out)
///     counts: tensor_view<index_t const, 2> [ranks, experts], the kept routes of each rank for
///             each expert
///     out: tensor_view<index_t, 2> [ranks, slots], zero at first: how many of the rank's routes go
///          to each slot of shard 0; they sum up to the counts, but for experts without a copy,
///          whose routes are dropped. Other shards are not read
/// Of a rank's routes for an expert the first go to copy 0, the next to copy 1, and so on. All
/// ranks compute the same. Costs one agreement more.
struct take_turns {};

struct even_quotas_fn {
  void operator()(tensor_view<index_t const, 2> counts, placement const& place,
                  tensor_view<index_t, 2> out) const {
    for (int e = 0; e < place.experts(); ++e) {
      index_t all = 0, before = 0;
      for (int r = 0; r < place.ranks(); ++r) all += counts.row(r)[e];
      index_t const copies = place.copies(e);
      auto const start = [&](index_t c) { return all / copies * c + all % copies * c / copies; };
      for (int r = 0; r < place.ranks(); ++r) {
        index_t const end = before + counts.row(r)[e];
        for (int c = 0; c < place.copies(e); ++c) {
          index_t const first = start(c) > before ? start(c) : before;
          index_t const last = start(c + 1) < end ? start(c + 1) : end;
          out.row(r)[place.slot(e, c)] = last > first ? last - first : 0;
        }
        before = end;
      }
    }
  }
};
/// `even_quotas(counts, place, out)`, as an argument of prepare() or dispatch(): the copies of an
/// expert get equally many routes (but for one), whatever the ranks send: the routes of rank 0 come
/// first, then those of rank 1.
inline constexpr even_quotas_fn even_quotas{};

namespace detail {

/// Runs a caller's quotas and checks them. `split` [ranks, slots].
template <class Quotas>
void split_by(Quotas const& quotas, placement const& place, tensor_view<index_t const, 2> kept,
              tensor_view<index_t, 2> split) {
  for (index_t i = 0; i < split.size(); ++i) split.data[i] = 0;
  quotas(kept, place, split);
  for (int r = 0; r < place.ranks(); ++r)
    for (int e = 0; e < place.experts(); ++e) {
      if (place.copies(e) == 0) continue;
      index_t left = kept.row(r)[e];
      for (int c = 0; c < place.copies(e); ++c) {
        index_t const n = split.row(r)[place.slot(e, c)];
        expects(n >= 0 && n <= left, "prepare: the quotas give ", n, " routes of rank ", r,
                " to copy ", c, " of expert ", e, "; there are ", left, " left");
        left -= n;
        for (int i = 1; i < place.shards(); ++i) split.row(r)[place.slot(e, c, i)] = n;
      }
      expects(left == 0, "prepare: the quotas leave out ", left, " of the ", kept.row(r)[e],
              " routes of rank ", r, " for expert ", e);
    }
}

/// A number that differs, as good as surely, where the numbers of a table do.
inline std::uint64_t checksum(tensor_view<index_t const, 2> table) {
  std::uint64_t h = 0xcbf29ce484222325u;
  for (index_t i = 0; i < table.size(); ++i) {
    h = (h ^ static_cast<std::uint64_t>(table.data[i])) * 0x100000001b3u;
    h ^= h >> 32;
  }
  return h;
}

}  // namespace detail
}  // namespace expar::inline v0
