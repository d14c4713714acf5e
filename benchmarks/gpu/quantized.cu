// SPDX-License-Identifier: Apache-2.0
#include "suite.hpp"

#include <cuda_fp8.h>

#include <expar/gpu/permute/quantize.cuh>

#include "reference.cuh"

namespace bench {
namespace {

using e4m3 = expar::float8_e4m3;
constexpr int block_columns = 128;

/// Token rows to codes with a scale for every 128 columns: a half of a warp to each of them.
/// DeepSeek's per_token_cast_to_fp8, vLLM per_token_group_quant.
__global__ void __launch_bounds__(256)
    quantize_rows(uint4 const* x, std::int64_t blocks, uint2* codes, float* scales) {
  auto const i = (std::int64_t{blockIdx.x} * 256 + threadIdx.x) / 16;
  int const lane = static_cast<int>(threadIdx.x) % 16;
  float v[8], most = 0;
  uint4 const bits = i < blocks ? __ldcs(&x[i * 16 + lane]) : uint4{};
  unsigned const words[] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
  for (int c = 0; c < 8; ++c) {
    v[c] = __uint_as_float(c % 2 == 0 ? words[c / 2] << 16 : words[c / 2] & 0xffff0000u);
    most = fmaxf(most, fabsf(v[c]));
  }
#pragma unroll
  for (int d = 8; d > 0; d /= 2) most = fmaxf(most, __shfl_xor_sync(~0u, most, d));
  if (i >= blocks) return;
  float const scale = most / 448, inverse = 1 / scale;
  unsigned to[2] = {};
#pragma unroll
  for (int c = 0; c < 8; ++c) {
    auto const code = __nv_cvt_float_to_fp8(v[c] * inverse, __NV_SATFINITE, __NV_E4M3);
    to[c / 4] |= static_cast<unsigned>(code) << (8 * (c % 4));
  }
  codes[i * 16 + lane] = {to[0], to[1]};
  if (lane == 0) scales[i] = scale;
}
/// Then a block to each expert row, as destination_major_encode.
__global__ void __launch_bounds__(256)
    gather_codes(uint4 const* codes, float const* scales, std::int32_t const* route_of, int rows,
                 int k, int hidden, uint4* to, float* to_scales) {
  for (std::int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    std::int64_t const t = route_of[row] / k;
    for (int v = static_cast<int>(threadIdx.x); v < hidden / 16; v += 256)
      __stcs(&to[row * (hidden / 16) + v], codes[t * (hidden / 16) + v]);
    for (int b = static_cast<int>(threadIdx.x); b < hidden / block_columns; b += 256)
      to_scales[row * (hidden / block_columns) + b] = scales[t * (hidden / block_columns) + b];
  }
}

struct buffers {
  array<bf16> x;
  array<e4m3> rows, codes;         // [N,H], and of the peer [T,H]
  array<float> scales, of_tokens;  // a column for 128
  array<float> weights;
  array<std::int32_t> ids, route_of;
  expar::gpu::route_plan plan;
};

}  // namespace

void measure_quantized(suite& s, problem const& p) {
  if (!s.wants("encode_fp8", p) && !s.wants("decode_fp8", p)) return;
  std::int64_t const h = p.hidden, blocks = (h + block_columns - 1) / block_columns;
  double const code_bytes = static_cast<double>(p.rows * (h + 4 * blocks));
  double const read = static_cast<double>(p.tokens_with_row * p.row_bytes());
  double const set_bytes = static_cast<double>(p.tokens * (p.row_bytes() + h)) + code_bytes;
  for (int const sets : s.sets_for(set_bytes)) {
    if (!s.fits("fp8/" + p.name, set_bytes * sets)) return;
    std::vector<buffers> all_sets;
    for (int i = 0; i < sets; ++i) {
      auto const seed = static_cast<std::uint64_t>(2 * i);
      all_sets.push_back({random_rows(s.stream(), p.tokens * h, seed), array<e4m3>(p.rows * h),
                          array<e4m3>(p.tokens * h), array<float>(p.rows * blocks),
                          array<float>(p.tokens * blocks),
                          random_weights(s.stream(), p.routes(), seed + 1), array(p.ids),
                          array(p.route_of), expar::gpu::route_plan(s.context())});
      auto& b = all_sets.back();
      expar::gpu::make_plan(s.context(),
                            expar::make_view(b.ids.data(), p.tokens, expar::index_t{p.top_k}),
                            p.experts, expar::ragged{}, b.plan);
    }
    auto const at = [&](int set) -> buffers& { return all_sets[static_cast<std::size_t>(set)]; };
    reference truth(s.stream(), p, p.row_of);
    array<std::int32_t> const row_of(p.row_of);
    // A code is off by half of its last of four digits, or below 2^-6 by half of 2^-9.
    auto const wrong_codes = [&](int set) {
      auto const& b = at(set);
      int const k = p.top_k;
      return truth.count("codes", p.routes() * h,
                         [=, rows = row_of.data(), x = b.x.data(), codes = b.rows.data(),
                          scales = b.scales.data()] __device__(std::int64_t i) {
                           std::int64_t const row = rows[i / h], c = i % h;
                           if (row < 0) return false;
                           double const v = expar::widen(x[i / h / k * h + c]);
                           double const scale = scales[row * blocks + c / block_columns];
                           double const got = scale * expar::widen(codes[row * h + c]);
                           return !(fabs(got - v) <= fabs(v) * 0x1.01p-4 + scale * 0x1.01p-10);
                         });
    };
    auto const encode = [&](int set) {
      auto& b = at(set);
      expar::gpu::encode_quantized(s.context(), b.plan, expar::make_view(b.x.data(), p.tokens, h),
                                   expar::make_view(b.rows.data(), p.rows, h),
                                   expar::make_view(b.scales.data(), p.rows, blocks));
    };
    if (s.wants("encode_fp8", p)) {
      std::vector<variant> all;
      all.push_back(
          {variant::kind::expar, "expar", "", encode, wrong_codes, {at(0).rows, at(0).scales}});
      if (h % block_columns == 0 && p.rows > 0)
        all.push_back(
            {variant::kind::peer,
             "quantize, then gather",
             "two kernels, the second destination-major: DeepSeek, vLLM, SGLang",
             [&](int set) {
               auto const& b = at(set);
               quantize_rows<<<blocks_for(p.tokens * blocks * 16, 256), 256, 0, s.stream()>>>(
                   reinterpret_cast<uint4 const*>(b.x.data()), p.tokens * blocks,
                   reinterpret_cast<uint2*>(b.codes.data()), b.of_tokens.data());
               gather_codes<<<blocks_for(std::min<std::int64_t>(p.rows, 65536), 1), 256, 0,
                              s.stream()>>>(
                   reinterpret_cast<uint4 const*>(b.codes.data()), b.of_tokens.data(),
                   b.route_of.data(), static_cast<int>(p.rows), p.top_k, p.hidden,
                   reinterpret_cast<uint4*>(b.rows.data()), b.scales.data());
             },
             wrong_codes,
             {at(0).rows, at(0).scales}});
      s.measure({"encode_fp8", p, read + code_bytes + 8. * static_cast<double>(p.routes()),
                 set_bytes, sets, std::move(all)});
    }
    if (s.wants("decode_fp8", p)) {
      for (int set = 0; set < sets; ++set) encode(set);
      double const written = static_cast<double>(p.tokens * p.row_bytes());
      auto const wrong_sums = [&](int set) {
        auto const& b = at(set);
        int const k = p.top_k;
        return truth.count(
            "elements of out", p.tokens * h,
            [=, rows = row_of.data(), out = b.x.data(), codes = b.rows.data(),
             scales = b.scales.data(), weights = b.weights.data()] __device__(std::int64_t i) {
              double sum = 0, size = 0;
              for (int j = 0; j < k; ++j) {
                std::int64_t const row = rows[i / h * k + j], c = i % h;
                double const v = row < 0 ? 0
                                         : double{weights[i / h * k + j]} *
                                               scales[row * blocks + c / block_columns] *
                                               expar::widen(codes[row * h + c]);
                sum += v, size += fabs(v);
              }
              return !(fabs(expar::widen(out[i]) - sum) <=
                       fabs(sum) * 0x1.01p-8 + size * (k + 2) * 0x1p-23);
            });
      };
      s.measure({"decode_fp8",
                 p,
                 code_bytes + written + 8. * static_cast<double>(p.routes()),
                 set_bytes,
                 sets,
                 {{variant::kind::expar,
                   "expar",
                   "",
                   [&](int set) {
                     auto& b = at(set);
                     expar::gpu::decode_quantized(
                         s.context(), b.plan, expar::make_view(b.rows.data(), p.rows, h),
                         expar::make_view(b.scales.data(), p.rows, blocks),
                         expar::make_view(b.weights.data(), p.tokens, expar::index_t{p.top_k}),
                         expar::make_view(b.x.data(), p.tokens, h));
                   },
                   wrong_sums,
                   {at(0).x}}}});
    }
  }
}

}  // namespace bench
