// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/permute/detail/moves.hpp>

namespace expar::inline v0 {

struct row_tokens_fn {
  template <class Tokens>
  void operator()(host_context const& ctx, route_plan const& plan, Tokens&& tokens) const {
    detail::arguments a(ctx, "row_tokens");
    auto const t = a.written_any_vector("tokens", tokens, {detail::row_count_of(plan)});
    write(plan, t, [](index_t token, int) { return token; });
  }
  template <class Tokens, class Choices>
  void operator()(host_context const& ctx, route_plan const& plan, Tokens&& tokens,
                  Choices&& choices) const {
    detail::arguments a(ctx, "row_tokens");
    auto const t = a.written_any_vector("tokens", tokens, {detail::row_count_of(plan)});
    auto const j = a.written_any_vector("choices", choices, {detail::row_count_of(plan)});
    write(plan, t, [](index_t token, int) { return token; });
    write(plan, j, [](index_t, int choice) { return choice; });
  }

 private:
  template <class T, class Number>
  static void write(route_plan const& plan, tensor_view<T, 1> const& rows, Number number) {
    static_assert(std::signed_integral<T> && sizeof(T) >= 4,
                  "expar: tokens and choices of rows are signed integers of at least 32 bits");
    for (index_t row = 0; row < plan.rows(); ++row) rows(row) = -1;
    plan_view const routes = plan.view();
    for (index_t t = 0; t < plan.tokens(); ++t)
      for (int j = 0; j < plan.top_k(); ++j)
        if (index_t const row = routes.row(t, j); row >= 0)
          rows(row) = static_cast<T>(number(t, j));
  }
};
/// `row_tokens(ctx, plan, tokens)`, or `row_tokens(ctx, plan, tokens, choices)`: the token of every
/// row, for experts that gather rows by themselves. tokens[row(t,j)] = t, and choices[row(t,j)] =
/// j; -1 in rows that no route has. Both: [plan.rows()] signed integers of at least 32 bits.
inline constexpr row_tokens_fn row_tokens{};

}  // namespace expar::inline v0
