// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <cub/block/block_scan.cuh>

namespace bench {
namespace {  // for one source file

// The algorithms of others for plans: row_of [T,k] and offsets [E + 1] from ids, as peer_rows.cuh
// says. Up to 1023 experts.

/// After a stable radix sort of (id, route): where each expert begins, by binary search, and the
/// inverse of the order. vLLM sortAndScanExpert, MegaBlocks, and what PyTorch's argsort gives
/// SonicMoE, ScatterMoE and Hugging Face; in one kernel here, in two or more there.
__global__ void after_sort(std::int32_t const* sorted_ids, std::int32_t const* order, int routes,
                           int experts, std::int32_t* row_of, std::int32_t* offsets) {
  int const i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < routes) row_of[order[i]] = sorted_ids[i] < 0 ? -1 : i;
  if (i > experts) return;
  int first = 0, last = routes;  // the first id that is not below i; -1 stands behind all
  while (first < last) {
    int const middle = (first + last) / 2;
    if (static_cast<unsigned>(sorted_ids[middle]) < static_cast<unsigned>(i))
      first = middle + 1;
    else
      last = middle;
  }
  offsets[i] = first;
}

/// Counting in one block and shared memory, then a place for every route by an atomic addition in
/// global memory: an order that differs from run to run. SGLang and vLLM moe_align_block_size and
/// count_and_sort_expert_tokens_kernel; TensorRT-LLM, FastMoE and DeepEP take places the same way.
inline constexpr int align_threads = 1024;
__global__ void __launch_bounds__(align_threads)
    align_count(std::int32_t const* ids, int routes, int experts, std::int32_t* offsets,
                std::int32_t* next) {
  using scan = cub::BlockScan<int, align_threads>;
  __shared__ typename scan::TempStorage shared;
  __shared__ int counts[align_threads];
  int const thread = static_cast<int>(threadIdx.x);
  counts[thread] = 0;
  __syncthreads();
  for (int i = thread; i < routes; i += align_threads)
    if (ids[i] >= 0) atomicAdd(&counts[ids[i]], 1);
  __syncthreads();
  int before;
  scan(shared).ExclusiveSum(counts[thread], before);
  if (thread <= experts) offsets[thread] = before;
  if (thread < experts) next[thread] = before;
}
__global__ void align_place(std::int32_t const* ids, int routes, std::int32_t* next,
                            std::int32_t* row_of) {
  int const i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < routes) row_of[i] = ids[i] < 0 ? -1 : atomicAdd(next + ids[i], 1);
}

/// A mask [T,E] of ones, a running sum down every column with a block to each, and a look-up. Tutel
/// (fast_cumsum_sub_one), fairseq and GShard; with one mask for all choices, where they take one
/// for each. The mask is cleared beforehand.
__global__ void one_hot(std::int32_t const* ids, int routes, int k, int experts,
                        std::int32_t* mask) {
  int const i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < routes && ids[i] >= 0) mask[std::int64_t{i / k} * experts + ids[i]] = 1;
}
__global__ void __launch_bounds__(align_threads)
    sum_columns(std::int32_t* mask, int tokens, int experts, std::int32_t* counts) {
  using scan = cub::BlockScan<int, align_threads>;
  __shared__ typename scan::TempStorage shared;
  int const e = static_cast<int>(blockIdx.x);
  int before = 0;
  for (int t0 = 0; t0 < tokens; t0 += align_threads) {
    int const t = t0 + static_cast<int>(threadIdx.x);
    std::int32_t* const at = mask + std::int64_t{t} * experts + e;
    int place, all;
    scan(shared).ExclusiveSum(t < tokens ? *at : 0, place, all);
    if (t < tokens) *at = before + place;
    before += all;
    __syncthreads();
  }
  if (threadIdx.x == 0) counts[e] = before;
}
__global__ void __launch_bounds__(align_threads)
    look_up(std::int32_t const* ids, std::int32_t const* mask, std::int32_t const* counts,
            int routes, int k, int experts, std::int32_t* row_of, std::int32_t* offsets) {
  using scan = cub::BlockScan<int, align_threads>;
  __shared__ typename scan::TempStorage shared;
  __shared__ int begin[align_threads];
  int const thread = static_cast<int>(threadIdx.x);
  scan(shared).ExclusiveSum(thread < experts ? counts[thread] : 0, begin[thread]);
  __syncthreads();
  if (blockIdx.x == 0 && thread <= experts) offsets[thread] = begin[thread];
  int const i = static_cast<int>(blockIdx.x) * align_threads + thread;
  if (i < routes)
    row_of[i] = ids[i] < 0 ? -1 : begin[ids[i]] + mask[std::int64_t{i / k} * experts + ids[i]];
}

}  // namespace
}  // namespace bench
