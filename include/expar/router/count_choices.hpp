// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <type_traits>

#include <expar/context.hpp>
#include <expar/detail/buffer.hpp>
#include <expar/router/token_loss.hpp>  // every_token, marks_of
#include <expar/tensor.hpp>

namespace expar {
inline namespace v0 {
namespace detail {

template <class T, int Rank>
void check_counts(char const* what, tensor_view<T, Rank> const& v) {
  static_assert(std::is_integral_v<T> && sizeof(T) >= 4,
                "expar: counts are integers of at least 32 bits");
  check_view(what, v);
}

/// Throws unless the first `choices` ids of each valid token are -1 or an expert.
template <class Id, class Valid>
void check_choices(char const* op, tensor_view<Id, 2> const& ids, index_t choices, index_t experts,
                   Valid valid) {
  static_assert(std::is_same_v<std::remove_cv_t<Id>, std::int32_t>,
                "expar: expert ids are std::int32_t");
  check_view(argument(op, "ids"), ids);
  expects(choices >= 1 && choices <= ids.extents[1], op, ": choices is ", choices,
          "; it is at least 1 and at most the ", ids.extents[1], " choices per token");
  for (index_t t = 0; t < ids.extents[0]; ++t)
    for (index_t j = 0; j < choices; ++j)
      expects(!valid(t) || (ids(t, j) >= -1 && ids(t, j) < experts), op, ": ids(", t, ", ", j,
              ") is ", ids(t, j), "; an expert id is -1 (no expert) or 0 to ", experts - 1);
}

}  // namespace detail

/// How many routes name each expert: `count_choices(ctx, ids, choices, counts)`, or
/// `count_choices(ctx, ids, choices, valid, counts)` to leave out tokens whose mark is 0.
///   ids: [T,k] std::int32_t, -1 = no expert
///   choices: how many leading choices of a token are counted; 1: first choices alone
///   valid: [T] of bool or std::uint8_t
///   counts: [experts] integers, overwritten. They add up over ranks
inline constexpr struct count_choices_fn {
  template <class Ids, class Counts>
  void operator()(host_context const& ctx, Ids const& ids, int choices, Counts&& counts) const {
    count(ctx, detail::as_view<2>(ctx, ids), choices, detail::every_token{},
          detail::as_output<1>(ctx, counts));
  }
  template <class Ids, class Valid, class Counts>
  void operator()(host_context const& ctx, Ids const& ids, int choices, Valid const& valid,
                  Counts&& counts) const {
    auto const i = detail::as_view<2>(ctx, ids);
    count(ctx, i, choices, detail::marks_of("count_choices: valid", ctx, valid, i.extents[0]),
          detail::as_output<1>(ctx, counts));
  }

 private:
  template <class Id, class Valid, class Count>
  static void count(host_context const& ctx, tensor_view<Id, 2> ids, int choices, Valid valid,
                    tensor_view<Count, 1> counts) {
    detail::check_counts("count_choices: counts", counts);
    index_t const tokens = ids.extents[0], experts = counts.extents[0];
    detail::check_choices("count_choices", ids, choices, experts, valid);
    index_t const grain = 16384 / choices + 1;
    int const parts = ctx.chunks(tokens, grain);
    detail::buffer<index_t> table(ctx.memory());
    table.assign(static_cast<std::size_t>(parts) * static_cast<std::size_t>(experts), 0);
    ctx.for_each_chunk(tokens, grain, [&](int part, index_t first, index_t last) {
      index_t* const mine = table.data() + part * experts;
      for (index_t t = first; t < last; ++t)
        for (index_t j = 0; j < choices; ++j)
          if (std::int32_t const id = ids.row(t)[j]; id >= 0 && valid(t)) ++mine[id];
    });
    for (index_t e = 0; e < experts; ++e) {
      index_t sum = 0;
      for (int part = 0; part < parts; ++part) sum += table[part * experts + e];
      counts.data[e] = static_cast<Count>(sum);
    }
  }
} count_choices{};

}  // namespace v0
}  // namespace expar
