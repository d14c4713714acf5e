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
    expar::detail::arguments a(ctx, "encode_quantized");
    auto const x = a.read("tokens", tokens, {detail::tokens_of(plan)});
    index_t const n = x.extents[1];
    auto const y = a.written("rows", rows, {detail::row_count_of(plan), detail::same_width(n)});
    auto const s = a.written("scales", scales,
                             {detail::as_many_as(y.extents[0]), expar::detail::blocks_of(n)});
    expar::detail::check_quantized_types<expar::detail::element_of<decltype(y)>,
                                         expar::detail::element_of<decltype(s)>>();
    detail::quantize(ctx, "encode_quantized", plan, detail::read_only(x), y, s, fillers);
  }
};
/// `encode_quantized(ctx, plan, tokens, rows, scales)`, and fill::none behind: token rows to 8-bit
/// expert rows in one launch. The codes and scales of
/// expar::encode_quantized(). rows: [N,H] of float8_e4m3; scales: [N, ceil(H / 128)] float; N as
/// for encode(). Each token row is read once and quantized once. Accesses are wide where H is a
/// multiple of 8, bases and pitches of tokens are multiples of 16 bytes and those of rows of 8;
/// else they have one element.
inline constexpr encode_quantized_fn encode_quantized{};

struct decode_quantized_fn {
  template <class Rows, class Scales, class Out>
  void operator()(context const& ctx, route_plan const& plan, Rows const& rows,
                  Scales const& scales, Out&& out) const {
    run(ctx, plan, rows, scales, out, [](auto&) { return detail::unit_weights{}; });
  }
  template <class Rows, class Scales, class Weights, class Out>
  void operator()(context const& ctx, route_plan const& plan, Rows const& rows,
                  Scales const& scales, Weights const& weights, Out&& out) const {
    run(ctx, plan, rows, scales, out,
        [&](auto& a) { return detail::read_weights(a, plan, weights); });
  }

 private:
  template <class Rows, class Scales, class Out, class Weights>
  static void run(context const& ctx, route_plan const& plan, Rows const& rows,
                  Scales const& scales, Out&& out, Weights weights) {
    expar::detail::arguments a(ctx, "decode_quantized");
    auto const y = a.read("rows", rows, {detail::row_count_of(plan)});
    auto const s =
        a.read("scales", scales,
               {detail::as_many_as(y.extents[0]), expar::detail::blocks_of(y.extents[1])});
    expar::detail::check_quantized_types<expar::detail::element_of<decltype(y)>,
                                         expar::detail::element_of<decltype(s)>>();
    auto const w = weights(a);
    auto const o =
        a.written("out", out, {detail::tokens_of(plan), detail::same_width(y.extents[1])});
    detail::tensor_rows<float const> const scale_rows{detail::read_only(s)};
    detail::gather(ctx, "decode_quantized", plan, detail::read_only(y),
                   detail::block_weights{w, scale_rows}, o);
  }
};
/// `decode_quantized(ctx, plan, rows, scales, out)`, or `decode_quantized(ctx, plan, rows, scales,
/// weights, out)`: 8-bit expert rows back to token rows in one launch. The bytes of
/// expar::decode_quantized(). rows: [N,H] of float8_e4m3; scales: [N, ceil(H / 128)] float; the
/// rest as for decode().
inline constexpr decode_quantized_fn decode_quantized{};

}  // namespace expar::inline v0::gpu
