// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include <expar/gpu/permute/detail/vectors.cuh>

#include "timing.hpp"

namespace bench {
namespace {  // for one source file

// What an operation could reach at most: the same bytes, moved from and to contiguous memory.
using vector16 = expar::gpu::detail::pack<unsigned, 4>;
inline constexpr int stream_threads = 256, stream_flight = 4;

__global__ void empty_kernel() {}

/// Reads n vectors once and writes them to k places, n vectors apart. k = 1: a copy.
__global__ void __launch_bounds__(stream_threads)
    one_to_many(unsigned const* from, unsigned* to, std::int64_t n, int k) {
  auto const base = std::int64_t{blockIdx.x} * stream_threads * stream_flight + threadIdx.x;
  vector16 x[stream_flight];
#pragma unroll
  for (int u = 0; u < stream_flight; ++u) {
    auto const at = base + u * stream_threads;
    if (at < n) x[u] = vector16::load(from + 4 * at);
  }
  for (int j = 0; j < k; ++j)
#pragma unroll
    for (int u = 0; u < stream_flight; ++u) {
      auto const at = base + u * stream_threads;
      if (at < n) x[u].store(to + 4 * (j * n + at));
    }
}

/// Reads n vectors from k places, four of them at once, and writes their exclusive or.
__global__ void __launch_bounds__(stream_threads)
    many_to_one(unsigned const* from, unsigned* to, std::int64_t n, int k) {
  auto const at = std::int64_t{blockIdx.x} * stream_threads + threadIdx.x;
  if (at >= n) return;
  vector16 sum{};
  for (int j0 = 0; j0 < k; j0 += stream_flight) {
    vector16 x[stream_flight];
#pragma unroll
    for (int u = 0; u < stream_flight; ++u)
      if (j0 + u < k) x[u] = vector16::load(from + 4 * ((j0 + u) * n + at));
#pragma unroll
    for (int u = 0; u < stream_flight; ++u)
      if (j0 + u < k)
#pragma unroll
        for (int i = 0; i < 4; ++i) sum.at[i] ^= x[u].at[i];
  }
  sum.store(to + 4 * at);
}

void stream_out(cudaStream_t s, unsigned char const* from, unsigned char* to, std::int64_t bytes,
                int k) {
  one_to_many<<<blocks_for(bytes / 16, stream_threads * stream_flight), stream_threads, 0, s>>>(
      reinterpret_cast<unsigned const*>(from), reinterpret_cast<unsigned*>(to), bytes / 16, k);
}
void stream_in(cudaStream_t s, unsigned char const* from, unsigned char* to, std::int64_t bytes,
               int k) {
  many_to_one<<<blocks_for(bytes / 16, stream_threads), stream_threads, 0, s>>>(
      reinterpret_cast<unsigned const*>(from), reinterpret_cast<unsigned*>(to), bytes / 16, k);
}

}  // namespace
}  // namespace bench
