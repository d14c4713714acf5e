// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <type_traits>

#include <expar/plan/layout.hpp>

namespace expar::inline v0::gpu::detail {

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

/// Turns the counts of the tiles into what each begins with, and gives the totals. A thread has
/// `Width` neighbouring experts; threads are groups with a share of the tiles each. `shared` holds
/// Width numbers per thread.
template <int Width>
__device__ void scan_columns(tile_sums const& a, std::int32_t* shared) {
  using word = std::conditional_t<Width == 4, int4, int>;
  struct column {
    std::int32_t at[Width];
  };
  constexpr int batch = Width == 4 ? 8 : 16;  // loads in flight
  int const thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  int const units = a.experts / Width, width = units < threads ? units : threads;
  int const groups = threads / width, group = thread / width;
  int const share = (a.tiles + groups - 1) / groups;
  for (int first = 0; first < units; first += width) {
    int const unit = first + thread % width;
    bool const here = group < groups && unit < units;
    int const begin = here ? group * share : 0;
    int const end = !here ? 0 : begin + share < a.tiles ? begin + share : a.tiles;
    std::int32_t* const counts = a.bases + index_t{unit} * Width;
    auto const load = [&](int tile, column(&c)[batch]) {
#pragma unroll
      for (int i = 0; i < batch; ++i) {
        word w{};
        if (tile + i < end)
          w = __ldcg(reinterpret_cast<word const*>(counts + index_t{tile + i} * a.experts));
        memcpy(&c[i], &w, sizeof w);
      }
    };
    column sum{};
#pragma unroll 1
    for (int tile = begin; tile < end; tile += batch) {
      column c[batch];
      load(tile, c);
#pragma unroll
      for (int i = 0; i < batch * Width; ++i) sum.at[i % Width] += c[i / Width].at[i % Width];
    }
#pragma unroll
    for (int x = 0; x < Width; ++x) shared[thread * Width + x] = sum.at[x];
    __syncthreads();
    column before{};
    for (int g = 0; here && g < group; ++g)
#pragma unroll
      for (int x = 0; x < Width; ++x)
        before.at[x] += shared[(g * width + thread % width) * Width + x];
#pragma unroll 1
    for (int tile = begin; tile < end; tile += batch) {
      column c[batch];
      load(tile, c);
#pragma unroll
      for (int i = 0; i < batch; ++i) {
        if (tile + i >= end) break;
        word w;
        memcpy(&w, &before, sizeof w);
        *reinterpret_cast<word*>(counts + index_t{tile + i} * a.experts) = w;
#pragma unroll
        for (int x = 0; x < Width; ++x) before.at[x] += c[i].at[x];
      }
    }
    if (here && group == groups - 1)
#pragma unroll
      for (int x = 0; x < Width; ++x) a.counts[unit * Width + x] = before.at[x];
    __syncthreads();
  }
}

/// Where the rows of each expert begin, from the counts, which this block has written.
inline __device__ void make_offsets(tile_sums const& a) {
  __shared__ index_t warp_sums[place_warps];
  int const thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  int const lane = thread % 32, warp = thread / 32;
  index_t carry = 0;
  for (int first = 0; first < a.experts; first += threads) {
    int const e = first + thread;
    index_t rows = 0;
    if (e < a.experts) rows = a.capacity >= 0 ? a.capacity : round_up(a.counts[e], a.alignment);
    index_t inclusive = rows;
    for (int d = 1; d < 32; d *= 2) {
      index_t const left = __shfl_up_sync(~0u, inclusive, d);
      if (lane >= d) inclusive += left;
    }
    if (lane == 31) warp_sums[warp] = inclusive;
    __syncthreads();
    index_t start = carry;
    for (int w = 0; w < threads / 32; ++w) {
      if (w < warp) start += warp_sums[w];
      carry += warp_sums[w];
    }
    if (e < a.experts) a.offsets[e] = start + inclusive - rows;
    __syncthreads();
  }
  if (thread == 0) a.offsets[a.experts] = carry;
}

/// What the other tiles begin with, the counts and the offsets: made by the block that arrives
/// last. `shared` holds as many numbers as there are threads, and four times as many for 128
/// experts and more.
inline __device__ void scan_tiles(tile_sums const& a, std::int32_t* shared) {
  if (a.experts >= 128 && a.experts % 4 == 0)
    scan_columns<4>(a, shared);
  else
    scan_columns<1>(a, shared);
  make_offsets(a);
  if (threadIdx.x == 0) {
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

}  // namespace expar::inline v0::gpu::detail
