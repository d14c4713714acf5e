// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>

#include <expar/gpu/permute/detail/gather.cuh>
#include <expar/gpu/permute/detail/scatter.cuh>

namespace expar::inline v0::gpu::detail {

__device__ inline float multiply_add(float a, float b, float c) {
  return __fmaf_rn(a, b, c);
}
__device__ inline double multiply_add(double a, double b, double c) {
  return __fma_rn(a, b, c);
}

/// Blocks that a multiprocessor holds at once: as many as the registers of so many sums allow.
constexpr int dot_blocks(std::size_t sum_bytes, bool whole) {
  return !whole || sum_bytes >= 32 ? 2 : sum_bytes > 4 ? 3 : 4;
}

/// d_weights[t,j] = <row(t,j), x[t]>, and with Store in the same pass d_rows[row(t,j)] = weight *
/// x[t], zero where no route has a row. `parts` warps of a block (1, 2, 4 or 8) share a token. The
/// order of a dot product depends on the row size alone: a lane takes every 32nd pack of its warp's
/// run, then lanes are summed as a tree, then warps in order.
template <class T, class DW, int N, int Batch, bool Whole, bool Store, class Weights, class Rows,
          class DRows>
__global__ void __launch_bounds__(scatter_threads,
                                  dot_blocks(Batch * sizeof(accumulator_t<T>), Whole))
    dot_rows(plan_view const plan, Rows const rows, tensor_view<T const, 2> const x,
             Weights const weights, DRows const d_rows, tensor_view<DW, 2> const d_weights,
             scatter_shape const shape) {
  using A = accumulator_t<T>;
  __shared__ A sums[scatter_warps][Batch];
  if constexpr (Store)
    if (blockIdx.x >= shape.token_blocks)
      return clear_rows<T, N>(plan, d_rows, shape, blockIdx.x - shape.token_blocks);
  int const warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  int const parts = shape.split.parts, tokens_here = scatter_warps / parts;
  index_t const t0 = index_t{blockIdx.x} * tokens_here, t = t0 + warp / parts;
  bool const here = t < plan.tokens;
  index_t const first = warp % parts * shape.split.run;
  index_t const last = !here                                     ? first
                       : first + shape.split.run < shape.vectors ? first + shape.split.run
                                                                 : shape.vectors;
  int const k = Whole ? Batch : plan.top_k;
  plan_view mine = plan;
  if (!here) mine.top_k = 0;
  lane_routes<T, A> routes(mine, rows, weights, t, lane);
  T* to = Store ? row_of(mine, d_rows, t, lane) : nullptr;

  for (int j0 = 0; j0 < k; j0 += Batch) {
    if (!Whole && j0 != 0 && j0 % 32 == 0) {
      routes = lane_routes<T, A>(mine, rows, weights, t, j0 + lane);
      if constexpr (Store) to = row_of(mine, d_rows, t, j0 + lane);
    }
    A sum[Batch] = {};
    for (index_t base = first; base < last; base += 32) {
      index_t const v = base + lane;
      typename pack<T, N>::loaded a[Batch];
      pack<T, N> b;
      if (v < last) b = pack<T, N>::load(x.row(t) + v * N);
#pragma unroll
      for (int i = 0; i < Batch; ++i) {
        T const* const row = shuffle(routes.row, (j0 + i) % 32);
        if (row != nullptr && v < last) a[i] = pack<T, N>::load_closed(row + v * N);
      }
#pragma unroll
      for (int i = 0; i < Batch; ++i) {
        T* const d_row = Store ? shuffle(to, (j0 + i) % 32) : nullptr;
        A const w = Store ? __shfl_sync(~0u, routes.weight, (j0 + i) % 32) : A{0};
        if ((routes.kept >> ((j0 + i) % 32) & 1) == 0 || v >= last) continue;
        pack<T, N> const x_row = a[i].open();
        pack<T, N> y;
#pragma unroll
        for (int c = 0; c < N; ++c) {
          A const d = widen_fast(b.at[c]);
          sum[i] = multiply_add(widen_fast(x_row.at[c]), d, sum[i]);
          if constexpr (Store) y.at[c] = narrow<T>(multiply(w, d));
        }
        if constexpr (Store)
          if (d_row != nullptr) y.store(d_row + v * N);
      }
    }
#pragma unroll
    for (int i = 0; i < Batch; ++i) {
#pragma unroll
      for (int d = 16; d > 0; d /= 2) sum[i] = add(sum[i], __shfl_xor_sync(~0u, sum[i], d));
      if (lane == 0) sums[warp][i] = sum[i];
    }
    __syncthreads();
    int const token = static_cast<int>(threadIdx.x) / Batch;
    int const i = static_cast<int>(threadIdx.x) % Batch;
    if (token < tokens_here && t0 + token < plan.tokens && j0 + i < k) {
      A total = sums[token * parts][i];
      for (int p = 1; p < parts; ++p) total = add(total, sums[token * parts + p][i]);
      d_weights.row(t0 + token)[j0 + i] = narrow<DW>(static_cast<accumulator_t<DW>>(total));
    }
    if constexpr (!Whole) __syncthreads();
  }
}

/// Enqueues dot_rows() for the widest packs that x and the rows allow, which all stand as those of
/// `like` and, with Store, of `d_like`.
template <bool Store, class T, class DW, class Weights, class Rows, class DRows>
void dots(context const& ctx, char const* place, route_plan const& plan, Rows rows,
          tensor_view<T const, 2> like, tensor_view<T const, 2> x, Weights weights, DRows d_rows,
          tensor_view<T, 2> d_like, tensor_view<DW, 2> d_weights, fill fillers = fill::none) {
  constexpr int widest = 16 / static_cast<int>(sizeof(T));
  if (plan.experts() == 0) return;
  with_width<widest>(
      [&](int n) { return fits(like, n) && fits(x, n) && (!Store || fits(d_like, n)); },
      [&](auto n) {
        with_top_k<n.value == widest>(plan.top_k(), [&](auto batch, auto whole) {
          index_t const vectors = x.extents[1] / n;
          int parts = 1;
          while (parts < scatter_warps && vectors > index_t{128} * parts) parts *= 2;
          index_t const run = round_up((vectors + parts - 1) / parts, 32);
          int const here = scatter_warps / parts;
          index_t const blocks = (plan.tokens() + here - 1) / here;
          int const clear =
              Store ? clear_parts(plan, x.extents[1] * index_t{sizeof(T)}, fillers) : 0;
          launch(ctx, place,
                 dot_rows<T, DW, n.value, batch.value, whole.value, Store, Weights, Rows, DRows>,
                 blocks + index_t{plan.experts()} * clear, scatter_threads, 0, plan.view(), rows, x,
                 weights, d_rows, d_weights, scatter_shape{vectors, blocks, {parts, run}, clear});
        });
      });
}
/// The same for tensors. Without Store, d_rows is any view of as many rows.
template <bool Store, class T, class DW, class Weights>
void dots(context const& ctx, char const* place, route_plan const& plan,
          tensor_view<T const, 2> rows, tensor_view<T const, 2> x, Weights weights,
          tensor_view<T, 2> d_rows, tensor_view<DW, 2> d_weights, fill fillers = fill::none) {
  dots<Store>(ctx, place, plan, tensor_rows{rows}, rows, x, weights, tensor_rows{d_rows}, d_rows,
              d_weights, fillers);
}

}  // namespace expar::inline v0::gpu::detail
