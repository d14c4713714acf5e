// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/gpu/permute/detail/checks.cuh>
#include <expar/gpu/permute/detail/dots.cuh>

namespace expar::inline v0::gpu {

struct encode_fn {
  template <class Tokens, class Rows>
  void operator()(context const& ctx, route_plan const& plan, Tokens const& tokens, Rows&& rows,
                  fill fillers = fill::zero) const {
    expar::detail::arguments a(ctx, "encode");
    auto const x = a.read("tokens", tokens, {detail::tokens_of(plan)});
    auto const y = written_rows(a, plan, x, rows);
    detail::scatter<unsigned char>(ctx, "encode", plan, detail::as_bytes(detail::read_only(x)),
                                   detail::unit_weights{}, detail::as_bytes(y), fillers);
  }
  template <class Tokens, class Weights, not_fill Rows>
  void operator()(context const& ctx, route_plan const& plan, Tokens const& tokens,
                  Weights const& weights, Rows&& rows, fill fillers = fill::zero) const {
    expar::detail::arguments a(ctx, "encode");
    auto const x = a.read("tokens", tokens, {detail::tokens_of(plan)});
    auto const w = detail::read_weights(a, plan, weights);
    auto const y = written_rows(a, plan, x, rows);
    detail::scatter(ctx, "encode", plan, detail::read_only(x), w, y, fillers);
  }
  template <class Tokens, class Weights, class Rows, not_fill RowWeights>
  void operator()(context const& ctx, route_plan const& plan, Tokens const& tokens,
                  Weights const& weights, Rows&& rows, RowWeights&& row_weights,
                  fill fillers = fill::zero) const {
    expar::detail::arguments a(ctx, "encode");
    auto const x = a.read("tokens", tokens, {detail::tokens_of(plan)});
    auto const w = detail::read_weights(a, plan, weights);
    auto const y = written_rows(a, plan, x, rows);
    auto const o = a.written_vector("row_weights", row_weights, {detail::as_many_as(y.extents[0])});
    detail::check_carried<expar::detail::element_of<decltype(w.matrix)>,
                          expar::detail::element_of<decltype(o)>>();
    detail::scatter<unsigned char>(ctx, "encode", plan, detail::as_bytes(detail::read_only(x)),
                                   detail::unit_weights{}, detail::as_bytes(y), fillers,
                                   detail::carry_weights{w.matrix, detail::number_rows(o)});
  }

 private:
  template <class X, class Rows>
  static auto written_rows(expar::detail::arguments<context>& a, route_plan const& plan, X const& x,
                           Rows& rows) {
    auto const y =
        a.written("rows", rows, {detail::row_count_of(plan), detail::same_width(x.extents[1])});
    detail::check_same_elements<expar::detail::element_of<X>,
                                expar::detail::element_of<decltype(y)>>();
    return y;
  }
};
/// `encode(ctx, plan, tokens, rows)`, or `encode(ctx, plan, tokens, weights, rows)`, or
/// `encode(ctx, plan, tokens, weights, rows, row_weights)`, and fill::none behind: expar::encode()
/// in one launch, source-major, so each token row is read once. tokens: [T,H]; rows: [N,H] of the
/// same element type. N is at least the number of rows in the layout (plan.max_rows() always is
/// enough; a route whose row would stand past N has none). Rows of the layout that no route has
/// become zero, or with fill::none keep what they hold; rows behind the layout are left alone. With
/// `weights` [T,k] a row is weight * token, computed in the accumulator type and rounded once: the
/// bytes of the host, but for the bits of a NaN. With `row_weights` [N] too, rows are copies and
/// row_weights has the weight of each, of the same type, in the same launch. Any H, pitched rows;
/// tokens and rows do not overlap. Accesses have 16 bytes where bases, pitches and row size are
/// multiples of that, else 8, 4, 2 or 1.
inline constexpr encode_fn encode{};

struct encode_backward_fn {
  template <class DRows, class DTokens>
  void operator()(context const& ctx, route_plan const& plan, DRows const& d_rows,
                  DTokens&& d_tokens) const {
    expar::detail::arguments a(ctx, "encode_backward");
    auto const d = a.read("d_rows", d_rows, {detail::row_count_of(plan)});
    auto const x = detail::overwritten(a, "d_tokens", d_tokens,
                                       {detail::tokens_of(plan), detail::same_width(d.extents[1])});
    detail::gather(ctx, "encode_backward", plan, detail::read_only(d), detail::unit_weights{}, x);
  }
  template <class DRows, class Tokens, class Weights, class DTokens, class DWeights>
  void operator()(context const& ctx, route_plan const& plan, DRows const& d_rows,
                  Tokens const& tokens, Weights const& weights, DTokens&& d_tokens,
                  DWeights&& d_weights) const {
    expar::detail::arguments a(ctx, "encode_backward");
    auto const d = a.read("d_rows", d_rows, {detail::row_count_of(plan)});
    auto const columns = detail::same_width(d.extents[1]);
    auto const x = a.read("tokens", tokens, {detail::tokens_of(plan), columns});
    auto const w = detail::read_weights(a, plan, weights);
    auto const dx =
        detail::overwritten(a, "d_tokens", d_tokens, {detail::tokens_of(plan), columns});
    auto const dw = detail::overwritten(a, "d_weights", d_weights,
                                        {detail::tokens_of(plan), detail::choices_of(plan)});
    using T = expar::detail::element_of<decltype(d)>;
    detail::check_same_elements<T, expar::detail::element_of<decltype(x)>>();
    tensor_view<T, 2> const unwritten{
        nullptr, {d.extents[0], d.extents[1]}, {d.strides[0], d.strides[1]}};
    detail::dots<false>(ctx, "encode_backward", plan, detail::read_only(d), detail::read_only(x), w,
                        unwritten, dw);
    detail::gather(ctx, "encode_backward", plan, detail::read_only(d), w, dx);
  }
};
/// `encode_backward(ctx, plan, d_rows, d_tokens)`, or with weights `encode_backward(ctx, plan,
/// d_rows, tokens, weights, d_tokens, d_weights)`: the adjoint of encode, as
/// expar::encode_backward(), but always overwriting. d_tokens[t] = sum over kept routes of d_row,
/// in choice order, rounded once: one launch. With weights: d_tokens[t] = sum of weight * d_row,
/// and d_weights[t,j] = <d_row, tokens[t]>: two launches.
inline constexpr encode_backward_fn encode_backward{};

}  // namespace expar::inline v0::gpu
