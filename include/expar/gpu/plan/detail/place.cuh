// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include <expar/plan/layout.hpp>

namespace expar {
inline namespace v0 {
namespace gpu::detail {

/// Routes in the order in which they take their places are cut into tiles; a tile is one block of
/// up to 16 warps, and a warp takes up to 4 runs of 32 routes.
inline constexpr int place_steps = 4, place_warps = 16;

/// What the blocks of a launch leave behind, and what the last of them makes of it.
struct tile_sums {
  std::int32_t* bases;  // [tiles, experts], what a tile begins with
  index_t* counts;      // [experts + 1], and behind the last the ids that are out of range
  index_t* offsets;     // [experts + 1]
  unsigned* control;    // two zeros before and after every launch
  index_t capacity;
  int experts, tiles, alignment;
};

struct place_arguments {
  std::int32_t const* ids;
  index_t pitch;
  std::int32_t* ids_out;    // [tokens, top_k], -1 for what is no expert
  std::int32_t* locations;  // [tokens, top_k], within the tile
  tile_sums sums;
  std::uint32_t tokens, routes;
  int top_k, steps;
};

/// What the other tiles begin with, the counts and the offsets: made by the block that arrives
/// last. Its threads are groups of `experts`; a group sums its share of the tiles.
inline __device__ void scan_tiles(tile_sums const& a, std::int32_t* shared) {
  constexpr int batch = 16;
  __shared__ index_t warp_sums[place_warps];
  __shared__ index_t carry;
  int const thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  int const lane = thread % 32, warp = thread / 32;
  int const width = a.experts < threads ? a.experts : threads, groups = threads / width;
  int const share = (a.tiles + groups - 1) / groups, group = thread / width;
  if (thread == 0) carry = 0;
  for (int first = 0; first < a.experts; first += width) {
    int const e = first + thread % width;
    bool const here = group < groups && e < a.experts;
    int const begin = group * share;
    int const end = !here ? begin : begin + share < a.tiles ? begin + share : a.tiles;
    std::int32_t* const column = a.bases + e;
    std::int32_t sum = 0;
    for (int tile = begin; tile < end; tile += batch) {
      std::int32_t count[batch];
#pragma unroll
      for (int i = 0; i < batch; ++i)
        count[i] = tile + i < end ? __ldcg(column + index_t{tile + i} * a.experts) : 0;
#pragma unroll
      for (int i = 0; i < batch; ++i) sum += count[i];
    }
    if (here) shared[group * width + thread % width] = sum;
    __syncthreads();
    std::int32_t before = 0;
    for (int g = 0; here && g < group; ++g) before += shared[g * width + thread % width];
    for (int tile = begin; tile < end; tile += batch) {
      std::int32_t count[batch];
#pragma unroll
      for (int i = 0; i < batch; ++i)
        count[i] = tile + i < end ? __ldcg(column + index_t{tile + i} * a.experts) : 0;
#pragma unroll
      for (int i = 0; i < batch; ++i)
        if (tile + i < end) {
          column[index_t{tile + i} * a.experts] = before;
          before += count[i];
        }
    }
    // The last group has the totals; the first threads turn them into offsets.
    if (here && group == groups - 1) a.counts[e] = before;
    __syncthreads();
    if (here && group == groups - 1) shared[e - first] = before;
    __syncthreads();
    index_t rows = 0;
    if (group == 0 && here)
      rows = a.capacity >= 0 ? a.capacity : round_up(shared[thread], a.alignment);
    index_t inclusive = rows;
    for (int d = 1; d < 32; d *= 2) {
      index_t const left = __shfl_up_sync(~0u, inclusive, d);
      if (lane >= d) inclusive += left;
    }
    if (lane == 31) warp_sums[warp] = inclusive;
    __syncthreads();
    index_t start = carry;
    for (int w = 0; w < warp; ++w) start += warp_sums[w];
    if (group == 0 && here) a.offsets[e] = start + inclusive - rows;
    __syncthreads();
    if (thread == threads - 1) carry = start + inclusive;
    __syncthreads();
  }
  if (thread == 0) {
    a.offsets[a.experts] = carry;
    a.counts[a.experts] = static_cast<index_t>(atomicExch(a.control + 1, 0u));
    a.control[0] = 0;
  }
}

/// Whether this block is the last of its launch, which then sees what the others have written.
inline __device__ bool arrives_last(tile_sums const& a) {
  __shared__ bool last;
  __syncthreads();
  if (threadIdx.x == 0) {  // releases what its block has written, and acquires what others have
    __threadfence();
    last = atomicAdd(a.control, 1u) == gridDim.x - 1;
    __threadfence();
  }
  __syncthreads();
  return last;
}

/// Ids, places within the tile, what every tile begins with, counts and offsets: one launch, with
/// integer atomics alone, so every run gives the same bytes.
template <bool ChoiceMajor>
__global__ void __launch_bounds__(place_warps * 32) place_routes(place_arguments const a) {
  extern __shared__ std::int32_t next[];  // [warps, experts], and an entry for each thread
  int const thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  int const warp = thread / 32, lane = thread % 32, warps = threads / 32;
  std::int32_t* const mine = next + warp * a.sums.experts;
  std::uint32_t const begin =
      (blockIdx.x * static_cast<unsigned>(warps) + static_cast<unsigned>(warp)) *
      static_cast<unsigned>(a.steps * 32);

  std::int32_t id[place_steps], place[place_steps];
  std::uint32_t at[place_steps];
  unsigned wrong = 0;
#pragma unroll
  for (int s = 0; s < place_steps; ++s) {
    std::uint32_t const order = begin + static_cast<unsigned>(s * 32 + lane);
    id[s] = -1, at[s] = ~0u;
    if (s >= a.steps || order >= a.routes) continue;
    auto const k = static_cast<unsigned>(a.top_k);
    std::uint32_t const t = ChoiceMajor ? order % a.tokens : order / k;
    std::uint32_t const j = ChoiceMajor ? order / a.tokens : order % k;
    at[s] = t * k + j;
    id[s] = a.ids[t * a.pitch + j];
  }
  for (int i = thread; i < warps * a.sums.experts; i += threads) next[i] = 0;
  __syncthreads();

#pragma unroll
  for (int s = 0; s < place_steps; ++s) {
    if (s >= a.steps) break;
    if (id[s] < -1 || id[s] >= a.sums.experts) id[s] = -1, ++wrong;
    unsigned const same = __match_any_sync(~0u, id[s]);
    bool const leads = id[s] >= 0 && lane == __ffs(static_cast<int>(same)) - 1;
    std::int32_t const before = id[s] < 0 ? 0 : mine[id[s]];
    __syncwarp();
    place[s] = before + __popc(same & ((1u << lane) - 1u));
    if (leads) mine[id[s]] = before + __popc(same);
    __syncwarp();
  }
  if (wrong != 0) atomicAdd(a.sums.control + 1, wrong);
  __syncthreads();

  // Counts of the warps become what each begins with; their sums are the counts of the tile.
  for (int e = thread; e < a.sums.experts; e += threads) {
    std::int32_t before = 0;
    for (int w = 0; w < warps; ++w) {
      std::int32_t const count = next[w * a.sums.experts + e];
      next[w * a.sums.experts + e] = before;
      before += count;
    }
    a.sums.bases[index_t{blockIdx.x} * a.sums.experts + e] = before;
  }
  __syncthreads();
#pragma unroll
  for (int s = 0; s < place_steps; ++s)
    if (at[s] != ~0u) {
      a.ids_out[at[s]] = id[s];
      a.locations[at[s]] = id[s] < 0 ? -1 : mine[id[s]] + place[s];
    }

  if (arrives_last(a.sums)) scan_tiles(a.sums, next);
}

}  // namespace gpu::detail
}  // namespace v0
}  // namespace expar
