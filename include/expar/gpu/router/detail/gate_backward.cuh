// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>

#include <expar/gpu/router/detail/gate.cuh>

namespace expar::inline v0::gpu::detail {

template <class A>
inline constexpr A not_a_number = std::numeric_limits<A>::quiet_NaN();

template <class Router, class T, class W, class D>
struct gate_backward_arguments {
  using A = accumulator_t<T>;

  Router router;
  tensor_view<T const, 2> logits;
  tensor_view<std::int32_t const, 2> ids;
  tensor_view<W const, 2> d_weights;
  tensor_view<D, 2> d_logits;
  bool read_vectors, write_vectors;
  A* scratch;  // for a thread per token

  /// Numbers of type A that a group of lanes has in shared memory: the gradients for the scores of
  /// all experts, those for the weights, and the weights between the steps.
  __host__ __device__ int keys() const { return (router.experts + 31) / 32 * 32 + 1; }
  __host__ __device__ int numbers() const {
    return keys() + (Router::weight_count + 2) * router.top_k;
  }
  __host__ __device__ index_t thread_numbers() const {
    return index_t{2} * router.experts + 2 * router.top_k + router.vjp_scratch();
  }
  /// An id of a route; -1 for what is no expert.
  __device__ int id(index_t t, int j) const {
    int const id = ids.row(t)[j];
    return id >= 0 && id < router.experts ? id : -1;
  }
};

/// The gradient of a token by a group of lanes: router::vjp() step by step, with its logits and
/// scores in registers.
template <class Layout, class Router, class T, class W, class D>
__global__ void __launch_bounds__(gate_threads,
                                  (resident_gates<Layout, accumulator_t<T>> < 3 ? 1 : 2))
    gate_backward_by_lanes(gate_backward_arguments<Router, T, W, D> const a) {
  using A = accumulator_t<T>;
  using Score = typename router_parts<Router>::score;
  extern __shared__ __align__(16) unsigned char gate_memory[];
  int const thread = static_cast<int>(threadIdx.x), lane = thread % Layout::lanes;
  int const group = thread / Layout::lanes;
  int const groups = static_cast<int>(blockDim.x) / Layout::lanes;
  int const experts = a.router.experts, k = a.router.top_k;
  A* const numbers = reinterpret_cast<A*>(gate_memory);
  A* const row = numbers + group * a.numbers();
  A *const d = row + a.keys(), *const values = d + k;
  std::int32_t* const ids =
      reinterpret_cast<std::int32_t*>(numbers + groups * a.numbers()) + group * k;
  index_t const t = index_t{blockIdx.x} * groups + group;
  bool const here = t < a.logits.extents[0];
  int const mine = here ? experts : 0;
  T const* const logits = a.logits.row(here ? t : 0);

  A x[Layout::values];
  load_row<Layout>(logits, mine, lane, a.read_vectors, x);
  put_row<Layout>(x, experts, lane, row);
  auto const scores =
      score_token<Layout>(a.router.score(), experts, lane, largest_of_lane<Layout>(x), row);
#pragma unroll
  for (int v = 0; v < Layout::values; ++v)
    if (Layout::begins(v, experts)) row[Layout::expert(lane, v)] = 0;
  for (int j = lane; here && j < k; j += Layout::lanes) {
    int const id = a.id(t, j);
    ids[j] = id;
    values[j] = id < 0 ? A(0) : scores.of(widen_fast(logits[id]));
    d[j] = id < 0 ? A(0) : static_cast<A>(widen_fast(a.d_weights.row(t)[j]));
  }
  __syncwarp();
  if (here && lane == 0) {
    a.router.weigh_vjp(static_cast<std::int32_t const*>(ids), values, d);
    for (int j = 0; j < k; ++j)
      if (ids[j] >= 0) row[ids[j]] = add(row[ids[j]], d[j]);
  }
  __syncwarp();
  // A masked expert has a score of NaN from here on.
#pragma unroll
  for (int v = 0; v < Layout::values; ++v)
    x[v] = expar::detail::masked(x[v]) ? not_a_number<A> : scores.of(x[v]);
  A mean = 0;
  if constexpr (Score::normalized) {
    A part[Layout::run] = {};
#pragma unroll
    for (int v = 0; v < Layout::values; ++v)
      if (x[v] == x[v])
        part[v % Layout::run] =
            add(part[v % Layout::run], multiply(row[Layout::expert(lane, v)], x[v]));
    mean = sum_of_parts<Layout>(part);
  }
#pragma unroll
  for (int v = 0; v < Layout::values; ++v)
    x[v] = x[v] == x[v] ? a.router.score().slope(x[v], row[Layout::expert(lane, v)], mean) : A(0);
  store_row<Layout>(x, mine, lane, a.write_vectors, a.d_logits.row(here ? t : 0));
}

/// The same by the code of the host, a thread per token.
template <class Router, class T, class W, class D>
__global__ void __launch_bounds__(gate_threads, 1)
    gate_backward_by_threads(gate_backward_arguments<Router, T, W, D> const a) {
  using A = accumulator_t<T>;
  int const experts = a.router.experts, k = a.router.top_k;
  index_t const thread = index_t{blockIdx.x} * blockDim.x + threadIdx.x;
  A* const z = a.scratch + thread * a.thread_numbers();
  A *const g = z + experts, *const d = g + experts;
  // Ids are as many as d, and no larger than numbers of type A.
  static_assert(sizeof(std::int32_t) <= sizeof(A));
  auto* const ids = reinterpret_cast<std::int32_t*>(d + k);
  for (index_t t = thread; t < a.logits.extents[0]; t += index_t{gridDim.x} * blockDim.x) {
    for (int e = 0; e < experts; ++e) z[e] = widen_fast(a.logits.row(t)[e]);
    for (int j = 0; j < k; ++j) {
      ids[j] = a.id(t, j);
      d[j] = static_cast<A>(widen_fast(a.d_weights.row(t)[j]));
    }
    expar::detail::bind(a.router, t)
        .vjp(static_cast<A const*>(z), static_cast<std::int32_t const*>(ids),
             static_cast<A const*>(d), d + 2 * k, g);
    for (int e = 0; e < experts; ++e)
      a.d_logits.row(t)[e] = narrow<D>(static_cast<accumulator_t<D>>(g[e]));
  }
}

/// The launch of a gradient: of lanes, or else with a thread per token, and scratch for them.
struct gate_backward_launch {
  bool lanes = false;
  index_t blocks;
  int threads = 64;
  index_t shared_bytes = 0;
  index_t scratch = 0;  // numbers of the accumulator's type

