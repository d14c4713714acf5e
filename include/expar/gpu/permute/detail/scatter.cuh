// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/gpu/permute/detail/carry.cuh>
#include <expar/gpu/permute/detail/vectors.cuh>
#include <expar/permute/fill.hpp>

namespace expar::inline v0::gpu::detail {

inline constexpr int scatter_threads = carry_threads, scatter_warps = scatter_threads / 32;
/// Packs that a lane of the scatter has in flight.
inline constexpr int scatter_flight = 4;

/// Blocks that move tokens, behind them blocks that clear what no route has, `clear_parts` blocks
/// to an expert, and last blocks that carry what goes beside the rows.
struct scatter_shape {
  index_t vectors, token_blocks;
  row_split split;
  int clear_parts;
};

/// Zero in the rows of one expert that no route has.
template <class T, int N, class Rows, class Carry = carry_nothing>
__device__ void clear_rows(plan_view const& plan, Rows const& rows, scatter_shape const& shape,
                           index_t block, Carry const& carry = {}) {
  auto const e = static_cast<int>(block / shape.clear_parts);
  index_t const part = block % shape.clear_parts * scatter_warps + threadIdx.x / 32;
  index_t const end = plan.offsets[e + 1] - plan.offsets[e];
  pack<T, N> zero;
  memset(zero.at, 0, sizeof zero.at);
  for (index_t l = plan.kept(e) + part; l < end; l += index_t{shape.clear_parts} * scatter_warps) {
    if (threadIdx.x % 32 == 0) carry.clear(plan, e, l);
    if (T* const row = rows(plan, e, l))
      for (index_t v = threadIdx.x % 32; v < shape.vectors; v += 32) zero.store(row + v * N);
  }
}

/// Every token row is read once and written to the row of each kept route: a warp has a run of one
/// row. Rows of the layout that no route has become zero.
template <class T, int N, class Weights, class Rows, class Carry>
__global__ void __launch_bounds__(scatter_threads)
    scatter_rows(plan_view const plan, tensor_view<T const, 2> const tokens, Weights const weights,
                 Rows const rows, scatter_shape const shape, Carry const carry) {
  constexpr bool scaled = !std::is_same_v<Weights, unit_weights>;
  if (blockIdx.x >= shape.token_blocks) {
    index_t const block = blockIdx.x - shape.token_blocks;
    index_t const clear_blocks = index_t{plan.experts} * shape.clear_parts;
    if (block < clear_blocks) return clear_rows<T, N>(plan, rows, shape, block, carry);
    return put_routes(plan, carry, static_cast<unsigned>(block - clear_blocks));
  }
  index_t const warp = index_t{blockIdx.x} * scatter_warps + threadIdx.x / 32;
  int const lane = static_cast<int>(threadIdx.x) % 32;
  index_t const t = warp / shape.split.parts;
  if (t >= plan.tokens) return;
  index_t const first = warp % shape.split.parts * shape.split.run;
  index_t const last =
      first + shape.split.run < shape.vectors ? first + shape.split.run : shape.vectors;
  T* const row0 = row_of(plan, rows, t, lane);

  for (index_t base = first; base < last; base += 32 * scatter_flight) {
    pack<T, N> x[scatter_flight];
#pragma unroll
    for (int u = 0; u < scatter_flight; ++u) {
      index_t const v = base + 32 * u + lane;
      if (v < last) x[u] = pack<T, N>::load(tokens.row(t) + v * N);
    }
    for (int j0 = 0; j0 < plan.top_k; j0 += 32) {
      T* const row = j0 == 0 ? row0 : row_of(plan, rows, t, j0 + lane);
      for (unsigned left = __ballot_sync(~0u, row != nullptr); left != 0; left &= left - 1) {
        int const j = __ffs(static_cast<int>(left)) - 1;
        T* const to = shuffle(row, j);
        if constexpr (scaled) {
          using A = accumulator_t<T>;
          A const w = weights.template at<A>(t, j0 + j);
#pragma unroll
          for (int u = 0; u < scatter_flight; ++u) {
            index_t const v = base + 32 * u + lane;
            pack<T, N> y;
#pragma unroll
            for (int i = 0; i < N; ++i) y.at[i] = narrow<T>(multiply(w, widen_fast(x[u].at[i])));
            if (v < last) y.store(to + v * N);
          }
        } else {
#pragma unroll
          for (int u = 0; u < scatter_flight; ++u) {
            index_t const v = base + 32 * u + lane;
            if (v < last) x[u].store(to + v * N);
          }
        }
      }
    }
  }
}

/// Blocks that clear rows of one expert: none where the layout has no row that only fills, and
/// enough to occupy the device where it can have many.
inline int clear_parts(route_plan const& plan, index_t row_bytes, fill fillers) {
  index_t const most = plan.capacity() >= 0 ? plan.capacity() : plan.alignment() - 1;
  index_t const wanted = most * row_bytes / 65536 + 1, enough = 1024 / plan.experts() + 1;
  return most == 0 || fillers == fill::none ? 0
                                            : static_cast<int>(wanted < enough ? wanted : enough);
}

/// Enqueues scatter_rows() for the widest packs that the tokens and the rows allow, which all stand
/// as those of `like`.
template <class T, class Weights, class Rows, class Carry = carry_nothing>
void scatter(context const& ctx, char const* place, route_plan const& plan,
             tensor_view<T const, 2> tokens, Weights weights, Rows rows, tensor_view<T, 2> like,
             fill fillers, Carry carry = {}) {
  bool const nothing = tokens.extents[1] == 0 && std::is_same_v<Carry, carry_nothing>;
  if (nothing || plan.experts() == 0) return;
  with_width<16 / static_cast<int>(sizeof(T))>(
      [&](int n) { return fits(tokens, n) && fits(like, n); },
      [&](auto n) {
        index_t const vectors = tokens.extents[1] / n;
        row_split const split = split_rows(vectors, 32 * scatter_flight);
        index_t const blocks = (plan.tokens() * split.parts + scatter_warps - 1) / scatter_warps;
        int const clear = clear_parts(plan, like.extents[1] * index_t{sizeof(T)}, fillers);
        bool const carries = !std::is_same_v<Carry, carry_nothing>;
        launch(ctx, place, scatter_rows<T, n.value, Weights, Rows, Carry>,
               blocks + index_t{plan.experts()} * clear + (carries ? carry_blocks(plan) : 0),
               scatter_threads, 0, plan.view(), tokens, weights, rows,
               scatter_shape{vectors, blocks, split, clear}, carry);
      });
}
template <class T, class Weights, class Carry = carry_nothing>
void scatter(context const& ctx, char const* place, route_plan const& plan,
             tensor_view<T const, 2> tokens, Weights weights, tensor_view<T, 2> rows, fill fillers,
             Carry carry = {}) {
  scatter(ctx, place, plan, tokens, weights, tensor_rows{rows}, rows, fillers, carry);
}

/// A view of the same bytes, so that copies of all types share their kernels.
template <class T>
auto as_bytes(tensor_view<T, 2> const& v) {
  using byte = std::conditional_t<std::is_const_v<T>, unsigned char const, unsigned char>;
  auto const bytes = [](index_t n) { return n * index_t{sizeof(T)}; };
  return make_view(reinterpret_cast<byte*>(v.data), v.extents[0], bytes(v.extents[1]),
                   bytes(v.strides[0]));
}

}  // namespace expar::inline v0::gpu::detail
