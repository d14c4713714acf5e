// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <type_traits>

#include <expar/context.hpp>
#include <expar/detail/buffer.hpp>
#include <expar/detail/sizes.hpp>
#include <expar/router/token_loss.hpp>  // every_token, marks_of
#include <expar/tensor.hpp>

namespace expar::inline v0 {
namespace detail {

template <class T, int Rank>
void check_counts(char const* what, tensor_view<T, Rank> const& v) {
  static_assert(std::is_integral_v<T> && sizeof(T) >= 4,
                "expar: counts are integers of at least 32 bits");
  check_view(what, v);
}

template <class View>
View as_counts(View const& v) {
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

/// Throws unless a Count holds the largest of counts, which is at most `most`.
template <class Count>
void check_countable(char const* op, index_t most) {
  expects(static_cast<index_t>(static_cast<Count>(most)) == most, op, ": a count may become ", most,
          ", more than an integer of ", sizeof(Count), " bytes holds");
}

/// Throws unless the first `choices` ids of each valid token are -1 or an expert, and a Count
/// counts them all.
template <class Count, class Id, class Valid>
void check_leading_ids(char const* op, tensor_view<Id, 2> const& ids, index_t choices,
                       index_t experts, Valid valid) {
  static_assert(std::is_same_v<std::remove_cv_t<Id>, std::int32_t>,
                "expar: expert ids are std::int32_t");
  check_view(argument(op, "ids"), ids);
  expects(choices >= 1 && choices <= ids.extents[1], op, ": choices is ", choices,
          "; it is at least 1 and at most the ", ids.extents[1], " choices per token");
  check_countable<Count>(op, size_product(ids.extents[0], choices));
  for (index_t t = 0; t < ids.extents[0]; ++t)
    for (index_t j = 0; j < choices; ++j)
      expects(!valid(t) || (ids(t, j) >= -1 && ids(t, j) < experts), op, ": ids(", t, ", ", j,
              ") is ", ids(t, j), "; an expert id is -1 (no expert) or 0 to ", experts - 1);
}

/// Throws unless the offsets [n + 1] of n `things` ascend from 0 to `end`, the number of `entries`.
template <class I>
void check_offsets(char const* op, tensor_view<I, 1> const& offsets, char const* things,
                   index_t end, char const* entries) {
  static_assert(std::is_integral_v<I> && sizeof(I) >= 4,
                "expar: offsets are integers of at least 32 bits");
  index_t const n = offsets.extents[0];
  check_view(argument(op, "offsets"), offsets);
  expects(n >= 1, op, ": offsets has ", n, " entries; there is one more than ", things);
  index_t low = 0;
  for (index_t b = 0; b < n; ++b) {
    auto const at = static_cast<index_t>(offsets.data[b]);
    bool const fits = (b == 0 ? at == 0 : at >= low) && (b + 1 < n || at == end);
    expects(fits, op, ": offsets(", b, ") is ", at, "; offsets ascend from 0 to the number of ",
            entries, ", ", end);
    low = at;
  }
}

/// Throws unless all ids of each valid token, from its offset to the next, are -1 or an expert.
template <class I, class Id, class Valid>
void check_variable_ids(char const* op, tensor_view<I, 1> const& offsets,
                        tensor_view<Id, 1> const& ids, index_t experts, Valid valid) {
  static_assert(std::is_same_v<std::remove_cv_t<Id>, std::int32_t>,
                "expar: expert ids are std::int32_t");
  check_view(argument(op, "ids"), ids);
  for (index_t t = 0; t + 1 < offsets.extents[0]; ++t)
    for (auto r = static_cast<index_t>(offsets.data[t]);
         valid(t) && r < static_cast<index_t>(offsets.data[t + 1]); ++r)
      expects(ids.data[r] >= -1 && ids.data[r] < experts, op, ": ids(", r, ") is ", ids.data[r],
              "; an expert id is -1 (no expert) or 0 to ", experts - 1);
}

}  // namespace detail

struct count_choices_fn {
  template <class Ids, class Counts>
  void operator()(host_context const& ctx, Ids const& ids, int choices, Counts&& counts) const {
    (*this)(ctx, ids, choices, detail::every_token{}, counts);
  }
  template <class Ids, class Valid, class Counts>
  void operator()(host_context const& ctx, Ids const& ids, int choices, Valid const& valid,
                  Counts&& counts) const {
    auto const i = detail::as_view<2>(ctx, ids);
    auto const n = detail::as_output<1>(ctx, counts);
    index_t const tokens = i.extents[0];
    auto const marks = detail::marks_of("count_choices: valid", ctx, valid, tokens);
    detail::check_counts("count_choices: counts", n);
    using Count = detail::element_of<decltype(n)>;
    detail::check_leading_ids<Count>("count_choices", i, choices, n.extents[0], marks);
    count(ctx, tokens, 16384 / choices + 1, n, [&](index_t t, index_t* mine) {
      for (index_t j = 0; marks(t) && j < choices; ++j)
        if (std::int32_t const id = i.row(t)[j]; id >= 0) ++mine[id];
    });
  }

  template <class Offsets, class Ids, class Counts>
  requires(!std::is_arithmetic_v<Ids>) void operator()(host_context const& ctx,
                                                       Offsets const& offsets, Ids const& ids,
                                                       Counts&& counts) const {
    (*this)(ctx, offsets, ids, detail::every_token{}, counts);
  }
  template <class Offsets, class Ids, class Valid, class Counts>
  requires(!std::is_arithmetic_v<Ids>) void operator()(host_context const& ctx,
                                                       Offsets const& offsets, Ids const& ids,
                                                       Valid const& valid, Counts&& counts) const {
    auto const at = detail::as_view<1>(ctx, offsets);
    auto const i = detail::as_view<1>(ctx, ids);
    auto const n = detail::as_output<1>(ctx, counts);
    index_t const routes = i.extents[0], tokens = at.extents[0] - 1;
    detail::check_offsets("count_choices", at, "tokens", routes, "routes");
    auto const marks = detail::marks_of("count_choices: valid", ctx, valid, tokens);
    detail::check_counts("count_choices: counts", n);
    detail::check_countable<detail::element_of<decltype(n)>>("count_choices", routes);
    detail::check_variable_ids("count_choices", at, i, n.extents[0], marks);
    index_t const grain = tokens > 0 ? 16384 / (routes / tokens + 1) + 1 : 1;
    count(ctx, tokens, grain, n, [&](index_t t, index_t* mine) {
      auto const behind = static_cast<index_t>(at.data[t + 1]);
      for (auto r = static_cast<index_t>(at.data[t]); marks(t) && r < behind; ++r)
        if (std::int32_t const id = i.data[r]; id >= 0) ++mine[id];
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
      counts.data[e] = static_cast<Count>(sum);
    }
  }
};
/// How many routes name each expert:
///   count_choices(ctx, ids, choices, [valid,] counts)
///     ids: [T,k] std::int32_t, -1 = no expert
///     choices: how many leading choices of a token are counted; 1: first choices alone
///   count_choices(ctx, offsets, ids, [valid,] counts), of variable routes
///     offsets: [T + 1] integers; the routes of token t are ids[offsets[t]] to before
///              ids[offsets[t + 1]]
///     ids: [routes] std::int32_t, -1 = no expert
/// and of both:
///   valid: [T] of bool or std::uint8_t; tokens whose mark is 0 are left out, whatever their ids
///          are
///   counts: [experts] integers, overwritten, of a type that counts all routes. They add up over
///           ranks
inline constexpr count_choices_fn count_choices{};

}  // namespace expar::inline v0
