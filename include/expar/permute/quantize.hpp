// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/permute/detail/moves.hpp>
#include <expar/permute/detail/quantize.hpp>

EXPAR_IEEE_BEGIN
namespace expar::inline v0 {
namespace detail {

/// The weight of a route times the scale of its row in each block of columns, rounded once.
template <class Weights>
struct block_weights {
  static constexpr index_t columns = quantized_block;
  Weights weights;
  expert_rows<float const> scales;
};
template <class A, class Weights>
A weight_of(block_weights<Weights> const& w, plan_view const& plan, index_t t, int j,
            index_t column) {
  static_assert(quantized_block % sum_block == 0);
  index_t const at = t * plan.top_k + j;
  float const* const scales = w.scales(plan.ids[at], plan.locations[at]);
  return weight_of<A>(w.weights, t, j) * scales[column / quantized_block];
}

/// [N,H] of E4M3 codes have scales [N, ceil(H / 128)] of float.
template <class T, class S>
constexpr auto check_quantized_types() {
  static_assert(std::is_same_v<std::remove_const_t<T>, float8_e4m3>,
                "expar: quantized rows are expar::float8_e4m3");
  static_assert(std::is_same_v<std::remove_const_t<S>, float>, "expar: scales are float");
}
inline rule blocks_of(index_t columns) {
  return {quantized_blocks(columns), "the number of blocks of 128 columns in a row"};
}

}  // namespace detail

struct encode_quantized_fn {
  template <class Tokens, class Rows, class Scales>
  void operator()(host_context const& ctx, route_plan const& plan, Tokens const& tokens,
                  Rows&& rows, Scales&& scales, fill fillers = fill::zero) const {
    detail::arguments a(ctx, "encode_quantized");
    auto const x = a.read("tokens", tokens, {detail::tokens_of(plan)});
    index_t const n = x.extents[1];
    auto const y = a.written("rows", rows, {detail::row_count_of(plan), detail::same_width(n)});
    auto const s = a.written("scales", scales, {detail::row_count_of(plan), detail::blocks_of(n)});
    detail::check_quantized_types<detail::element_of<decltype(y)>,
                                  detail::element_of<decltype(s)>>();
    auto const codes_to = detail::rows_of(y, plan.offsets().data());
    auto const scales_to = detail::rows_of(s, plan.offsets().data());
    detail::for_each_token(ctx, plan.view(), n, [&](index_t t) {
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
    float8_e4m3 codes[detail::quantized_block];
    float const scale = detail::quantize_block(x + column, width, codes);
    for (int j = 0; j < plan.top_k; ++j) {
      index_t const at = t * plan.top_k + j;
      if (plan.locations[at] < 0) continue;
      detail::copy_row(codes, codes_to(plan.ids[at], plan.locations[at]) + column, width);
      scales_to(plan.ids[at], plan.locations[at])[column / detail::quantized_block] = scale;
    }
  }
};
/// `encode_quantized(ctx, plan, tokens, rows, scales)`, and fill::none behind: encode() into 8-bit
/// rows, quantized in blocks of 128 columns of a token (the last may be
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
    run(ctx, plan, rows, scales, out, [](auto&) { return detail::unit_weights{}; });
  }
  template <class Rows, class Scales, class Weights, class Out>
  void operator()(host_context const& ctx, route_plan const& plan, Rows const& rows,
                  Scales const& scales, Weights const& weights, Out&& out) const {
    run(ctx, plan, rows, scales, out,
        [&](auto& a) { return detail::read_weights(a, plan, weights); });
  }

 private:
  template <class Rows, class Scales, class Out, class Weights>
  static void run(host_context const& ctx, route_plan const& plan, Rows const& rows,
                  Scales const& scales, Out&& out, Weights weights) {
    detail::arguments a(ctx, "decode_quantized");
    auto const y = a.read("rows", rows, {detail::row_count_of(plan)});
    auto const s =
        a.read("scales", scales, {detail::row_count_of(plan), detail::blocks_of(y.extents[1])});
    detail::check_quantized_types<detail::element_of<decltype(y)>,
                                  detail::element_of<decltype(s)>>();
    auto const w = weights(a);
    auto const o =
        a.written("out", out, {detail::tokens_of(plan), detail::same_width(y.extents[1])});
    detail::block_weights<std::remove_const_t<decltype(w)>> const by_block{
        w, detail::rows_of<float const>(s, plan.offsets().data())};
    detail::gather(ctx, plan, y, by_block, o);
  }
};
/// `decode_quantized(ctx, plan, rows, scales, out)`, or `decode_quantized(ctx, plan, rows, scales,
/// weights, out)`: decode() from 8-bit rows. out[t] = sum over kept routes of (weight * scale) *
/// code, where the product of weight and scale is rounded once per block of 128 columns. rows:
/// [plan.rows(), H] of float8_e4m3; scales: [plan.rows(), ceil(H / 128)] float; the rest as for
/// decode().
inline constexpr decode_quantized_fn decode_quantized{};

}  // namespace expar::inline v0
EXPAR_IEEE_END
