// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include <expar/gpu/plan/plan.cuh>

namespace expar::inline v0::gpu::detail {

/// The plan of a launch whose blocks own tiles of 2^bits tokens, at least 32. Routes of a tile take
/// their places in the order of tokens, and if choice_major choice by choice, as if each choice had
/// tiles of its own.
struct token_tiles {
  index_t tokens;
  int top_k, bits, tiles;
  bool plans, choice_major;
  route_plan::arrays to;  // where it plans

  __host__ __device__ int size() const { return 1 << bits; }
  /// The tokens that name an expert are a set of bits: words per expert.
  __host__ __device__ int words() const { return size() / 32; }
};

/// A token of the tile names an expert. A set does not depend on the order in which it is made.
inline __device__ void name_expert(token_tiles const& a, unsigned* table, int expert, int token) {
  atomicOr(table + expert * a.words() + token / 32, 1u << token % 32);
}
inline __device__ void clear_table(token_tiles const& a, unsigned* table) {
  int const threads = static_cast<int>(blockDim.x), size = a.to.sums.experts * a.words();
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < size; i += threads) table[i] = 0;
  __syncthreads();
}

/// Places of the routes of choices [j0, j1), and how many each expert has of them, once the table
/// holds them. A token names an expert at most once.
inline __device__ void place_choices(token_tiles const& a, unsigned const* table, int tile, int j0,
                                     int j1) {
  auto const thread = threadIdx.x, threads = blockDim.x;
  int const words = a.words(), experts = a.to.sums.experts;
  auto const choices = static_cast<unsigned>(j1 - j0);
  index_t const first = index_t{tile} << a.bits;
  std::int32_t* const bases =
      a.to.sums.bases + (index_t{a.choice_major ? j0 : 0} * a.tiles + tile) * experts;
#pragma unroll 1
  for (int e = static_cast<int>(thread); e < experts; e += static_cast<int>(threads)) {
    int count = 0;
#pragma unroll 1
    for (int w = 0; w < words; ++w) count += __popc(table[e * words + w]);
    bases[e] = count;
  }
#pragma unroll 1
  for (unsigned r = thread; r < choices << a.bits; r += threads) {
    auto const token = static_cast<int>(r / choices);
    if (first + token >= a.tokens) break;
    index_t const at = (first + token) * a.top_k + j0 + static_cast<int>(r % choices);
    int const id = a.to.ids[at];
    int place = -1;
    if (id >= 0) {
      unsigned const* const bits = table + id * words;
      place = __popc(bits[token / 32] & ((1u << token % 32) - 1));
#pragma unroll 1
      for (int w = 0; w < token / 32; ++w) place += __popc(bits[w]);
    }
    a.to.locations[at] = place;
  }
}

/// The plan of a tile whose ids stand in the plan. Where `named`, the table holds all of its
/// routes.
inline __device__ void place_tile(token_tiles const& a, unsigned* table, int tile, bool named) {
  __syncthreads();
  if (!a.choice_major && named) return place_choices(a, table, tile, 0, a.top_k);
  int const step = a.choice_major ? 1 : a.top_k;
  for (int j0 = 0; j0 < a.top_k; j0 += step) {
    clear_table(a, table);
    for (int i = static_cast<int>(threadIdx.x); i < a.size(); i += static_cast<int>(blockDim.x)) {
      index_t const t = (index_t{tile} << a.bits) + i;
      for (int j = j0; t < a.tokens && j < j0 + step; ++j)
        if (int const id = a.to.ids[t * a.top_k + j]; id >= 0) name_expert(a, table, id, i);
    }
    __syncthreads();
    place_choices(a, table, tile, j0, j0 + step);
    __syncthreads();
  }
}

}  // namespace expar::inline v0::gpu::detail
