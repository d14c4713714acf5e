// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/permute/detail/rows.hpp>

namespace expar::inline v0 {

struct row_tokens_fn {
  template <class Tokens>
  void operator()(host_context const& ctx, route_plan const& plan, Tokens&& tokens) const {
    write(plan, detail::as_output<1>(ctx, tokens), "row_tokens: tokens",
          [](index_t t, int) { return t; });
  }
  template <class Tokens, class Choices>
  void operator()(host_context const& ctx, route_plan const& plan, Tokens&& tokens,
                  Choices&& choices) const {
    (*this)(ctx, plan, tokens);
    write(plan, detail::as_output<1>(ctx, choices), "row_tokens: choices",
          [](index_t, int j) { return j; });
  }

 private:
  template <class T, class Number>
  static void write(route_plan const& plan, tensor_view<T, 1> const& rows, char const* what,
                    Number number) {
    static_assert(std::is_same_v<T, std::int32_t>,
                  "expar: tokens and choices of rows are std::int32_t");
    detail::check_output(what, rows);
    detail::check_extent(what, rows, 0, plan.rows(), "the number of rows in the plan");
    for (index_t row = 0; row < plan.rows(); ++row) rows.data[row] = -1;
    plan_view const routes = plan.view();
    for (index_t t = 0; t < plan.tokens(); ++t)
      for (int j = 0; j < plan.top_k(); ++j)
        if (index_t const row = routes.row(t, j); row >= 0)
          rows.data[row] = static_cast<std::int32_t>(number(t, j));
  }
};
/// The token of every row, for experts that gather rows by themselves: tokens[row(t,j)] = t, and -1
/// in rows that no route has. With `choices`, choices[row(t,j)] = j, -1 likewise. Both:
/// [plan.rows()] int32.
inline constexpr row_tokens_fn row_tokens{};

}  // namespace expar::inline v0
