// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/gpu/permute/detail/checks.cuh>
#include <expar/gpu/permute/detail/dots.cuh>

namespace expar::inline v0::gpu {

struct decode_fn {
  template <class Rows, class Out>
  void operator()(context const& ctx, route_plan const& plan, Rows const& rows, Out&& out) const {
    expar::detail::arguments a(ctx, "decode");
    auto const y = a.read("rows", rows, {detail::row_count_of(plan)});
    auto const x =
        a.written("out", out, {detail::tokens_of(plan), detail::same_width(y.extents[1])});
    detail::gather(ctx, "decode", plan, detail::read_only(y), detail::unit_weights{}, x);
  }
  template <class Rows, class Weights, class Out>
  void operator()(context const& ctx, route_plan const& plan, Rows const& rows,
                  Weights const& weights, Out&& out) const {
    expar::detail::arguments a(ctx, "decode");
    auto const y = a.read("rows", rows, {detail::row_count_of(plan)});
    auto const w = detail::read_weights(a, plan, weights);
    auto const x =
        a.written("out", out, {detail::tokens_of(plan), detail::same_width(y.extents[1])});
    detail::gather(ctx, "decode", plan, detail::read_only(y), w, x);
  }
  template <class Rows, class Weights, class Residual, class Out>
  void operator()(context const& ctx, route_plan const& plan, Rows const& rows,
                  Weights const& weights, Residual const& residual, Out&& out) const {
    expar::detail::arguments a(ctx, "decode");
    auto const y = a.read("rows", rows, {detail::row_count_of(plan)});
    auto const w = detail::read_weights(a, plan, weights);
    auto const columns = detail::same_width(y.extents[1]);
    auto const r = a.read("residual", residual, {detail::tokens_of(plan), columns});
    auto const x = a.written("out", out,
                             {detail::tokens_of(plan), columns, expar::detail::may_be("residual")});
    using R = expar::detail::element_of<decltype(r)>;
    using Out_element = expar::detail::element_of<decltype(x)>;
    expar::detail::check_residual_type<R, Out_element>();
    expar::detail::check_summed_alike<expar::detail::element_of<decltype(y)>, Out_element>();
    detail::gather(ctx, "decode", plan, detail::read_only(y), w, x,
                   detail::from_residual<R>{detail::read_only(r)});
  }
};
/// `decode(ctx, plan, rows, out)`, or `decode(ctx, plan, rows, weights, out)`, or `decode(ctx,
/// plan, rows, weights, residual, out)`: expar::decode() in one launch. out[t] = sum over kept
/// routes of weight * row, in choice order with one accumulator, every product and sum rounded and
/// the result rounded once more: the bytes of the host where its compiler contracts no product and
/// sum into one, but for the bits of a NaN. Zero for a token without a kept route. rows: [N,H], of
/// which rows that no route has are not read; weights: [T,k], or left out for ones; out: [T,H],
/// whose element type may differ. With `residual` [T,H], of the type of out, the accumulator begins
/// with residual[t]; residual may be out. Any H below 2^31, pitched rows; rows and out do not
/// overlap. Accesses have up to 16 bytes and 8 elements. All gathers of a token are in flight at
/// once for the top_k 1, 2, 4, 6, 8 and four at a time for others.
inline constexpr decode_fn decode{};

struct decode_backward_fn {
  template <class DOut, class DRows>
  void operator()(context const& ctx, route_plan const& plan, DOut const& d_out, DRows&& d_rows,
                  fill fillers = fill::zero) const {
    expar::detail::arguments a(ctx, "decode_backward");
    auto const d = a.read("d_out", d_out, {detail::tokens_of(plan)});
    auto const dr = detail::overwritten(
        a, "d_rows", d_rows, {detail::row_count_of(plan), detail::same_width(d.extents[1])});
    detail::check_same_elements<expar::detail::element_of<decltype(d)>,
                                expar::detail::element_of<decltype(dr)>>();
    detail::scatter<unsigned char>(ctx, "decode_backward", plan,
                                   detail::as_bytes(detail::read_only(d)), detail::unit_weights{},
                                   detail::as_bytes(dr), fillers);
  }
  template <class DOut, class Rows, class Weights, class DRows, class DWeights>
  void operator()(context const& ctx, route_plan const& plan, DOut const& d_out, Rows const& rows,
                  Weights const& weights, DRows&& d_rows, DWeights&& d_weights,
                  fill fillers = fill::zero) const {
    expar::detail::arguments a(ctx, "decode_backward");
    auto const d = a.read("d_out", d_out, {detail::tokens_of(plan)});
    auto const columns = detail::same_width(d.extents[1]);
    auto const y = a.read("rows", rows, {detail::row_count_of(plan), columns});
    auto const w = detail::read_weights(a, plan, weights);
    auto const dr = detail::overwritten(
        a, "d_rows", d_rows,
        {detail::as_many_as(y.extents[0]), columns, expar::detail::may_be("rows")});
    auto const dw = detail::overwritten(a, "d_weights", d_weights,
                                        {detail::tokens_of(plan), detail::choices_of(plan)});
    using T = expar::detail::element_of<decltype(d)>;
    detail::check_same_elements<T, expar::detail::element_of<decltype(y)>>();
    detail::check_same_elements<T, expar::detail::element_of<decltype(dr)>>();
    detail::dots<true>(ctx, "decode_backward", plan, detail::read_only(y), detail::read_only(d), w,
                       dr, dw, fillers);
  }
};
/// `decode_backward(ctx, plan, d_out, d_rows)`, or with weights `decode_backward(ctx, plan, d_out,
/// rows, weights, d_rows, d_weights)`, and fill::none behind: the adjoint of decode, as
/// expar::decode_backward() in one launch, but always overwriting. d_rows[row(t,j)] = weight *
/// d_out[t] (zero in rows of the layout that no route has) and d_weights[t,j] = <row(t,j),
/// d_out[t]> (zero where the route has no row). Without weights: d_rows alone. With fill::none rows
/// that no route has keep what they hold. d_out, rows and d_rows have one element type; d_rows may
/// be rows, and has as many rows. d_rows has the bytes of the host; a dot product is summed in an
/// order that depends on the row size, its alignment and the element type alone, with fused
/// multiplications and additions.
inline constexpr decode_backward_fn decode_backward{};

}  // namespace expar::inline v0::gpu
