// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/permute/detail/moves.hpp>
#include <expar/permute/detail/quantize.hpp>

namespace expar::inline v0 {
namespace detail {

/// The weight of a route times the scale of its row in each block of columns, rounded once.
template <class Weights>
struct block_weights {
  Weights weights;
  expert_rows<float const> scales;
};
template <class A, class Weights>
EXPAR_HD A weight_of(block_weights<Weights> const& w, plan_view const& plan, index_t t, int j,
                     index_t column) {
  static_assert(quantized_block % gather_block == 0);
  index_t const at = t * plan.top_k + j;
  float const* const scales = w.scales(plan.ids[at], plan.locations[at]);
  return weight_of<A>(w.weights, t, j) * scales[column / quantized_block];
}

/// [N,H] of E4M3 codes, and their scales: [N, ceil(H / 128)] float.
template <class T, class S>
void check_quantized(char const* rows_name, tensor_view<T, 2> const& rows, char const* scales_name,
                     tensor_view<S, 2> const& scales) {
  static_assert(std::is_same_v<std::remove_const_t<T>, float8_e4m3>,
                "expar: quantized rows are expar::float8_e4m3");
  static_assert(std::is_same_v<std::remove_const_t<S>, float>, "expar: scales are float");
  check_view(rows_name, rows);
  check_view(scales_name, scales);
  check_extent(scales_name, scales, 0, rows.extents[0], "the number of rows");
  check_extent(scales_name, scales, 1, quantized_blocks(rows.extents[1]),
               "the number of blocks of 128 columns in a row");
}

}  // namespace detail

struct encode_quantized_fn {
  template <class Tokens, class Rows, class Scales>
  void operator()(host_context const& ctx, route_plan const& plan, Tokens const& tokens,
                  Rows&& rows, Scales&& scales, fill fillers = fill::zero) const {
    auto const x = detail::as_view<2>(ctx, tokens);
    auto const y = detail::as_output<2>(ctx, rows);
    auto const s = detail::as_output<2>(ctx, scales);
    index_t const n = x.extents[1];
    detail::check_view("encode_quantized: tokens", x);
    detail::check_tokens("encode_quantized: tokens", plan, x);
    detail::check_output("encode_quantized: rows", y);
    detail::check_rows("encode_quantized: rows", plan, y);
    detail::check_extent("encode_quantized: rows", y, 1, n, "the row size on the other side");
    detail::check_output("encode_quantized: scales", s);
    detail::check_quantized("encode_quantized: rows", y, "encode_quantized: scales", s);
    detail::check_apart("encode_quantized: rows", y, "encode_quantized: tokens", x);
    detail::check_apart("encode_quantized: scales", s, "encode_quantized: tokens", x);
    detail::check_apart("encode_quantized: scales", s, "encode_quantized: rows", y);
    auto const codes_to = detail::rows_of(y, plan.offsets().data());
    auto const scales_to = detail::rows_of(s, plan.offsets().data());
    detail::for_each_token(ctx, plan, n, [&](index_t t) {
      for (index_t column = 0; column < n; column += detail::quantized_block)
        block(plan.view(), t, x.row(t), column, n, codes_to, scales_to);
    });
    if (fillers == fill::none) return;
    detail::zero_padding(plan, codes_to, n);
    for (int e = 0; e < plan.experts(); ++e)
      for (index_t row = plan.offsets()[static_cast<std::size_t>(e)] + plan.kept(e);
           row < plan.offsets()[static_cast<std::size_t>(e) + 1]; ++row)
        for (index_t b = 0; b < s.extents[1]; ++b) s.row(row)[b] = 1;
  }

 private:
  template <class T>
  static void block(plan_view const& plan, index_t t, T const* x, index_t column, index_t n,
                    detail::expert_rows<float8_e4m3> const& codes_to,
                    detail::expert_rows<float> const& scales_to) {
    index_t const left = n - column;
    int const width =
        left < detail::quantized_block ? static_cast<int>(left) : detail::quantized_block;
    float values[detail::quantized_block], most = 0;
    for (int c = 0; c < width; ++c) {
      values[c] = static_cast<float>(widen(x[column + c]));
      float const magnitude = values[c] < 0 ? -values[c] : values[c];
      most = magnitude > most ? magnitude : most;
    }
    float const scale = detail::block_scale(most), inverse = detail::divide(1, scale);
    float8_e4m3 codes[detail::quantized_block];
    for (int c = 0; c < width; ++c) codes[c] = narrow<float8_e4m3>(values[c] * inverse);
    for (int j = 0; j < plan.top_k; ++j) {
      index_t const at = t * plan.top_k + j;
      if (plan.locations[at] < 0) continue;
      detail::copy_row(codes, codes_to(plan.ids[at], plan.locations[at]) + column, width);
      scales_to(plan.ids[at], plan.locations[at])[column / detail::quantized_block] = scale;
    }
  }
};
/// encode() into 8-bit rows, quantized in blocks of 128 columns of a token (the last may be
/// shorter), as DeepSeek-V3 does (arXiv:2412.19437, section 3.3.2). rows: [plan.rows(), H] of
/// float8_e4m3; scales: [plan.rows(), ceil(H / 128)] float; an element is about code * scale. The
/// scale of a block is its largest magnitude / 448, at least 2^-126, and one if all is zero; a code
/// is element * (1 / scale) rounded to nearest. NaN stays NaN and does not count for the scale; a
/// block with an infinity comes back as NaN. Rows that no route has become zeros of scale one, or
/// with fill::none keep what they hold. Each token row is read and quantized once.
inline constexpr encode_quantized_fn encode_quantized{};

struct decode_quantized_fn {
  template <class Rows, class Scales, class Out>
  void operator()(host_context const& ctx, route_plan const& plan, Rows const& rows,
                  Scales const& scales, Out&& out) const {
    gather(ctx, plan, detail::as_view<2>(ctx, rows), detail::as_view<2>(ctx, scales),
           detail::unit_weights{}, detail::as_output<2>(ctx, out));
  }
  template <class Rows, class Scales, class Weights, class Out>
  void operator()(host_context const& ctx, route_plan const& plan, Rows const& rows,
                  Scales const& scales, Weights const& weights, Out&& out) const {
    gather(
        ctx, plan, detail::as_view<2>(ctx, rows), detail::as_view<2>(ctx, scales),
        detail::route_weights("decode_quantized: weights", plan, detail::as_view<2>(ctx, weights)),
        detail::as_output<2>(ctx, out));
  }

 private:
  template <class T, class S, class Weights, class Out>
  static void gather(host_context const& ctx, route_plan const& plan, tensor_view<T, 2> rows,
                     tensor_view<S, 2> scales, Weights weights, tensor_view<Out, 2> out) {
    detail::check_quantized("decode_quantized: rows", rows, "decode_quantized: scales", scales);
    detail::check_apart("decode_quantized: out", out, "decode_quantized: scales", scales);
    detail::block_weights<Weights> const by_block{
        weights, detail::rows_of<float const>(scales, plan.offsets().data())};
    detail::gather(ctx, plan, detail::named{"decode_quantized: rows", rows}, by_block,
                   detail::named{"decode_quantized: out", out});
  }
};
/// decode() from 8-bit rows: out[t] = sum over kept routes of (weight * scale) * code, where the
/// product of weight and scale is rounded once per block of 128 columns. rows: [plan.rows(), H] of
/// float8_e4m3; scales: [plan.rows(), ceil(H / 128)] float; the rest as for decode().
inline constexpr decode_quantized_fn decode_quantized{};

}  // namespace expar::inline v0
