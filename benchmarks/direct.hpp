// SPDX-License-Identifier: Apache-2.0
// The limit of two ranks that reach each other's memory: they push the same rows straight to where
// they go, and pull them from there, without plan, counts or agreement. Theirs and ours in one run.
#pragma once

#include <ranks.hpp>

namespace benchmarks {

/// Memory of all ranks, as each sees it: that of a row of a route, in `base`.
template <class T, class Rank>
auto places(Rank const& rank, T* const (&base)[ranks]) {
  return [&rank, &base, e = rank.extent()](index_t t, int j) {
    index_t const route = t * e.k + j;
    return base[rank.owner(route)] + rank.row_of(route) * e.hidden;
  };
}

/// With what `in` has already.
template <class T, class Rank, class Comm>
std::vector<timing> time_dispatch(Rank& rank, rank_rounds<Comm>& in, T* const (&rows)[ranks],
                                  index_t rounds, int& disturbed) {
  index_t const tokens = rank.x.size() / rank.extent().hidden;
  in.add(
      kind::ours, "ours", [&] { rank.dispatch(); }, [&] { return rank.dispatch_is_right(); });
  auto const limit = [&](char const* name, auto push) {
    in.add(
        kind::limit, name,
        [&rank, &rows, tokens, push] {
          push(rank.x.data(), places(rank, rows), rank.extent(), index_t{0}, tokens);
        },
        [&rank] { return rank.rows_are_those_of_the_batch(); }, [&rank] { rank.rows.poison(); });
  };
  limit("memcpy", [](auto... a) { limits::push_by_memcpy_to(a...); });
  limit("streaming", [](auto... a) { limits::push_to<limits::streaming>(a...); });
  limit("streaming_rows", [](auto... a) { limits::push_rows_to<limits::streaming>(a...); });
  in.check();
  return in.measure(rounds, disturbed);
}

template <class T, class Rank, class Comm>
std::vector<timing> time_combine(Rank& rank, rank_rounds<Comm>& in, T* const (&y)[ranks],
                                 index_t rounds, int& disturbed) {
  index_t const tokens = rank.x.size() / rank.extent().hidden;
  in.add(
      kind::ours, "ours", [&] { rank.combine(); }, [&] { return rank.combine_is_right(); },
      [&] { rank.fill_y(), rank.out.poison(); });
  auto const limit = [&](char const* name, auto gather) {
    in.add(
        kind::limit, name,
        [&rank, &y, tokens, gather] {
          gather(places(rank, y), rank.weights.data(), rank.out.data(), rank.extent(), index_t{0},
                 tokens);
        },
        [&rank] { return rank.combine_is_right(); }, [&rank] { rank.out.poison(); });
  };
  limit("temporal", [](auto... a) { limits::gather_from<limits::temporal>(a...); });
  limit("streaming", [](auto... a) { limits::gather_from<limits::streaming>(a...); });
  limit("streaming_alone", [](auto... a) { limits::gather_from<limits::streaming_alone>(a...); });
  in.check();
  return in.measure(rounds, disturbed);
}

}  // namespace benchmarks
