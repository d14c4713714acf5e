// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cuda_bf16.h>

#include <cstdint>
#include <cub/block/block_reduce.cuh>

namespace bench {
namespace {  // for one source file

// The algorithms of others, in code of our own, each in the form that its best public version has:
// 16-byte accesses, memory allocated beforehand, maps that others make given for free. What is
// compared is the algorithm, not somebody's build. Rows that are read or written once have the
// cache hints that ours have. Ids of -1 are allowed everywhere.

/// Eight bf16 numbers.
struct vector8 {
  uint4 bits;
  /// Of what is read once.
  __device__ static vector8 load(vector8 const* p) { return {__ldcs(&p->bits)}; }
  /// To what is not read soon.
  __device__ void store(vector8* p) const { __stcs(&p->bits, bits); }
  __device__ void widen(float (&to)[8]) const {
    unsigned const words[] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
    for (int i = 0; i < 4; ++i)
      to[2 * i] = __uint_as_float(words[i] << 16),
             to[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
  }
  __device__ static vector8 narrow(float const (&from)[8]) {
    unsigned words[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      __nv_bfloat162 const two = __floats2bfloat162_rn(from[2 * i], from[2 * i + 1]);
      memcpy(&words[i], &two, 4);
    }
    return {{words[0], words[1], words[2], words[3]}};
  }
};
inline constexpr int row_threads = 256;

/// Destination-major permute: a block to each row that is written, so every token row is read once
/// per choice. TensorRT-LLM / CUTLASS expandInputRowsKernel, FlashInfer moePermuteKernel, SGLang
/// shuffleRowsKernel, PyTorch's hidden[token_idx].
__global__ void __launch_bounds__(row_threads)
    destination_major_encode(vector8 const* x, std::int32_t const* route_of, int rows, int k,
                             int vectors, vector8* to) {
  for (std::int64_t row = blockIdx.x; row < rows; row += gridDim.x) {
    vector8 const* const from = x + std::int64_t{route_of[row] / k} * vectors;
    for (int v = static_cast<int>(threadIdx.x); v < vectors; v += row_threads)
      from[v].store(&to[row * vectors + v]);
  }
}

/// Combine with a block to each token, a loop over its choices and one gather in flight. CUTLASS /
/// TensorRT-LLM finalizeMoeRoutingKernel, FlashInfer moeUnpermuteKernel, TransformerEngine (which
/// sums in bf16; this one in fp32).
__global__ void __launch_bounds__(row_threads)
    block_per_token_decode(vector8 const* y, std::int32_t const* row_of, float const* weights,
                           int k, int vectors, vector8* out) {
  std::int64_t const t = blockIdx.x;
  for (int v = static_cast<int>(threadIdx.x); v < vectors; v += row_threads) {
    float sum[8] = {};
#pragma unroll 1
    for (int j = 0; j < k; ++j) {
      std::int64_t const row = row_of[t * k + j];
      if (row < 0) continue;
      float a[8];
      vector8::load(&y[row * vectors + v]).widen(a);
#pragma unroll
      for (int i = 0; i < 8; ++i) sum[i] += weights[t * k + j] * a[i];
    }
    vector8::narrow(sum).store(&out[t * vectors + v]);
  }
}

/// Combine in two passes: weighted rows to [T,k,H], rounded, and then their sums. MegaBlocks
/// (padded_scatter, then sum), ScatterMoE, vLLM (unpermute, then moe_sum).
__global__ void __launch_bounds__(row_threads)
    two_pass_scatter(vector8 const* y, std::int32_t const* row_of, float const* weights,
                     int vectors, vector8* parts) {
  std::int64_t const at = blockIdx.x, row = row_of[at];
  for (int v = static_cast<int>(threadIdx.x); v < vectors; v += row_threads) {
    float a[8] = {};
    if (row >= 0) vector8::load(&y[row * vectors + v]).widen(a);
#pragma unroll
    for (int i = 0; i < 8; ++i) a[i] *= weights[at];
    parts[at * vectors + v] = vector8::narrow(a);
  }
}
__global__ void __launch_bounds__(row_threads)
    two_pass_sum(vector8 const* parts, int k, int vectors, vector8* out) {
  std::int64_t const t = blockIdx.x;
  for (int v = static_cast<int>(threadIdx.x); v < vectors; v += row_threads) {
    float sum[8] = {};
    for (int j = 0; j < k; ++j) {
      float a[8];
      vector8::load(&parts[(t * k + j) * vectors + v]).widen(a);
#pragma unroll
      for (int i = 0; i < 8; ++i) sum[i] += a[i];
    }
    vector8::narrow(sum).store(&out[t * vectors + v]);
  }
}

/// Backward of combine with a block to each expert row, so d_out is read once per choice.
/// TransformerEngine's moe_unpermute backward, with wider blocks than its 32 threads.
__global__ void __launch_bounds__(row_threads)
    destination_major_backward(vector8 const* d_out, vector8 const* y, std::int32_t const* route_of,
                               float const* weights, int k, int vectors, vector8* d_rows,
                               float* d_weights) {
  using reduce = cub::BlockReduce<float, row_threads>;
  __shared__ typename reduce::TempStorage shared;
  std::int64_t const row = blockIdx.x, at = route_of[row];
  float dot = 0;
  for (int v = static_cast<int>(threadIdx.x); v < vectors; v += row_threads) {
    float d[8], a[8];
    d_out[at / k * vectors + v].widen(d);
    vector8::load(&y[row * vectors + v]).widen(a);
#pragma unroll
    for (int i = 0; i < 8; ++i) dot += d[i] * a[i], d[i] *= weights[at];
    vector8::narrow(d).store(&d_rows[row * vectors + v]);
  }
  dot = reduce(shared).Sum(dot);
  if (threadIdx.x == 0) d_weights[at] = dot;
}

}  // namespace
}  // namespace bench
