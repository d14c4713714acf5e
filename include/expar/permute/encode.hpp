// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/permute/detail/moves.hpp>
#include <expar/permute/weights.hpp>

namespace expar::inline v0 {

struct encode_fn {
  template <class Tokens, class Rows>
  void operator()(host_context const& ctx, route_plan const& plan, Tokens const& tokens,
                  Rows&& rows, fill fillers = fill::zero) const {
    detail::scatter(ctx, plan, detail::named{"encode: tokens", detail::as_view<2>(ctx, tokens)},
                    detail::unit_weights{},
                    detail::named{"encode: rows", detail::as_output<2>(ctx, rows)}, fillers);
  }
  template <class Tokens, class Weights, not_fill Rows>
  void operator()(host_context const& ctx, route_plan const& plan, Tokens const& tokens,
                  Weights const& weights, Rows&& rows, fill fillers = fill::zero) const {
    detail::scatter(
        ctx, plan, detail::named{"encode: tokens", detail::as_view<2>(ctx, tokens)},
        detail::route_weights("encode: weights", plan, detail::as_view<2>(ctx, weights)),
        detail::named{"encode: rows", detail::as_output<2>(ctx, rows)}, fillers);
  }
  template <class Tokens, class Weights, class Rows, not_fill RowWeights>
  void operator()(host_context const& ctx, route_plan const& plan, Tokens const& tokens,
                  Weights const& weights, Rows&& rows, RowWeights&& row_weights,
                  fill fillers = fill::zero) const {
    detail::carry_weights(ctx, plan, "encode: weights", detail::as_view<2>(ctx, weights),
                          "encode: row_weights", detail::as_output<1>(ctx, row_weights), fillers);
    (*this)(ctx, plan, tokens, rows, fillers);
  }
};
/// Token rows to expert rows, on one rank. tokens: [T,H]; rows: [plan.rows(), H] of the same
/// element type, written whole: rows that no route has are zero, or with fill::none keep what they
/// hold. With `weights` [T,k] a row is weight * token, computed in the accumulator type and rounded
/// once. With `row_weights` [plan.rows()] too, rows are copies and row_weights has the weight of
/// each, as encode_weights() gives it.
/// Any H, pitched rows; tokens and rows do not overlap. Each token row is read once.
inline constexpr encode_fn encode{};

struct encode_backward_fn {
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
    detail::check_apart("encode_backward: d_weights", detail::as_output<2>(ctx, d_weights),
                        "encode_backward: weights", w.at);
    detail::dots(ctx, plan, detail::named{"encode_backward: d_rows", d},
                 detail::named{"encode_backward: tokens", detail::as_view<2>(ctx, tokens)},
                 detail::named{"encode_backward: d_weights", detail::as_output<2>(ctx, d_weights)});
    detail::gather(ctx, plan, detail::named{"encode_backward: d_rows", d}, w,
                   detail::named{"encode_backward: d_tokens", detail::as_output<2>(ctx, d_tokens)});
  }
};
/// The adjoint of encode. d_tokens[t] = sum over kept routes of d_row, in choice order, rounded
/// once. With weights: d_tokens[t] = sum of weight * d_row, and d_weights[t,j] = <d_row,
/// tokens[t]>, zero where the route has no row. Rows that no route has are not read.
inline constexpr encode_backward_fn encode_backward{};

}  // namespace expar::inline v0
