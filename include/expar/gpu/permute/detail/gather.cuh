// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/gpu/permute/detail/rows.cuh>
#include <expar/gpu/permute/detail/vectors.cuh>

namespace expar {
inline namespace v0 {
namespace gpu::detail {

inline constexpr int gather_threads = 256, gather_warps = gather_threads / 32;
/// Turns that a warp of the gather makes over its run.
inline constexpr int gather_turns = 2;

/// Blocks that a multiprocessor holds at once: how many the registers of so many gathers allow.
constexpr int resident_blocks(int batch, bool whole) {
  return !whole ? 2 : batch <= 4 ? 4 : 3;
}

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

/// out[t] = sum over kept routes of weight * row: a warp has a run of one row, and `Batch` gathers
/// of every lane are in flight at once; with Whole, top_k is Batch. One accumulator per column
/// takes the choices in order, each product and each sum rounded.
template <class T, class Out, int N, int Batch, bool Whole, class Weights, class Rows>
__global__ void __launch_bounds__(gather_threads, resident_blocks(Batch, Whole))
    gather_rows(plan_view const plan, Rows const rows, Weights const weights,
                tensor_view<Out, 2> const out, index_t vectors, row_split const split) {
  using A = accumulator_t<T>;
  constexpr bool scaled = !std::is_same_v<Weights, unit_weights>;
  index_t const warp = index_t{blockIdx.x} * gather_warps + threadIdx.x / 32;
  int const lane = static_cast<int>(threadIdx.x) % 32;
  index_t const t = warp / split.parts;
  if (t >= plan.tokens) return;
  index_t const first = warp % split.parts * split.run;
  index_t const last = first + split.run < vectors ? first + split.run : vectors;
  int const k = Whole ? Batch : plan.top_k;
  lane_routes<T, A> const routes0(plan, rows, weights, t, lane);

  for (index_t base = first; base < last; base += 32) {
    index_t const v = base + lane;
    A sum[N];
#pragma unroll
    for (int c = 0; c < N; ++c) sum[c] = A{-0.0};  // what any x can be added to and stay x
    lane_routes<T, A> routes = routes0;
    unsigned any = routes.kept;
    for (int j0 = 0; j0 < k; j0 += Batch) {
      if (!Whole && j0 != 0 && j0 % 32 == 0)
        routes = lane_routes<T, A>(plan, rows, weights, t, j0 + lane), any |= routes.kept;
      pack<T, N> x[Batch];
#pragma unroll
      for (int i = 0; i < Batch; ++i) {
        T const* const row = shuffle(routes.row, (j0 + i) % 32);
        if (row != nullptr && v < last) x[i] = pack<T, N>::load(row + v * N);
      }
#pragma unroll
      for (int i = 0; i < Batch; ++i) {
        A const w = scaled ? __shfl_sync(~0u, routes.weight, (j0 + i) % 32) : A{1};
        if ((routes.kept >> ((j0 + i) % 32) & 1) == 0) continue;
#pragma unroll
        for (int c = 0; c < N; ++c) {
          A const y = widen_fast(x[i].at[c]);
          sum[c] = add(sum[c], scaled ? multiply(w, y) : y);
        }
      }
    }
    pack<Out, N> result;
#pragma unroll
    for (int c = 0; c < N; ++c)
      result.at[c] = narrow<Out>(static_cast<accumulator_t<Out>>(any != 0 ? sum[c] : A{0}));
    if (v < last) result.store(out.row(t) + v * N);
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
template <class T, class Out, class Weights, class Rows>
void gather(context const& ctx, char const* place, route_plan const& plan, Rows rows,
            tensor_view<T const, 2> like, Weights weights, tensor_view<Out, 2> out) {
  constexpr int widest = 16 / static_cast<int>(sizeof(T));
  if (out.size() == 0) return;
  with_width<widest>(
      [&](int n) { return fits(like, n) && fits(out, n); },
      [&](auto n) {
        with_top_k<n.value == widest>(plan.top_k(), [&](auto batch, auto whole) {
          index_t const vectors = out.extents[1] / n;
          row_split const split = split_rows(vectors, 32 * gather_turns);
          launch(ctx, place, gather_rows<T, Out, n.value, batch.value, whole.value, Weights, Rows>,
                 (plan.tokens() * split.parts + gather_warps - 1) / gather_warps, gather_threads, 0,
                 plan.view(), rows, weights, out, vectors, split);
        });
      });
}
template <class T, class Out, class Weights>
void gather(context const& ctx, char const* place, route_plan const& plan,
            tensor_view<T const, 2> rows, Weights weights, tensor_view<Out, 2> out) {
  gather(ctx, place, plan, tensor_rows{rows}, rows, weights, out);
}

}  // namespace gpu::detail
}  // namespace v0
}  // namespace expar
