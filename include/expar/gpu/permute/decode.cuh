// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/gpu/permute/detail/checks.cuh>
#include <expar/gpu/permute/detail/dots.cuh>
#include <expar/permute/detail/residual.hpp>

namespace expar::inline v0::gpu {

struct decode_fn {
  template <class Rows, class Out>
  void operator()(context const& ctx, route_plan const& plan, Rows const& rows, Out&& out) const {
    auto const y = expar::detail::as_view<2>(ctx, rows);
    auto const x = expar::detail::as_output<2>(ctx, out);
    detail::check_return(plan, "decode: rows", y, "decode: out", x);
    detail::gather(ctx, "decode", plan, detail::read_only(y), detail::unit_weights{}, x);
  }
  template <class Rows, class Weights, class Out>
  void operator()(context const& ctx, route_plan const& plan, Rows const& rows,
                  Weights const& weights, Out&& out) const {
    auto const y = expar::detail::as_view<2>(ctx, rows);
    auto const w = expar::detail::as_view<2>(ctx, weights);
    auto const x = expar::detail::as_output<2>(ctx, out);
    detail::check_return(plan, "decode: rows", y, "decode: out", x);
    detail::check_routes(plan, "decode: weights", w);
    detail::gather(ctx, "decode", plan, detail::read_only(y), detail::weights_of(w), x);
  }
  template <class Rows, class Weights, class Residual, class Out>
  void operator()(context const& ctx, route_plan const& plan, Rows const& rows,
                  Weights const& weights, Residual const& residual, Out&& out) const {
    auto const y = expar::detail::as_view<2>(ctx, rows);
    auto const w = expar::detail::as_view<2>(ctx, weights);
    auto const r = expar::detail::as_view<2>(ctx, residual);
    auto const x = expar::detail::as_output<2>(ctx, out);
    detail::check_return(plan, "decode: rows", y, "decode: out", x);
    detail::check_routes(plan, "decode: weights", w);
    using A = accumulator_t<expar::detail::element_of<decltype(y)>>;
    expar::detail::check_residual<A>("decode: residual", r, "decode: out", x);
    using R = expar::detail::element_of<decltype(r)>;
    detail::gather(ctx, "decode", plan, detail::read_only(y), detail::weights_of(w), x,
                   detail::from_residual<R>{detail::read_only(r)});
  }
};
/// Expert rows back to token rows: expar::decode() in one launch. out[t] = sum over kept routes of
/// weight * row, in choice order with one accumulator, every product and sum rounded and the result
/// rounded once more: the bytes of the host where its compiler contracts no product and sum into
/// one, but for the bits of a NaN. Zero for a token without a kept route. rows: [N,H], of which
/// rows that no route has are not read; weights: [T,k], or left out for ones; out: [T,H], whose
/// element type may differ. With `residual` [T,H], of the type of out, the accumulator begins with
/// residual[t]; residual may be out. Any H below 2^31, pitched rows; rows and out do not overlap.
/// Accesses have up to 16 bytes and 8 elements. All gathers of a token are in flight at once for
/// the top_k 1, 2, 4, 6, 8 and four at a time for others.
inline constexpr decode_fn decode{};

struct decode_backward_fn {
  template <class DOut, class DRows>
  void operator()(context const& ctx, route_plan const& plan, DOut const& d_out, DRows&& d_rows,
                  fill fillers = fill::zero) const {
    auto const d = expar::detail::as_view<2>(ctx, d_out);
    auto const dr = expar::detail::as_output<2>(ctx, d_rows);
    detail::check_move(plan, "decode_backward: d_out", d, "decode_backward: d_rows", dr);
    detail::scatter<unsigned char>(ctx, "decode_backward", plan,
                                   detail::as_bytes(detail::read_only(d)), detail::unit_weights{},
                                   detail::as_bytes(dr), fillers);
  }
  template <class DOut, class Rows, class Weights, class DRows, class DWeights>
  void operator()(context const& ctx, route_plan const& plan, DOut const& d_out, Rows const& rows,
                  Weights const& weights, DRows&& d_rows, DWeights&& d_weights,
                  fill fillers = fill::zero) const {
    auto const d = expar::detail::as_view<2>(ctx, d_out);
    auto const y = expar::detail::as_view<2>(ctx, rows);
    auto const w = expar::detail::as_view<2>(ctx, weights);
    auto const dr = expar::detail::as_output<2>(ctx, d_rows);
    auto const dw = expar::detail::as_output<2>(ctx, d_weights);
    detail::check_move(plan, "decode_backward: d_out", d, "decode_backward: d_rows", dr);
    detail::check_inner(plan, "decode_backward: rows", y, d);
    expar::detail::check_extent("decode_backward: d_rows", dr, 0, y.extents[0],
                                "the number of rows");
    detail::check_routes(plan, "decode_backward: weights", w);
    detail::check_routes(plan, "decode_backward: d_weights", dw);
    expar::detail::check_apart("decode_backward: d_weights", dw, "decode_backward: weights", w);
    detail::dots<true>(ctx, "decode_backward", plan, detail::read_only(y), detail::read_only(d),
                       detail::weights_of(w), dr, dw, fillers);
  }
};
/// The adjoint of decode, as expar::decode_backward() in one launch: d_rows[row(t,j)] = weight *
/// d_out[t] (zero in rows of the layout that no route has) and d_weights[t,j] = <row(t,j),
/// d_out[t]> (zero where the route has no row). Without weights: d_rows alone. With fill::none rows
/// that no route has keep what they hold. d_out, rows and d_rows have one element type; d_rows may
/// be rows, and has as many rows. d_rows has the bytes of the host; a dot product is summed in an
/// order that depends on the row size, its alignment and the element type alone, with fused
/// multiplications and additions.
inline constexpr decode_backward_fn decode_backward{};

}  // namespace expar::inline v0::gpu
