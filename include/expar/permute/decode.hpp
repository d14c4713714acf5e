// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/permute/detail/moves.hpp>

namespace expar::inline v0 {

struct decode_fn {
  template <class Rows, class Out>
  void operator()(host_context const& ctx, route_plan const& plan, Rows const& rows,
                  Out&& out) const {
    detail::arguments a(ctx, "decode");
    auto const y = a.read("rows", rows, {detail::row_count_of(plan)});
    auto const o =
        a.written("out", out, {detail::tokens_of(plan), detail::same_width(y.extents[1])});
    detail::gather(ctx, plan, y, detail::unit_weights{}, o);
  }
  template <class Rows, class Weights, class Out>
  void operator()(host_context const& ctx, route_plan const& plan, Rows const& rows,
                  Weights const& weights, Out&& out) const {
    detail::arguments a(ctx, "decode");
    auto const y = a.read("rows", rows, {detail::row_count_of(plan)});
    auto const w = detail::read_weights(a, plan, weights);
    auto const o =
        a.written("out", out, {detail::tokens_of(plan), detail::same_width(y.extents[1])});
    detail::gather(ctx, plan, y, w, o);
  }
  template <class Rows, class Weights, class Residual, class Out>
  void operator()(host_context const& ctx, route_plan const& plan, Rows const& rows,
                  Weights const& weights, Residual const& residual, Out&& out) const {
    detail::arguments a(ctx, "decode");
    auto const y = a.read("rows", rows, {detail::row_count_of(plan)});
    auto const w = detail::read_weights(a, plan, weights);
    auto const columns = detail::same_width(y.extents[1]);
    auto const r = a.read("residual", residual, {detail::tokens_of(plan), columns});
    auto const o =
        a.written("out", out, {detail::tokens_of(plan), columns, detail::may_be("residual")});
    detail::check_residual_type<detail::element_of<decltype(r)>, detail::element_of<decltype(o)>>();
    detail::check_summed_alike<detail::element_of<decltype(y)>, detail::element_of<decltype(o)>>();
    detail::gather(ctx, plan, y, w, o, r);
  }
};
/// `decode(ctx, plan, rows, out)`, or `decode(ctx, plan, rows, weights, out)`, or `decode(ctx,
/// plan, rows, weights, residual, out)`: expert rows back to token rows, on one rank. out[t] is the
/// sum over kept routes of weight * row, in choice order with one accumulator, rounded once; zero
/// for a token without a kept route.
///   rows: [plan.rows(), H]; those that no route has are not read
///   weights: [T,k], or left out for ones
///   residual: [T,H] of the type of out, with which the accumulator begins; it may be out
///   out: [T,H], whose element type may differ; apart from all else
/// Any H, pitched rows.
inline constexpr decode_fn decode{};

struct decode_backward_fn {
  template <class DOut, class DRows>
  void operator()(host_context const& ctx, route_plan const& plan, DOut const& d_out,
                  DRows&& d_rows, fill fillers = fill::zero) const {
    detail::arguments a(ctx, "decode_backward");
    auto const d = a.read("d_out", d_out, {detail::tokens_of(plan)});
    auto const dy = a.gradient("d_rows", d_rows,
                               {detail::row_count_of(plan), detail::same_width(d.extents[1])});
    detail::scatter<dy.adds>(ctx, plan, d, detail::unit_weights{}, dy, fillers);
  }
  template <class DOut, class Rows, class Weights, class DRows, class DWeights>
  void operator()(host_context const& ctx, route_plan const& plan, DOut const& d_out,
                  Rows const& rows, Weights const& weights, DRows&& d_rows, DWeights&& d_weights,
                  fill fillers = fill::zero) const {
    detail::arguments a(ctx, "decode_backward");
    auto const d = a.read("d_out", d_out, {detail::tokens_of(plan)});
    auto const columns = detail::same_width(d.extents[1]);
    auto const y = a.read("rows", rows, {detail::row_count_of(plan), columns});
    auto const w = detail::read_weights(a, plan, weights);
    auto const dy = a.gradient("d_rows", d_rows, {detail::row_count_of(plan), columns});
    auto const dw =
        a.gradient("d_weights", d_weights, {detail::tokens_of(plan), detail::choices_of(plan)});
    detail::scatter_products(ctx, plan, d, y, w, dy, dw, fillers);
  }
};
/// `decode_backward(ctx, plan, d_out, d_rows)`, or with weights `decode_backward(ctx, plan, d_out,
/// rows, weights, d_rows, d_weights)`, and fill::none behind: the adjoint of decode(). d_out, rows
/// and d_rows have one element type.
///   d_rows: [plan.rows(), H]; weight * d_out[t], zero in rows that no route has, or with
///   fill::none
///           what they held
///   d_weights: [T,k]; <row(t,j), d_out[t]>, zero where the route has no row
/// Both are overwritten, or added to by add_to().
inline constexpr decode_backward_fn decode_backward{};

}  // namespace expar::inline v0
