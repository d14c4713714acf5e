// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/gpu/permute/detail/checks.cuh>
#include <expar/gpu/permute/detail/gather.cuh>
#include <expar/gpu/permute/detail/quantize.cuh>
#include <expar/permute/quantize.hpp>

namespace expar::inline v0::gpu {

struct encode_quantized_fn {
  template <class Tokens, class Rows, class Scales>
  void operator()(context const& ctx, route_plan const& plan, Tokens const& tokens, Rows&& rows,
                  Scales&& scales, fill fillers = fill::zero) const {
    auto const x = expar::detail::as_view<2>(ctx, tokens);
    auto const y = expar::detail::as_output<2>(ctx, rows);
    auto const s = expar::detail::as_output<2>(ctx, scales);
    expar::detail::check_view("encode_quantized: tokens", x);
    detail::check_tokens(plan, "encode_quantized: tokens", x);
    expar::detail::check_output("encode_quantized: rows", y);
    detail::check_rows(plan, "encode_quantized: rows", y);
    expar::detail::check_extent("encode_quantized: rows", y, 1, x.extents[1],
                                "the row size on the other side");
    expar::detail::check_output("encode_quantized: scales", s);
    expar::detail::check_quantized("encode_quantized: rows", y, "encode_quantized: scales", s);
    expar::detail::check_apart("encode_quantized: rows", y, "encode_quantized: tokens", x);
    expar::detail::check_apart("encode_quantized: scales", s, "encode_quantized: tokens", x);
    expar::detail::check_apart("encode_quantized: scales", s, "encode_quantized: rows", y);
    detail::quantize(ctx, "encode_quantized", plan, detail::read_only(x), y, s, fillers);
  }
};
/// Token rows to 8-bit expert rows in one launch: the codes and scales of
/// expar::encode_quantized(). rows: [N,H] of float8_e4m3; scales: [N, ceil(H / 128)] float; N as
/// for encode(). Each token row is read once and quantized once. Accesses are wide where H is a
/// multiple of 8, bases and pitches of tokens are multiples of 16 bytes and those of rows of 8;
/// else they have one element.
inline constexpr encode_quantized_fn encode_quantized{};

struct decode_quantized_fn {
  template <class Rows, class Scales, class Out>
  void operator()(context const& ctx, route_plan const& plan, Rows const& rows,
                  Scales const& scales, Out&& out) const {
    gather(ctx, plan, expar::detail::as_view<2>(ctx, rows), expar::detail::as_view<2>(ctx, scales),
           detail::unit_weights{}, expar::detail::as_output<2>(ctx, out));
  }
  template <class Rows, class Scales, class Weights, class Out>
  void operator()(context const& ctx, route_plan const& plan, Rows const& rows,
                  Scales const& scales, Weights const& weights, Out&& out) const {
    auto const w = expar::detail::as_view<2>(ctx, weights);
    detail::check_routes(plan, "decode_quantized: weights", w);
    gather(ctx, plan, expar::detail::as_view<2>(ctx, rows), expar::detail::as_view<2>(ctx, scales),
           detail::weights_of(w), expar::detail::as_output<2>(ctx, out));
  }

 private:
  template <class T, class S, class Weights, class Out>
  static void gather(context const& ctx, route_plan const& plan, tensor_view<T, 2> rows,
                     tensor_view<S, 2> scales, Weights weights, tensor_view<Out, 2> out) {
    expar::detail::check_quantized("decode_quantized: rows", rows, "decode_quantized: scales",
                                   scales);
    detail::check_return(plan, "decode_quantized: rows", rows, "decode_quantized: out", out);
    expar::detail::check_apart("decode_quantized: out", out, "decode_quantized: scales", scales);
    detail::tensor_rows<float const> const scale_rows{detail::read_only(scales)};
    detail::gather(ctx, "decode_quantized", plan, detail::read_only(rows),
                   detail::block_weights{weights, scale_rows}, out);
  }
};
/// 8-bit expert rows back to token rows in one launch: the bytes of expar::decode_quantized().
/// rows: [N,H] of float8_e4m3; scales: [N, ceil(H / 128)] float; the rest as for decode().
inline constexpr decode_quantized_fn decode_quantized{};

}  // namespace expar::inline v0::gpu
