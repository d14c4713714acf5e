// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/gpu/permute/detail/carry.cuh>
#include <expar/gpu/permute/detail/checks.cuh>

namespace expar::inline v0::gpu {

struct row_tokens_fn {
  template <class Tokens>
  void operator()(context const& ctx, route_plan const& plan, Tokens&& tokens) const {
    (*this)(ctx, plan, tokens, tensor_view<std::int32_t, 1>{});
  }
  template <class Tokens, class Choices>
  void operator()(context const& ctx, route_plan const& plan, Tokens&& tokens,
                  Choices&& choices) const {
    auto const t = expar::detail::as_output<1>(ctx, tokens);
    auto const c = expar::detail::as_output<1>(ctx, choices);
    static_assert(std::is_same_v<expar::detail::element_of<decltype(t)>, std::int32_t> &&
                      std::is_same_v<expar::detail::element_of<decltype(c)>, std::int32_t>,
                  "expar: tokens and choices of rows are std::int32_t");
    detail::check_numbers(plan, "row_tokens: tokens", t);
    if (c.data != nullptr || c.extents[0] != 0) {
      expar::detail::check_output("row_tokens: choices", c);
      expar::detail::check_extent("row_tokens: choices", c, 0, t.extents[0], "the number of rows");
    }
    detail::carry(ctx, "row_tokens", plan,
                  detail::carry_numbers{detail::number_rows(t), detail::number_rows(c)},
                  plan.experts() + 1, t.extents[0]);
  }
};
/// The token of every row, as expar::row_tokens() in one launch, for a GEMM that gathers rows by
/// itself: tokens[row(t,j)] = t, and -1 in rows that no route has, those behind the layout
/// included. With `choices`, choices[row(t,j)] = j, -1 likewise. Both: [N] int32, N as for
/// encode().
inline constexpr row_tokens_fn row_tokens{};

}  // namespace expar::inline v0::gpu
