// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/gpu/permute/detail/scatter.cuh>
#include <expar/permute/detail/quantize.hpp>

namespace expar::inline v0::gpu::detail {

using expar::detail::block_scale;
using expar::detail::divide;
using expar::detail::quantized_block;

/// Blocks of a row that one warp takes.
inline constexpr int quantized_run = 8;

/// Thread blocks of a multiprocessor at a time, which leaves a thread 64 registers.
inline constexpr int quantized_resident = 4;

/// Scales of one in rows that no route has.
template <class ScaleRows>
struct carry_unit_scales {
  ScaleRows scales;
  index_t blocks;
  __device__ void clear(plan_view const& plan, int expert, index_t place) const {
    if (float* const row = scales(plan, expert, place))
      for (index_t b = 0; b < blocks; ++b) row[b] = 1.0f;
  }
};

/// Every token row is read once and its blocks of 128 columns are quantized once, then codes and
/// scales are written to the rows of each kept route. A block belongs to 16 lanes that have one
/// pack of 8 elements each, or where accesses cannot be wide, to a warp whose lanes have 4
/// elements.
template <class T, int N, class Rows, class ScaleRows>
__global__ void __launch_bounds__(scatter_threads, quantized_resident)
    scatter_quantized(plan_view const plan, tensor_view<T const, 2> const tokens, Rows const rows,
                      ScaleRows const scales, scatter_shape const shape) {
  constexpr int packs = N == 1 ? 4 : 1, lanes = quantized_block / (N * packs);
  constexpr int turns = 2, stride = turns * 32 / lanes;  // blocks that a warp has in flight
  index_t const columns = tokens.extents[1];
  index_t const blocks = expar::detail::quantized_blocks(columns);
  if (blockIdx.x >= shape.token_blocks)
    return clear_rows<float8_e4m3, N>(plan, rows, shape, blockIdx.x - shape.token_blocks,
                                      carry_unit_scales<ScaleRows>{scales, blocks});
  index_t const warp = index_t{blockIdx.x} * scatter_warps + threadIdx.x / 32;
  int const lane = static_cast<int>(threadIdx.x) % 32;
  index_t const t = warp / shape.split.parts;
  if (t >= plan.tokens) return;
  index_t const first = warp % shape.split.parts * shape.split.run;
  index_t const last = first + shape.split.run < blocks ? first + shape.split.run : blocks;
  float8_e4m3* const row0 = row_of(plan, rows, t, lane);
  float* const scale_row0 = row_of(plan, scales, t, lane);

  for (index_t base = first; base < last; base += stride) {
    auto const block = [&](int u) { return base + u * (32 / lanes) + lane / lanes; };
    auto const column = [&](int u, int p) {
      return block(u) * quantized_block + (p * lanes + lane % lanes) * N;
    };
    auto const here = [&](int u, int p) { return block(u) < last && column(u, p) < columns; };
    pack<T, N> x[turns][packs];
#pragma unroll
    for (int u = 0; u < turns; ++u)
#pragma unroll
      for (int p = 0; p < packs; ++p) {
        memset(x[u][p].at, 0, sizeof x[u][p].at);
        if (here(u, p)) x[u][p] = pack<T, N>::load(tokens.row(t) + column(u, p));
      }
    pack<float8_e4m3, N> codes[turns][packs];
    float scale[turns];
#pragma unroll
    for (int u = 0; u < turns; ++u) {
      float most = 0;
#pragma unroll
      for (int p = 0; p < packs; ++p)
#pragma unroll
        for (int c = 0; c < N; ++c)
          most = fmaxf(most, fabsf(static_cast<float>(widen_fast(x[u][p].at[c]))));
#pragma unroll
      for (int d = lanes / 2; d > 0; d /= 2) most = fmaxf(most, __shfl_xor_sync(~0u, most, d));
      scale[u] = block_scale(most);
      float const inverse = divide(1.0f, scale[u]);
#pragma unroll
      for (int p = 0; p < packs; ++p)
#pragma unroll
        for (int c = 0; c < N; ++c)
          codes[u][p].at[c] =
              narrow<float8_e4m3>(multiply(static_cast<float>(widen_fast(x[u][p].at[c])), inverse));
    }
    for (int j0 = 0; j0 < plan.top_k; j0 += 32) {
      float8_e4m3* const row = j0 == 0 ? row0 : row_of(plan, rows, t, j0 + lane);
      float* const scale_row = j0 == 0 ? scale_row0 : row_of(plan, scales, t, j0 + lane);
      for (unsigned left = __ballot_sync(~0u, row != nullptr); left != 0; left &= left - 1) {
        int const j = __ffs(static_cast<int>(left)) - 1;
        float8_e4m3* const to = shuffle(row, j);
        float* const scale_to = shuffle(scale_row, j);
#pragma unroll
        for (int u = 0; u < turns; ++u) {
#pragma unroll
          for (int p = 0; p < packs; ++p)
            if (here(u, p)) codes[u][p].store(to + column(u, p));
          if (lane % lanes == 0 && block(u) < last) __stcs(scale_to + block(u), scale[u]);
        }
      }
    }
  }
}

/// Enqueues scatter_quantized().
template <class T>
void quantize(context const& ctx, char const* place, route_plan const& plan,
              tensor_view<T const, 2> tokens, tensor_view<float8_e4m3, 2> rows,
              tensor_view<float, 2> scales, fill fillers) {
  index_t const columns = tokens.extents[1];
  if (columns == 0 || plan.experts() == 0) return;
  index_t const blocks = expar::detail::quantized_blocks(columns);
  row_split const split{static_cast<int>((blocks + quantized_run - 1) / quantized_run),
                        quantized_run};
  index_t const token_blocks = (plan.tokens() * split.parts + scatter_warps - 1) / scatter_warps;
  int const clear = clear_parts(plan, columns, fillers);
  auto const with = [&](auto n) {
    launch(ctx, place, scatter_quantized<T, n.value, tensor_rows<float8_e4m3>, tensor_rows<float>>,
           token_blocks + index_t{plan.experts()} * clear, scatter_threads, 0, plan.view(), tokens,
           tensor_rows{rows}, tensor_rows{scales},
           scatter_shape{columns / n.value, token_blocks, split, clear});
  };
  if (fits(tokens, 8) && fits(rows, 8))
    with(std::integral_constant<int, 8>{});
  else
    with(std::integral_constant<int, 1>{});
}

}  // namespace expar::inline v0::gpu::detail
