// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/detail/arguments.hpp>
#include <expar/detail/expert_ids.hpp>
#include <expar/detail/sizes.hpp>

namespace expar::inline v0 {
namespace detail {

template <class View>
auto as_counts(View const& v) {
  static_assert(std::is_integral_v<element_of<View>> && sizeof(element_of<View>) >= 4,
                "expar: counts are integers of at least 32 bits");
  return v;
}

/// sum += count; throws where the count of expert `e` is negative, or an index cannot count the
/// sum.
template <class Count>
void add_count(char const* what, index_t e, Count count, index_t& sum) {
  index_t next = 0;
  bool const fits = !__builtin_add_overflow(sum, count, &next) && next >= sum;
  expects(fits, what, "(", e, ") is ", count, "; counts are at least 0 and add up to at most ",
          PTRDIFF_MAX);
  sum = next;
}

/// A count of a vector, or of a matrix, as a number; throws where it is negative.
template <class T>
double count_at(char const* op, char const* name, tensor_view<T, 1> const& counts, index_t i) {
  expects(counts(i) >= T{}, op, ": ", name, "(", i, ") is ", counts(i), "; a count is at least 0");
  return static_cast<double>(counts(i));
}
template <class T>
double count_at(char const* op, char const* name, tensor_view<T, 2> const& counts, index_t i,
                index_t j) {
  expects(counts(i, j) >= T{}, op, ": ", name, "(", i, ", ", j, ") is ", counts(i, j),
          "; a count is at least 0");
  return static_cast<double>(counts(i, j));
}

/// Throws unless a Count holds the largest of counts, which is at most `most`.
template <class Count>
void check_countable(char const* op, index_t most) {
  expects(static_cast<index_t>(static_cast<Count>(most)) == most, op, ": a count may become ", most,
          ", more than an integer of ", sizeof(Count), " bytes holds");
}

/// The first `choices` ids of each token, all of which a Count counts.
template <class Count>
tensor_view<std::int32_t const, 2> leading_ids(char const* op,
                                               tensor_view<std::int32_t const, 2> ids,
                                               index_t choices) {
  expects(choices >= 1 && choices <= ids.extents[1], op, ": choices is ", choices,
          "; it is at least 1 and at most the ", ids.extents[1], " choices per token");
  check_countable<Count>(op, size_product(ids.extents[0], choices));
  ids.extents[1] = choices;
  return ids;
}

/// Throws unless the offsets [n + 1] of n `things` ascend from 0 to `end`, the number of `entries`.
template <class Index>
void check_offsets(char const* op, tensor_view<Index, 1> const& offsets, char const* things,
                   index_t end, char const* entries) {
  static_assert(std::is_integral_v<Index> && sizeof(Index) >= 4,
                "expar: offsets are integers of at least 32 bits");
  index_t const n = offsets.extents[0];
  expects(n >= 1, op, ": offsets has ", n, " entries; there is one more than ", things);
  index_t low = 0;
  for (index_t b = 0; b < n; ++b) {
    auto const at = static_cast<index_t>(offsets(b));
    bool const fits = (b == 0 ? at == 0 : at >= low) && (b + 1 < n || at == end);
    expects(fits, op, ": offsets(", b, ") is ", at, "; offsets ascend from 0 to the number of ",
            entries, ", ", end);
    low = at;
  }
}

}  // namespace detail

struct count_choices_fn {
  template <class Ids, class Counts>
  void operator()(host_context const& ctx, Ids const& ids, int choices, Counts&& counts) const {
    detail::arguments a(ctx, "count_choices");
    auto const i = a.masked_ids("ids", ids);
    auto const n = detail::as_counts(a.written_any_vector("counts", counts));
    using Count = detail::element_of<decltype(n)>;
    auto const leading = detail::leading_ids<Count>(a, i, choices);
    detail::check_expert_ids("count_choices: ids", leading, n.extents[0], i.valid);
    count(ctx, i.extents[0], 16384 / choices + 1, n, [&](index_t t, index_t* mine) {
      for (index_t j = 0; i.valid(t) && j < choices; ++j)
        if (std::int32_t const id = i.row(t)[j]; id >= 0) ++mine[id];
    });
  }

  template <class Offsets, class Ids, class Counts>
  requires(!std::is_arithmetic_v<Ids>) void operator()(host_context const& ctx,
                                                       Offsets const& offsets, Ids const& ids,
                                                       Counts&& counts) const {
    detail::arguments a(ctx, "count_choices");
    auto const at = a.read_any_vector("offsets", offsets);
    index_t const tokens = at.extents[0] > 0 ? at.extents[0] - 1 : 0;
    auto const i = a.ids_vector("ids", a.unmasked(ids));
    auto const valid = a.valid_tokens(ids, tokens);
    auto const n = detail::as_counts(a.written_any_vector("counts", counts));
    index_t const routes = i.extents[0], experts = n.extents[0];
    detail::check_offsets(a, at, "tokens", routes, "routes");
    detail::check_countable<detail::element_of<decltype(n)>>(a, routes);
    for (index_t t = 0; t < tokens; ++t)
      for (auto r = static_cast<index_t>(at(t)); valid(t) && r < static_cast<index_t>(at(t + 1));
           ++r)
        detail::expects(i(r) >= -1 && i(r) < experts, a, ": ids(", r, ") is ", i(r),
                        "; an expert id is -1 (no expert) or 0 to ", experts - 1);
    index_t const grain = tokens > 0 ? 16384 / (routes / tokens + 1) + 1 : 1;
    count(ctx, tokens, grain, n, [&](index_t t, index_t* mine) {
      auto const behind = static_cast<index_t>(at(t + 1));
      for (auto r = static_cast<index_t>(at(t)); valid(t) && r < behind; ++r)
        if (std::int32_t const id = i(r); id >= 0) ++mine[id];
    });
  }

 private:
  /// counts = the sum of what each(token, mine) adds to mine [experts].
  template <class Count, class Each>
  static void count(host_context const& ctx, index_t tokens, index_t grain,
                    tensor_view<Count, 1> counts, Each each) {
    index_t const experts = counts.extents[0];
    int const parts = ctx.chunks(tokens, grain);
    detail::buffer<index_t> table(ctx.memory());
    table.assign(static_cast<std::size_t>(parts) * static_cast<std::size_t>(experts), 0);
    ctx.for_each_chunk(tokens, grain, [&](int part, index_t first, index_t last) {
      for (index_t t = first; t < last; ++t) each(t, table.data() + part * experts);
    });
    for (index_t e = 0; e < experts; ++e) {
      index_t sum = 0;
      for (int part = 0; part < parts; ++part) sum += table[part * experts + e];
      counts(e) = static_cast<Count>(sum);
    }
  }
};
/// `count_choices(ctx, ids, choices, counts)`: how many routes name each expert.
///   ids: [T,k] of a signed integer type, -1 = no expert, or only(valid, ids)
///   choices: how many leading choices of a token are counted; 1: first choices alone
///   counts: [experts] integers, overwritten, of a type that counts all routes. They add up over
///           ranks
/// `count_choices(ctx, offsets, ids, counts)`: the same of variable routes.
///   offsets: [T + 1] integers; the routes of token t are ids[offsets[t]] to before
///            ids[offsets[t + 1]]
///   ids: [routes], or only(valid, ids), where valid is [T] as above
/// The ids of tokens left out may be any numbers of 32 bits.
inline constexpr count_choices_fn count_choices{};

}  // namespace expar::inline v0
