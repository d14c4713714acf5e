// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/permute/detail/moves.hpp>

namespace expar {
inline namespace v0 {

/// Token rows to expert rows, on one rank. tokens: [T,H]; rows: [plan.rows(), H] of the same
/// element type, written whole: rows that no route has are zero. With `weights` [T,k] a row is
/// weight * token, computed in the accumulator type and rounded once.
/// Any H, pitched rows; tokens and rows do not overlap. Each token row is read once.
inline constexpr struct encode_fn {
  template <class Tokens, class Rows>
  void operator()(host_context const& ctx, route_plan const& plan, Tokens const& tokens,
                  Rows&& rows) const {
    detail::scatter(ctx, plan, detail::named{"encode: tokens", detail::as_view<2>(ctx, tokens)},
                    detail::unit_weights{},
                    detail::named{"encode: rows", detail::as_output<2>(ctx, rows)});
  }
  template <class Tokens, class Weights, class Rows>
  void operator()(host_context const& ctx, route_plan const& plan, Tokens const& tokens,
                  Weights const& weights, Rows&& rows) const {
    detail::scatter(
        ctx, plan, detail::named{"encode: tokens", detail::as_view<2>(ctx, tokens)},
        detail::route_weights("encode: weights", plan, detail::as_view<2>(ctx, weights)),
        detail::named{"encode: rows", detail::as_output<2>(ctx, rows)});
  }
} encode{};

/// The adjoint of encode. d_tokens[t] = sum over kept routes of d_row, in choice order, rounded
/// once. With weights: d_tokens[t] = sum of weight * d_row, and d_weights[t,j] = <d_row,
/// tokens[t]>, zero where the route has no row. Rows that no route has are not read.
inline constexpr struct encode_backward_fn {
  template <class DRows, class DTokens>
  void operator()(host_context const& ctx, route_plan const& plan, DRows const& d_rows,
                  DTokens&& d_tokens) const {
    detail::gather(ctx, plan,
                   detail::named{"encode_backward: d_rows", detail::as_view<2>(ctx, d_rows)},
                   detail::unit_weights{},
                   detail::named{"encode_backward: d_tokens", detail::as_output<2>(ctx, d_tokens)});
  }
  template <class DRows, class Tokens, class Weights, class DTokens, class DWeights>
  void operator()(host_context const& ctx, route_plan const& plan, DRows const& d_rows,
                  Tokens const& tokens, Weights const& weights, DTokens&& d_tokens,
                  DWeights&& d_weights) const {
    auto const d = detail::as_view<2>(ctx, d_rows);
    auto const w =
        detail::route_weights("encode_backward: weights", plan, detail::as_view<2>(ctx, weights));
    detail::dots(ctx, plan, detail::named{"encode_backward: d_rows", d},
                 detail::named{"encode_backward: tokens", detail::as_view<2>(ctx, tokens)},
                 detail::named{"encode_backward: d_weights", detail::as_output<2>(ctx, d_weights)});
    detail::gather(ctx, plan, detail::named{"encode_backward: d_rows", d}, w,
                   detail::named{"encode_backward: d_tokens", detail::as_output<2>(ctx, d_tokens)});
  }
} encode_backward{};

}  // namespace v0
}  // namespace expar
