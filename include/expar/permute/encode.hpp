// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/permute/detail/moves.hpp>
#include <expar/permute/weights.hpp>

namespace expar::inline v0 {

struct encode_fn {
  template <class Tokens, class Rows>
  void operator()(host_context const& ctx, route_plan const& plan, Tokens const& tokens,
                  Rows&& rows, fill fillers = fill::zero) const {
    detail::arguments a(ctx, "encode");
    auto const x = a.read("tokens", tokens, {detail::tokens_of(plan)});
    auto const y =
        a.written("rows", rows, {detail::row_count_of(plan), detail::same_width(x.extents[1])});
    detail::scatter(ctx, plan, x, detail::unit_weights{}, y, fillers);
  }
  template <class Tokens, class Weights, not_fill Rows>
  void operator()(host_context const& ctx, route_plan const& plan, Tokens const& tokens,
                  Weights const& weights, Rows&& rows, fill fillers = fill::zero) const {
    detail::arguments a(ctx, "encode");
    auto const x = a.read("tokens", tokens, {detail::tokens_of(plan)});
    auto const w = detail::read_weights(a, plan, weights);
    auto const y =
        a.written("rows", rows, {detail::row_count_of(plan), detail::same_width(x.extents[1])});
    detail::scatter(ctx, plan, x, w, y, fillers);
  }
  template <class Tokens, class Weights, class Rows, not_fill RowWeights>
  void operator()(host_context const& ctx, route_plan const& plan, Tokens const& tokens,
                  Weights const& weights, Rows&& rows, RowWeights&& row_weights,
                  fill fillers = fill::zero) const {
    detail::arguments a(ctx, "encode");
    auto const x = a.read("tokens", tokens, {detail::tokens_of(plan)});
    auto const w = detail::read_weights(a, plan, weights);
    auto const y =
        a.written("rows", rows, {detail::row_count_of(plan), detail::same_width(x.extents[1])});
    auto const carried = a.written_vector("row_weights", row_weights, {detail::row_count_of(plan)});
    detail::carry_weights(ctx, plan, w.at, carried, fillers);
    detail::scatter(ctx, plan, x, detail::unit_weights{}, y, fillers);
  }
};
/// `encode(ctx, plan, tokens, rows)`, or `encode(ctx, plan, tokens, weights, rows)`, or
/// `encode(ctx, plan, tokens, weights, rows, row_weights)`, and fill::none behind: token rows to
/// expert rows, on one rank.
///   tokens: [T,H]
///   weights: [T,k]; a row is weight * token, computed in the accumulator type and rounded once
///   rows: [plan.rows(), H] of the element type of tokens, written whole: rows that no route has
///         are zero, or with fill::none keep what they hold
///   row_weights: [plan.rows()]; then rows are copies, and this has the weight of each, as
///                encode_weights() gives it
/// Any H, pitched rows; what is written is apart from all else. Each token row is read once.
inline constexpr encode_fn encode{};

struct encode_backward_fn {
  template <class DRows, class DTokens>
  void operator()(host_context const& ctx, route_plan const& plan, DRows const& d_rows,
                  DTokens&& d_tokens) const {
    detail::arguments a(ctx, "encode_backward");
    auto const d = a.read("d_rows", d_rows, {detail::row_count_of(plan)});
    auto const dx = a.gradient("d_tokens", d_tokens,
                               {detail::tokens_of(plan), detail::same_width(d.extents[1])});
    detail::gather(ctx, plan, d, detail::unit_weights{}, dx, [](index_t, bool) {});
  }
  template <class DRows, class Tokens, class Weights, class DTokens, class DWeights>
  void operator()(host_context const& ctx, route_plan const& plan, DRows const& d_rows,
                  Tokens const& tokens, Weights const& weights, DTokens&& d_tokens,
                  DWeights&& d_weights) const {
    detail::arguments a(ctx, "encode_backward");
    auto const d = a.read("d_rows", d_rows, {detail::row_count_of(plan)});
    auto const columns = detail::same_width(d.extents[1]);
    auto const x = a.read("tokens", tokens, {detail::tokens_of(plan), columns});
    auto const w = detail::read_weights(a, plan, weights);
    auto const dx = a.gradient("d_tokens", d_tokens, {detail::tokens_of(plan), columns});
    auto const dw =
        a.gradient("d_weights", d_weights, {detail::tokens_of(plan), detail::choices_of(plan)});
    detail::gather(ctx, plan, d, w, dx, detail::dots(plan, d, x, dw));
  }
};
/// `encode_backward(ctx, plan, d_rows, d_tokens)`, or with weights `encode_backward(ctx, plan,
/// d_rows, tokens, weights, d_tokens, d_weights)`: the adjoint of encode().
///   d_tokens: [T,H]; the sum over kept routes of d_row (with weights, weight * d_row), in choice
///             order, rounded once
///   d_weights: [T,k]; <d_row, tokens[t]>, zero where the route has no row
/// Both are overwritten, or added to by add_to(). Rows that no route has are not read.
inline constexpr encode_backward_fn encode_backward{};

}  // namespace expar::inline v0
