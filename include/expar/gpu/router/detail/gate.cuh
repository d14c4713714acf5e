// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <type_traits>

#include <expar/gpu/router/detail/lanes.cuh>
#include <expar/gpu/router/detail/token_tiles.cuh>
#include <expar/router/route.hpp>

namespace expar::inline v0::gpu::detail {

inline constexpr int gate_threads = 256;

/// What lanes can make of a router: scores and keys expert by expert, and then perhaps groups of
/// experts; and its gradient. Of one that is not made of policies, nothing.
template <class Router>
struct router_parts {
  static constexpr bool lanes = false, lanes_back = false, grouped = false;
};
template <class... Steps>
struct router_parts<router<Steps...>> {
  using R = router<Steps...>;
  using score = typename R::score_type;
  static constexpr bool grouped =
      R::limit_count == 1 && (std::is_same_v<Steps, group_limited> || ...);
  static constexpr bool bound = (expar::detail::depends_on_token<Steps> || ...);
  static constexpr bool lanes_back = !bound && separable_score<score> && R::transform_count == 0;
  static constexpr bool lanes = lanes_back && separable_key<typename R::key_type> &&
                                R::selects_top_k && (R::limit_count == 0 || grouped);

  __host__ __device__ static int sums(R const& r) {
    if constexpr (grouped)
      return r.template limit<0>().groups;
    else
      return 0;
  }
};

template <class Router, class T, class B, class W>
struct gate_arguments {
  using A = accumulator_t<T>;

  Router router;
  tensor_view<T const, 2> logits;
  B const* bias;  // null: none
  tensor_view<std::int32_t, 2> ids;
  tensor_view<W, 2> weights;
  bool vectors;     // four logits at once
  int table_bytes;  // shared memory before what each group of lanes has
  A* scratch;       // for a thread per token
  token_tiles tiles;

  /// Numbers of type A that a group of lanes has in shared memory: the keys of its token, the sums
  /// of groups of experts, and weights. An odd number, so that the groups of a warp use different
  /// banks.
  __host__ __device__ int sums() const { return (router.experts + 31) / 32 * 32; }
  __host__ __device__ int weights_at() const { return sums() + router_parts<Router>::sums(router); }
  __host__ __device__ int numbers() const { return (weights_at() + router.top_k) | 1; }
  __host__ __device__ index_t thread_numbers() const {
    return index_t{2} * router.experts + router.top_k + router.forward_scratch();
  }
};

/// Less than every number but -inf.
template <class A>
inline constexpr A smallest = std::numeric_limits<A>::lowest();

__device__ inline int first_bit(unsigned bits) {
  return __ffs(static_cast<int>(bits)) - 1;
}
__device__ inline int first_bit(unsigned long long bits) {
  return __ffsll(static_cast<long long>(bits)) - 1;
}

/// Leaves the keys of the best groups, and what others become, in the row and in registers.
template <class Layout, class A>
__device__ void limit_groups(group_limited const& key, int experts, int lane, A* row, A* sums,
                             A (&keys)[Layout::values]) {
  int const size = experts / key.groups;
  __syncwarp();
  int const start = lane % size;  // no two lanes begin in the same bank
  for (int g = lane; g < key.groups; g += Layout::lanes)
    sums[g] = key.template sum_of_best<A>(size, [&](int i) {
      int const at = i + start;
      return row[g * size + (at < size ? at : at - size)];
    });
  __syncwarp();
  for (int g0 = 0; g0 < key.groups; g0 += Layout::lanes) {
    int const g = g0 + lane;
    unsigned const all = __ballot_sync(~0u, g < key.groups && !key.keeps(sums, g));
    unsigned drops = all >> (threadIdx.x % 32 / Layout::lanes * Layout::lanes);
    if constexpr (Layout::lanes < 32) drops &= (1u << Layout::lanes) - 1;
    for (; drops != 0; drops &= drops - 1) {
      A* const run = row + (g0 + __ffs(static_cast<int>(drops)) - 1) * size;
      for (int i = lane; i < size; i += Layout::lanes) run[i] = key.other(run[i]);
    }
  }
  __syncwarp();
#pragma unroll
  for (int v = 0; v < Layout::values; ++v)
    keys[v] =
        Layout::begins(v, experts) ? row[Layout::expert(lane, v)] : -expar::detail::infinity<A>;
}

/// What a lane puts forward of its keys: the best, and all that may be among the best k of the
/// token. Each lane has a key of at least `bound`, which makes k of them, so that smaller ones are
/// out.
template <class Layout, class A>
struct lane_candidates {
  using mask = std::conditional_t<(Layout::values > 32), unsigned long long, unsigned>;
  A best;
  int at;
  mask all;

