// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/gpu/permute/detail/carry.cuh>
#include <expar/gpu/permute/detail/checks.cuh>

namespace expar::inline v0::gpu {

struct row_tokens_fn {
  template <class Tokens>
  void operator()(context const& ctx, route_plan const& plan, Tokens&& tokens) const {
    expar::detail::arguments a(ctx, "row_tokens");
    run(ctx, plan, a.written_any_vector("tokens", tokens, {detail::row_count_of(plan)}),
        tensor_view<std::int32_t, 1>{});
  }
  template <class Tokens, class Choices>
  void operator()(context const& ctx, route_plan const& plan, Tokens&& tokens,
                  Choices&& choices) const {
    expar::detail::arguments a(ctx, "row_tokens");
    auto const t = a.written_any_vector("tokens", tokens, {detail::row_count_of(plan)});
    run(ctx, plan, t, a.written_any_vector("choices", choices, {detail::as_many_as(t.extents[0])}));
  }

 private:
  template <class T, class J>
  static auto run(context const& ctx, route_plan const& plan, tensor_view<T, 1> const& t,
                  tensor_view<J, 1> const& j) {
    static_assert(std::is_same_v<T, std::int32_t> && std::is_same_v<J, std::int32_t>,
                  "expar: tokens and choices of rows are std::int32_t");
    detail::carry(ctx, "row_tokens", plan,
                  detail::carry_numbers{detail::number_rows(t), detail::number_rows(j)},
                  plan.experts() + 1, t.extents[0]);
  }
};
/// `row_tokens(ctx, plan, tokens)`, or `row_tokens(ctx, plan, tokens, choices)`: the token of every
/// row, as expar::row_tokens() in one launch, for a GEMM that gathers rows by itself.
/// tokens[row(t,j)] = t, and -1 in rows that no route has, those behind the layout included. With
/// `choices`, choices[row(t,j)] = j, -1 likewise. Both: [N] int32, N as for encode().
inline constexpr row_tokens_fn row_tokens{};

}  // namespace expar::inline v0::gpu
