// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/permute/detail/moves.hpp>
#include <expar/permute/detail/residual.hpp>

namespace expar::inline v0 {

struct decode_fn {
  template <class Rows, class Out>
  void operator()(host_context const& ctx, route_plan const& plan, Rows const& rows,
                  Out&& out) const {
    detail::gather(ctx, plan, detail::named{"decode: rows", detail::as_view<2>(ctx, rows)},
                   detail::unit_weights{},
                   detail::named{"decode: out", detail::as_output<2>(ctx, out)});
  }
  template <class Rows, class Weights, class Out>
  void operator()(host_context const& ctx, route_plan const& plan, Rows const& rows,
                  Weights const& weights, Out&& out) const {
    detail::gather(ctx, plan, detail::named{"decode: rows", detail::as_view<2>(ctx, rows)},
                   detail::route_weights("decode: weights", plan, detail::as_view<2>(ctx, weights)),
                   detail::named{"decode: out", detail::as_output<2>(ctx, out)});
  }
  template <class Rows, class Weights, class Residual, class Out>
  void operator()(host_context const& ctx, route_plan const& plan, Rows const& rows,
                  Weights const& weights, Residual const& residual, Out&& out) const {
    auto const r = detail::as_view<2>(ctx, residual);
    auto const x = detail::as_output<2>(ctx, out);
    using A = accumulator_t<detail::element_of<decltype(detail::as_view<2>(ctx, rows))>>;
    detail::check_residual<A>("decode: residual", r, "decode: out", x);
    detail::gather(ctx, plan, detail::named{"decode: rows", detail::as_view<2>(ctx, rows)},
                   detail::route_weights("decode: weights", plan, detail::as_view<2>(ctx, weights)),
                   detail::named{"decode: out", x}, r.data, r.strides[0]);
  }
};
/// Expert rows back to token rows, on one rank: out[t] = sum over kept routes of weight * row, in
/// choice order with one accumulator, rounded once; zero for a token without a kept route. rows:
/// [plan.rows(), H], of which rows that no route has are not read; weights: [T,k], or left out for
/// ones; out: [T,H], whose element type may differ. With `residual` [T,H], of the type of out, the
/// accumulator begins with residual[t]; residual may be out. Any H, pitched rows; rows and out do
/// not overlap.
inline constexpr decode_fn decode{};

struct decode_backward_fn {
  template <class DOut, class DRows>
  void operator()(host_context const& ctx, route_plan const& plan, DOut const& d_out,
                  DRows&& d_rows, fill fillers = fill::zero) const {
    detail::scatter(
        ctx, plan, detail::named{"decode_backward: d_out", detail::as_view<2>(ctx, d_out)},
        detail::unit_weights{},
        detail::named{"decode_backward: d_rows", detail::as_output<2>(ctx, d_rows)}, fillers);
  }
  template <class DOut, class Rows, class Weights, class DRows, class DWeights>
  void operator()(host_context const& ctx, route_plan const& plan, DOut const& d_out,
                  Rows const& rows, Weights const& weights, DRows&& d_rows, DWeights&& d_weights,
                  fill fillers = fill::zero) const {
    auto const d = detail::as_view<2>(ctx, d_out);
    auto const w =
        detail::route_weights("decode_backward: weights", plan, detail::as_view<2>(ctx, weights));
    detail::check_apart("decode_backward: d_weights", detail::as_output<2>(ctx, d_weights),
                        "decode_backward: weights", w.at);
    detail::dots(ctx, plan, detail::named{"decode_backward: rows", detail::as_view<2>(ctx, rows)},
                 detail::named{"decode_backward: d_out", d},
                 detail::named{"decode_backward: d_weights", detail::as_output<2>(ctx, d_weights)});
    detail::scatter(ctx, plan, detail::named{"decode_backward: d_out", d}, w,
                    detail::named{"decode_backward: d_rows", detail::as_output<2>(ctx, d_rows)},
                    fillers);
  }
};
/// The adjoint of decode. d_rows[row(t,j)] = weight * d_out[t] (zero in rows that no route has),
/// and d_weights[t,j] = <row(t,j), d_out[t]>, zero where the route has no row. Without weights:
/// d_rows alone. With fill::none rows that no route has keep what they hold. d_out, rows and d_rows
/// have one element type.
inline constexpr decode_backward_fn decode_backward{};

}  // namespace expar::inline v0