  /// Requires: k <= lanes.
  __device__ explicit lane_candidates(A const (&keys)[Layout::values])
      : best(keys[0]), at(0), all(0) {
#pragma unroll
    for (int v = 1; v < Layout::values; ++v)
      if (keys[v] > best) best = keys[v], at = v;
    A bound = best;
#pragma unroll
    for (int d = Layout::lanes / 2; d > 0; d /= 2) {
      A const other = __shfl_xor_sync(~0u, bound, d);
      bound = other < bound ? other : bound;
    }
    bound = bound > smallest<A> ? bound : smallest<A>;
#pragma unroll
    for (int v = 0; v < Layout::values; ++v)
      if (keys[v] >= bound) all |= mask{1} << v;
  }
  /// Takes the best away; the next one is among the others.
  __device__ void pop(int lane, A const* row) {
    all &= ~(mask{1} << at);
    best = -expar::detail::infinity<A>;
#pragma unroll 1
    for (mask left = all; left != 0; left &= left - 1) {
      int const v = first_bit(left);
      A const x = row[Layout::expert(lane, v)];
      if (x > best) best = x, at = v;
    }
  }
};

/// The k experts with the largest keys, as select_top_k() orders them, to ids. The row holds the
/// keys.
template <class Layout, class A>
__device__ void select_by_lanes(lane_candidates<Layout, A> mine, int lane, int k, A const* row,
                                std::int32_t* ids) {
#pragma unroll 1
  for (int j = 0; j < k; ++j) {
    A key = mine.best;
    int id = Layout::expert(lane, mine.at);
#pragma unroll
    for (int d = Layout::lanes / 2; d > 0; d /= 2) {
      A const other = __shfl_xor_sync(~0u, key, d);
      int const other_id = __shfl_xor_sync(~0u, id, d);
      if (other > key || (other == key && other_id < id)) key = other, id = other_id;
    }
    if (expar::detail::masked(key)) id = -1;
    if (lane == 0) ids[j] = id;
    if (id >= 0 && Layout::lane_of(id) == lane) mine.pop(lane, row);
  }
}

/// Selects for one token, whose logits are x, and gives what its scores share. The row takes the
/// keys.
template <class Layout, class Router, class B, class A>
__device__ auto choose(Router const& r, B const* bias, int lane, A (&x)[Layout::values], A* row,
                       A* sums, std::int32_t* ids) {
  using parts = router_parts<Router>;
  put_row<Layout>(x, r.experts, lane, row);
  if constexpr (Router::by_logit) {
    lane_candidates<Layout, A> const mine(x);
    auto const scores = score_token<Layout>(r.score(), r.experts, lane, mine.best, row);
    select_by_lanes(mine, lane, r.top_k, row, ids);
    return scores;
  } else {
    auto const scores =
        score_token<Layout>(r.score(), r.experts, lane, largest_of_lane<Layout>(x), row);
#pragma unroll
    for (int v = 0; v < Layout::values; ++v) {
      A b = 0;
      if constexpr (Router::takes_bias)
        if (int const e = Layout::expert(lane, v); bias != nullptr && e < r.experts)
          b = static_cast<A>(widen_fast(bias[e]));
      A const key = r.key().of(x[v], scores.of(x[v]), b);
      bool const possible = !expar::detail::masked(x[v]) && !expar::detail::masked(key);
      x[v] = possible ? key : -expar::detail::infinity<A>;
    }
    put_row<Layout>(x, r.experts, lane, row);
    if constexpr (parts::grouped)
      limit_groups<Layout>(r.template limit<0>(), r.experts, lane, row, sums, x);
    select_by_lanes(lane_candidates<Layout, A>(x), lane, r.top_k, row, ids);
    return scores;
  }
}

/// Routes and, if asked, their plan: a group of lanes has a token, its logits in registers.
template <class Layout, class Router, class T, class B, class W>
__global__ void __launch_bounds__(gate_threads, (resident_gates<Layout, accumulator_t<T>>))
    gate_by_lanes(gate_arguments<Router, T, B, W> const a) {
  using A = accumulator_t<T>;
  extern __shared__ __align__(16) unsigned char gate_memory[];
  auto* const table = reinterpret_cast<unsigned*>(gate_memory);
  int const thread = static_cast<int>(threadIdx.x), lane = thread % Layout::lanes;
  int const group = thread / Layout::lanes;
  int const groups = static_cast<int>(blockDim.x) / Layout::lanes;
  int const experts = a.router.experts, k = a.router.top_k;
  A* const numbers = reinterpret_cast<A*>(gate_memory + a.table_bytes);
  A* const row = numbers + group * a.numbers();
  A* const w = row + a.weights_at();
  std::int32_t* const ids =
      reinterpret_cast<std::int32_t*>(numbers + groups * a.numbers()) + group * k;
  bool const names = a.tiles.plans && !a.tiles.choice_major;

  if (names) clear_table(a.tiles, table);
#pragma unroll 1
  for (int i = group; i < a.tiles.size(); i += groups) {
    int const t = (static_cast<int>(blockIdx.x) << a.tiles.bits) + i;  // at most 2^30 tokens
    bool const here = t < static_cast<int>(a.tiles.tokens);
    T const* const logits = a.logits.row(here ? t : 0);
    A x[Layout::values];
    load_row<Layout>(logits, here ? experts : 0, lane, a.vectors, x);
    auto const scores = choose<Layout>(a.router, a.bias, lane, x, row, row + a.sums(), ids);
    __syncwarp();
#pragma unroll 1
    for (int j = lane; j < k; j += Layout::lanes)
      w[j] = ids[j] < 0 ? A(0) : scores.of(widen_fast(logits[ids[j]]));
    __syncwarp();
    if (lane == 0) a.router.weigh(static_cast<std::int32_t const*>(ids), w);
    __syncwarp();
#pragma unroll 1
    for (int j = lane; here && j < k; j += Layout::lanes) {
      a.ids.row(t)[j] = ids[j];
      a.weights.row(t)[j] = narrow<W>(static_cast<accumulator_t<W>>(w[j]));
      if (a.tiles.plans) a.tiles.to.ids[index_t{t} * k + j] = ids[j];
      if (names && ids[j] >= 0) name_expert(a.tiles, table, ids[j], i);
    }
    __syncwarp();
  }
  if (!a.tiles.plans) return;
  place_tile(a.tiles, table, static_cast<int>(blockIdx.x), true);
  if (arrives_last(a.tiles.to.sums))
    scan_tiles(a.tiles.to.sums, reinterpret_cast<std::int32_t*>(table));
}

/// The same by the code of the host, a thread per token, for what lanes cannot hold.
template <class Router, class T, class B, class W>
__global__ void __launch_bounds__(gate_threads, 1)
    gate_by_threads(gate_arguments<Router, T, B, W> const a) {
  using A = accumulator_t<T>;
  extern __shared__ __align__(16) unsigned char gate_memory[];
  auto* const table = reinterpret_cast<unsigned*>(gate_memory);
  int const experts = a.router.experts, k = a.router.top_k, tile_size = a.tiles.size();
  for (int tile = static_cast<int>(blockIdx.x); tile < a.tiles.tiles;
       tile += static_cast<int>(gridDim.x)) {
    for (int i = static_cast<int>(threadIdx.x); i < tile_size; i += static_cast<int>(blockDim.x)) {
      index_t const t = (index_t{tile} << a.tiles.bits) + i;
      if (t >= a.tiles.tokens) break;
      A* const z = a.scratch + (index_t{blockIdx.x} * tile_size + i) * a.thread_numbers();
      A *const bias = z + experts, *const w = bias + experts;
      std::int32_t* const ids = a.ids.row(t);
      for (int e = 0; e < experts; ++e) z[e] = widen_fast(a.logits.row(t)[e]);
      for (int e = 0; a.bias != nullptr && e < experts; ++e)
        bias[e] = static_cast<A>(widen_fast(a.bias[e]));
      expar::detail::bind(a.router, t)
          .forward(static_cast<A const*>(z),
                   a.bias == nullptr ? nullptr : static_cast<A const*>(bias), w + k, ids, w);
      for (int j = 0; j < k; ++j) {
        a.weights.row(t)[j] = narrow<W>(static_cast<accumulator_t<W>>(w[j]));
        if (a.tiles.plans) a.tiles.to.ids[t * k + j] = ids[j];
      }
    }
    if (a.tiles.plans) place_tile(a.tiles, table, tile, false);
    __syncthreads();
  }
  if (a.tiles.plans && arrives_last(a.tiles.to.sums))
    scan_tiles(a.tiles.to.sums, reinterpret_cast<std::int32_t*>(table));
}

/// How many bytes of shared memory a block has without asking, less what scans take.
inline constexpr int gate_bytes = 48 * 1024 - 512;

/// The tiles of a launch that makes no plan yet, or one whose routes take their places choice by
/// choice in `parts` parts: few, so that the last block has little to sum, but enough to occupy the
/// device, and with a table that leaves room.
inline token_tiles tiles_of(index_t tokens, int top_k, int experts, int parts = 1) {
  int bits = 5;
  while (bits < 8 && index_t{experts} << bits <= 65536 &&
         (tokens > index_t{128} << bits || tokens * parts > index_t{512} << bits))
    ++bits;
  auto const tiles = static_cast<int>((tokens + (index_t{1} << bits) - 1) >> bits);
  return {tokens, top_k, bits, tiles, false, false, {}};
}

/// Tiles of as many tokens or fewer, at most: there are fewer where larger tiles begin.
inline index_t most_tiles(token_tiles const& a, int parts) {
  return std::max<index_t>(
      a.tiles, std::min({index_t{128}, index_t{(512 + parts - 1) / parts}, (a.tokens + 31) / 32}));
}

/// Tokens that threads have in flight where a thread has a token: what bounds their scratch.
inline constexpr index_t tokens_in_flight = 1024;

/// Shared memory for the plan of a block of `threads` threads.
inline int table_bytes(token_tiles const& a, int experts, int threads) {
  if (!a.plans) return 0;
  int const entries = experts * a.words();
  return static_cast<int>(round_up((entries > 4 * threads ? entries : 4 * threads) * 4, 16));
}

/// The launch of a gate: of lanes, or else with a thread per token, and scratch for them.
struct gate_launch {
  bool lanes = false;
  index_t blocks;
  int threads, table_bytes;
  index_t shared_bytes;
  index_t scratch = 0;  // numbers of the accumulator's type

