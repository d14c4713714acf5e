// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/gpu/permute/detail/checks.cuh>
#include <expar/gpu/permute/detail/dots.cuh>

namespace expar::inline v0::gpu {

struct encode_fn {
  template <class Tokens, class Rows>
  void operator()(context const& ctx, route_plan const& plan, Tokens const& tokens, Rows&& rows,
                  fill fillers = fill::zero) const {
    auto const x = expar::detail::as_view<2>(ctx, tokens);
    auto const y = expar::detail::as_output<2>(ctx, rows);
    detail::check_move(plan, "encode: tokens", x, "encode: rows", y);
    detail::scatter<unsigned char>(ctx, "encode", plan, detail::as_bytes(detail::read_only(x)),
                                   detail::unit_weights{}, detail::as_bytes(y), fillers);
  }
  template <class Tokens, class Weights, not_fill Rows>
  void operator()(context const& ctx, route_plan const& plan, Tokens const& tokens,
                  Weights const& weights, Rows&& rows, fill fillers = fill::zero) const {
    auto const x = expar::detail::as_view<2>(ctx, tokens);
    auto const w = expar::detail::as_view<2>(ctx, weights);
    auto const y = expar::detail::as_output<2>(ctx, rows);
    detail::check_move(plan, "encode: tokens", x, "encode: rows", y);
    detail::check_routes(plan, "encode: weights", w);
    detail::scatter(ctx, "encode", plan, detail::read_only(x), detail::weights_of(w), y, fillers);
  }
  template <class Tokens, class Weights, class Rows, not_fill RowWeights>
  void operator()(context const& ctx, route_plan const& plan, Tokens const& tokens,
                  Weights const& weights, Rows&& rows, RowWeights&& row_weights,
                  fill fillers = fill::zero) const {
    auto const x = expar::detail::as_view<2>(ctx, tokens);
    auto const w = expar::detail::as_view<2>(ctx, weights);
    auto const y = expar::detail::as_output<2>(ctx, rows);
    auto const o = expar::detail::as_output<1>(ctx, row_weights);
    static_assert(std::is_same_v<expar::detail::element_of<decltype(w)>,
                                 expar::detail::element_of<decltype(o)>>,
                  "expar: weights are copied to rows, so both have the same element type");
    detail::check_move(plan, "encode: tokens", x, "encode: rows", y);
    detail::check_routes(plan, "encode: weights", w);
    detail::check_numbers(plan, "encode: row_weights", o);
    expar::detail::check_extent("encode: row_weights", o, 0, y.extents[0], "the number of rows");
    detail::scatter<unsigned char>(
        ctx, "encode", plan, detail::as_bytes(detail::read_only(x)), detail::unit_weights{},
        detail::as_bytes(y), fillers,
        detail::carry_weights{detail::read_only(w), detail::number_rows(o)});
  }
};
/// Token rows to expert rows: expar::encode() in one launch, source-major, so each token row is
/// read once. tokens: [T,H]; rows: [N,H] of the same element type. N is at least the number of rows
/// in the layout (plan.max_rows() always is enough; a route whose row would stand past N has none).
/// Rows of the layout that no route has become zero, or with fill::none keep what they hold; rows
/// behind the layout are left alone. With `weights` [T,k] a row is weight * token, computed in the
/// accumulator type and rounded once: the bytes of the host, but for the bits of a NaN. With
/// `row_weights` [N] too, rows are copies and row_weights has the weight of each, of the same type,
/// in the same launch. Any H, pitched rows; tokens and rows do not overlap. Accesses have 16 bytes
/// where bases, pitches and row size are multiples of that, else 8, 4, 2 or 1.
inline constexpr encode_fn encode{};

struct encode_backward_fn {
  template <class DRows, class DTokens>
  void operator()(context const& ctx, route_plan const& plan, DRows const& d_rows,
                  DTokens&& d_tokens) const {
    auto const d = expar::detail::as_view<2>(ctx, d_rows);
    auto const x = expar::detail::as_output<2>(ctx, d_tokens);
    detail::check_return(plan, "encode_backward: d_rows", d, "encode_backward: d_tokens", x);
    detail::gather(ctx, "encode_backward", plan, detail::read_only(d), detail::unit_weights{}, x);
  }
  template <class DRows, class Tokens, class Weights, class DTokens, class DWeights>
  void operator()(context const& ctx, route_plan const& plan, DRows const& d_rows,
                  Tokens const& tokens, Weights const& weights, DTokens&& d_tokens,
                  DWeights&& d_weights) const {
    auto const d = expar::detail::as_view<2>(ctx, d_rows);
    auto const x = expar::detail::as_view<2>(ctx, tokens);
    auto const w = expar::detail::as_view<2>(ctx, weights);
    auto const dx = expar::detail::as_output<2>(ctx, d_tokens);
    auto const dw = expar::detail::as_output<2>(ctx, d_weights);
    using T = expar::detail::element_of<decltype(d)>;
    detail::check_return(plan, "encode_backward: d_rows", d, "encode_backward: d_tokens", dx);
    expar::detail::check_view("encode_backward: tokens", x);
    detail::check_tokens(plan, "encode_backward: tokens", x);
    detail::check_inner(plan, "encode_backward: d_rows", d, x);
    detail::check_routes(plan, "encode_backward: weights", w);
    detail::check_routes(plan, "encode_backward: d_weights", dw);
    expar::detail::check_apart("encode_backward: d_weights", dw, "encode_backward: weights", w);
    tensor_view<T, 2> const unwritten{
        nullptr, {d.extents[0], d.extents[1]}, {d.strides[0], d.strides[1]}};
    detail::dots<false>(ctx, "encode_backward", plan, detail::read_only(d), detail::read_only(x),
                        detail::weights_of(w), unwritten, dw);
    detail::gather(ctx, "encode_backward", plan, detail::read_only(d), detail::weights_of(w), dx);
  }
};
/// The adjoint of encode, as expar::encode_backward(): d_tokens[t] = sum over kept routes of d_row,
/// in choice order, rounded once: one launch. With weights: d_tokens[t] = sum of weight * d_row,
/// and d_weights[t,j] = <d_row, tokens[t]>: two launches.
inline constexpr encode_backward_fn encode_backward{};

}  // namespace expar::inline v0::gpu
