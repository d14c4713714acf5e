// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/gpu/permute/detail/rows.cuh>
#include <expar/gpu/permute/detail/vectors.cuh>
#include <expar/permute/detail/quantize.hpp>

namespace expar::inline v0::gpu::detail {

using expar::detail::quantized_block;

inline constexpr int gather_threads = 128, gather_warps = gather_threads / 32;
/// Turns that a warp of the gather makes over its run.
inline constexpr int gather_turns = 2;

/// Blocks that a multiprocessor holds at once: as many as the registers of so many gathers allow.
constexpr int gather_blocks(int batch, bool whole, bool adds) {
  return !whole ? 5 : batch <= 4 ? 9 : adds ? 6 : 7;
}

/// What a sum begins with: nothing, or the rows of a residual.
struct from_nothing {};
template <class R>
struct from_residual {
  tensor_view<R const, 2> rows;
};
template <class Residual>
inline constexpr bool adds_rows = !std::is_same_v<Residual, from_nothing>;

/// The rows and weights of a token: lane l holds those of choice j + l.
template <class T, class A>
struct lane_routes {
  T const* row;
  A weight;
  unsigned kept;  // the lanes that have a row

  template <class Rows, class Weights>
  __device__ lane_routes(plan_view const& plan, Rows const& rows, Weights const& weights, index_t t,
                         int j) {
    row = row_of(plan, rows, t, j);
    weight = row != nullptr ? weights.template at<A>(t, j) : A{0};
    kept = __ballot_sync(~0u, row != nullptr);
  }
};

/// The weight of a route times the scale of its row in each block of columns.
template <class Weights, class ScaleRows>
struct block_weights {
  Weights weights;
  ScaleRows scales;
  template <class A>
  __device__ A at(index_t t, int j) const {
    return weights.template at<A>(t, j);
  }
};
template <class Weights>
inline constexpr bool scales_blocks = false;
template <class Weights, class ScaleRows>
inline constexpr bool scales_blocks<block_weights<Weights, ScaleRows>> = true;

/// out[t] = residual + sum over kept routes of weight * row: a warp has a run of one row, and
/// `Batch` gathers of every lane are in flight at once; with Whole, top_k is Batch. One accumulator
/// per column begins with the residual and takes the choices in order, each product and each sum
/// rounded.
template <class T, class Out, int N, int Batch, bool Whole, class Weights, class Rows,
          class Residual>
__global__ void __launch_bounds__(gather_threads, gather_blocks(Batch, Whole, adds_rows<Residual>))
    gather_rows(plan_view const plan, Rows const rows, Weights const weights,
                tensor_view<Out, 2> const out, index_t vectors, row_split const split,
                Residual const residual) {
  using A = accumulator_t<T>;
  constexpr bool scaled = !std::is_same_v<Weights, unit_weights>;
  constexpr bool blocks = scales_blocks<Weights>;
  constexpr bool adds = adds_rows<Residual>;
  index_t const warp = index_t{blockIdx.x} * gather_warps + threadIdx.x / 32;
  int const lane = static_cast<int>(threadIdx.x) % 32;
  index_t const t = warp / split.parts;
  if (t >= plan.tokens) return;
  auto const first = static_cast<int>(warp % split.parts * split.run);
  auto const last = static_cast<int>(first + split.run < vectors ? first + split.run : vectors);
  int const k = Whole ? Batch : plan.top_k;
  lane_routes<T, A> const routes0(plan, rows, weights, t, lane);
  float const* scales0 = nullptr;
  if constexpr (blocks) scales0 = row_of(plan, weights.scales, t, lane);

  for (int base = first; base < last; base += 32) {
    int const v = base + lane;
    auto const at = index_t{v} * N;
    A sum[N];
    if constexpr (adds) {
      pack<Out, N> r;
      if (v < last) r = pack<Out, N>::load(residual.rows.row(t) + at);
#pragma unroll
      for (int c = 0; c < N; ++c) sum[c] = static_cast<A>(widen_fast(r.at[c]));
    } else {
#pragma unroll
      for (int c = 0; c < N; ++c) sum[c] = A{-0.0};  // what any x can be added to and stay x
    }
    lane_routes<T, A> routes = routes0;
    float const* scales = scales0;
    unsigned any = routes.kept;
    for (int j0 = 0; j0 < k; j0 += Batch) {
      if (!Whole && j0 != 0 && j0 % 32 == 0) {
        routes = lane_routes<T, A>(plan, rows, weights, t, j0 + lane), any |= routes.kept;
        if constexpr (blocks) scales = row_of(plan, weights.scales, t, j0 + lane);
      }
      A weight = routes.weight;  // in lane i + Batch * b: of choice j0 + i and the b-th block
      if constexpr (blocks) {
        int const from = (j0 + lane % Batch) % 32;
        float const* const of_row = shuffle(scales, from);
        int const block = base / (quantized_block / N) + lane / Batch;
        weight = __shfl_sync(~0u, weight, from);
        if (of_row != nullptr && block * (quantized_block / N) < last)
          weight = multiply(weight, __ldcs(of_row + block));
      }
      typename pack<T, N>::loaded x[Batch];
#pragma unroll
      for (int i = 0; i < Batch; ++i) {
        T const* const row = shuffle(routes.row, (j0 + i) % 32);
        if (row != nullptr && v < last) x[i] = pack<T, N>::load_closed(row + at);
      }
#pragma unroll
      for (int i = 0; i < Batch; ++i) {
        int const source = blocks ? i + Batch * (lane * N / quantized_block) : (j0 + i) % 32;
        A const w = scaled ? __shfl_sync(~0u, weight, source) : A{1};
        if ((routes.kept >> ((j0 + i) % 32) & 1) == 0) continue;
        pack<T, N> const opened = x[i].open();
#pragma unroll
        for (int c = 0; c < N; ++c) {
          A const y = widen_fast(opened.at[c]);
          sum[c] = add(sum[c], scaled ? multiply(w, y) : y);
        }
      }
    }
    pack<Out, N> result;
#pragma unroll
    for (int c = 0; c < N; ++c)
      result.at[c] = narrow<Out>(static_cast<accumulator_t<Out>>(adds || any != 0 ? sum[c] : A{0}));
    if (v < last) result.store(out.row(t) + at);
  }
}

/// Calls f(batch, whole) as constants: the counts that models use are known to the compiler where
/// accesses are widest.
template <bool Known, class F>
void with_top_k(int k, F f) {
  using yes = std::true_type;
  if constexpr (Known) {
    if (k == 1) return f(std::integral_constant<int, 1>{}, yes{});
    if (k == 2) return f(std::integral_constant<int, 2>{}, yes{});
    if (k == 4) return f(std::integral_constant<int, 4>{}, yes{});
    if (k == 6) return f(std::integral_constant<int, 6>{}, yes{});
    if (k == 8) return f(std::integral_constant<int, 8>{}, yes{});
  }
  f(std::integral_constant<int, 4>{}, std::false_type{});
}

/// Enqueues gather_rows() for the widest packs that `out` and the rows allow, which all stand as
/// those of `like`.
template <class T, class Out, class Weights, class Rows, class Residual = from_nothing>
void gather(context const& ctx, char const* place, route_plan const& plan, Rows rows,
            tensor_view<T const, 2> like, Weights weights, tensor_view<Out, 2> out,
            Residual residual = {}) {
  constexpr int widest =
      sizeof(T) == 1 ? 8 : 16 / static_cast<int>(sizeof(T));  // so that a lane has 8 sums
  if (out.size() == 0) return;
  with_width<widest>(
      [&](int n) {
        if constexpr (adds_rows<Residual>)
          if (!fits(residual.rows, n)) return false;
        return fits(like, n) && fits(out, n);
      },
      [&](auto n) {
        with_top_k<n.value == widest>(plan.top_k(), [&](auto batch, auto whole) {
          index_t const vectors = out.extents[1] / n;
          expar::detail::expects(vectors < INT32_MAX - 32, place, ": rows have ", out.extents[1],
                                 " elements; a row has at most about ", INT32_MAX);
          row_split const split = split_rows(vectors, 32 * gather_turns);
          launch(ctx, place,
                 gather_rows<T, Out, n.value, batch.value, whole.value, Weights, Rows, Residual>,
                 (plan.tokens() * split.parts + gather_warps - 1) / gather_warps, gather_threads, 0,
                 plan.view(), rows, weights, out, vectors, split, residual);
        });
      });
}
template <class T, class Out, class Weights, class Residual = from_nothing>
void gather(context const& ctx, char const* place, route_plan const& plan,
            tensor_view<T const, 2> rows, Weights weights, tensor_view<Out, 2> out,
            Residual residual = {}) {
  gather(ctx, place, plan, tensor_rows{rows}, rows, weights, out, residual);
}

}  // namespace expar::inline v0::gpu::detail