  template <class Router, class T, class B, class W>
  explicit gate_launch(gate_arguments<Router, T, B, W> const& a) {
    using A = accumulator_t<T>;
    int const experts = a.router.experts, k = a.router.top_k;
    if constexpr (router_parts<Router>::lanes)
      if (k <= 32)
        with_layout<A>(experts, k > 8, [&](auto layout) {
          index_t const group = a.numbers() * index_t{sizeof(A)} + k * index_t{4};
          for (threads = 2 * gate_threads; !lanes && threads > 32;) {
            threads /= 2;
            table_bytes = detail::table_bytes(a.tiles, experts, threads);
            shared_bytes = table_bytes + threads / decltype(layout)::lanes * group;
            lanes = shared_bytes <= gate_bytes;
          }
        });
    blocks = a.tiles.tiles;
    if (lanes) return;
    blocks = std::min(blocks, tokens_in_flight >> a.tiles.bits);
    threads = a.tiles.size();
    table_bytes = 0;
    shared_bytes = detail::table_bytes(a.tiles, experts, threads);
    scratch = (blocks << a.tiles.bits) * a.thread_numbers();
  }
};

/// Enqueues one of the two kernels. `scratch` has as many numbers as the launch asks for.
template <class Router, class T, class B, class W>
void gate(context const& ctx, char const* place, gate_arguments<Router, T, B, W> a,
          gate_launch const& to, accumulator_t<T>* scratch) {
  auto const enqueue = [&](auto kernel) {
    launch(ctx, place, kernel, to.blocks, to.threads, static_cast<std::size_t>(to.shared_bytes), a);
  };
  a.scratch = scratch;
  a.table_bytes = to.table_bytes;
  if constexpr (router_parts<Router>::lanes)
    if (to.lanes) {
      a.vectors = fits(a.logits, 4);
      with_layout<accumulator_t<T>>(a.router.experts, a.router.top_k > 8, [&](auto layout) {
        enqueue(gate_by_lanes<decltype(layout), Router, T, B, W>);
      });
      return;
    }
  enqueue(gate_by_threads<Router, T, B, W>);
}

/// What those ask for who ask how large a workspace is.
template <class T, class Router>
void check_sizes(char const* what, Router const& r, index_t tokens) {
  expar::detail::expects(tokens >= 0, what, ": tokens is ", tokens, "; it is not negative");
  expar::detail::argument_table a(what);
  expar::detail::check_router(a, r, 0, false);
}
/// What sizes of a launch follow from, where there are no tensors yet.
template <class T, class Router>
gate_arguments<Router, T, accumulator_t<T>, accumulator_t<T>> gate_without_tensors(
    Router const& r, token_tiles const& tiles) {
  return {r, {}, nullptr, {}, {}, false, 0, nullptr, tiles};
}

}  // namespace expar::inline v0::gpu::detail
