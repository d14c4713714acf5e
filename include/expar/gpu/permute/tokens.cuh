// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/gpu/permute/detail/carry.cuh>
#include <expar/gpu/permute/detail/checks.cuh>

namespace expar::inline v0::gpu {

struct row_tokens_fn {
  template <class Tokens>
  void operator()(context const& ctx, route_plan const& plan, Tokens&& tokens) const {
    (*this)(ctx, plan, tokens, none{});
  }
  template <class Tokens, class Choices>
  void operator()(context const& ctx, route_plan const& plan, Tokens&& tokens,
                  Choices&& choices) const {
    expar::detail::arguments a(ctx, "row_tokens");
    auto const t = a.written_any_vector("tokens", tokens, {detail::row_count_of(plan)});
    auto const c = a.written_any_vector(
        "choices", choices,
        {is_none(choices) ? expar::detail::any_extent : detail::as_many_as(t.extents[0])});
    static_assert(std::is_same_v<expar::detail::element_of<decltype(t)>, std::int32_t> &&
                      std::is_same_v<expar::detail::element_of<decltype(c)>, std::int32_t>,
                  "expar: tokens and choices of rows are std::int32_t");
    detail::carry(ctx, "row_tokens", plan,
                  detail::carry_numbers{detail::number_rows(t), detail::number_rows(c)},
                  plan.experts() + 1, t.extents[0]);
  }

 private:
  using none = tensor_view<std::int32_t, 1>;
  template <class Choices>
  static bool is_none(Choices const& choices) {
    if constexpr (std::is_same_v<Choices, none>)
      return choices.data == nullptr && choices.extents[0] == 0;
    else
      return false;
  }
};
/// `row_tokens(ctx, plan, tokens)`, or `row_tokens(ctx, plan, tokens, choices)`: the token of every
/// row, as expar::row_tokens() in one launch, for a GEMM that gathers rows by itself.
/// tokens[row(t,j)] = t, and -1 in rows that no route has, those behind the layout included. With
/// `choices`, choices[row(t,j)] = j, -1 likewise. Both: [N] int32, N as for encode().
inline constexpr row_tokens_fn row_tokens{};

}  // namespace expar::inline v0::gpu