  template <class Router, class T, class W, class D>
  gate_backward_launch(gate_backward_arguments<Router, T, W, D> const& a, index_t tokens) {
    using A = accumulator_t<T>;
    if constexpr (router_parts<Router>::lanes_back)
      with_layout<A>(a.router.experts, false, [&](auto layout) {
        index_t const group = a.numbers() * index_t{sizeof(A)} + a.router.top_k * index_t{4};
        int block = gate_threads;
        while (block > 32 && block / decltype(layout)::lanes * group > gate_bytes) block /= 2;
        index_t const groups = block / decltype(layout)::lanes;
        if (groups * group > gate_bytes) return;
        lanes = true;
        blocks = (tokens + groups - 1) / groups;
        threads = block;
        shared_bytes = groups * group;
      });
    if (lanes) return;
    blocks = (std::min(tokens, tokens_in_flight) + threads - 1) / threads;
    scratch = blocks * threads * a.thread_numbers();
  }
};

/// Enqueues one of the two kernels.
template <class Router, class T, class W, class D>
void gate_backward(context const& ctx, char const* place,
                   gate_backward_arguments<Router, T, W, D> a) {
  using A = accumulator_t<T>;
  gate_backward_launch const to(a, a.logits.extents[0]);
  auto const enqueue = [&](auto kernel) {
    launch(ctx, place, kernel, to.blocks, to.threads, static_cast<std::size_t>(to.shared_bytes), a);
  };
  if constexpr (router_parts<Router>::lanes_back)
    if (to.lanes) {
      a.read_vectors = fits(a.logits, 4);
      a.write_vectors = fits(a.d_logits, 4);
      with_layout<A>(a.router.experts, false, [&](auto layout) {
        enqueue(gate_backward_by_lanes<decltype(layout), Router, T, W, D>);
      });
      return;
    }
  buffer<A> const scratch(ctx, to.scratch);
  a.scratch = scratch.data();
  enqueue(gate_backward_by_threads<Router, T, W, D>);
}

}  // namespace expar::inline v0::gpu::detail
