// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstdint>
#include <string>

#include <expar/element.hpp>

#include "problem.hpp"
#include "timing.hpp"

namespace bench {

// Inputs, and what outputs are compared with: one element to a thread, sums in double, and the rows
// that problem.hpp counted on the host. Slow, and nothing of what is measured.
using bf16 = expar::bfloat16;

__device__ inline std::uint32_t scramble(std::uint64_t seed, std::uint64_t i) {
  std::uint64_t z = (i + seed * 0x100000001b3u) * 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return static_cast<std::uint32_t>(z >> 32);
}
template <class F>
__global__ void for_each_index(std::int64_t n, F f) {
  auto const step = std::int64_t{gridDim.x} * blockDim.x;
  for (auto i = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < n; i += step) f(i);
}
template <class F>
void on_each(cudaStream_t s, std::int64_t n, F f) {
  auto const blocks = std::min<std::int64_t>((n + 127) / 128, 4096);
  if (n > 0) for_each_index<<<static_cast<unsigned>(blocks), 128, 0, s>>>(n, f);
  ok(cudaGetLastError(), "a launch");
}

/// bf16 numbers of both signs, 2^-4 to 2.
inline array<bf16> random_rows(cudaStream_t s, std::int64_t n, std::uint64_t seed) {
  array<bf16> a(n);
  on_each(s, n, [=, p = a.data()] __device__(std::int64_t i) {
    std::uint32_t const r = scramble(seed, static_cast<std::uint64_t>(i));
    p[i] = {static_cast<std::uint16_t>((r & 0x8000u) | ((123 + (r >> 16) % 5) << 7) | (r & 127u))};
  });
  return a;
}
/// Weights in (0, 1], which bf16 holds exactly, so that masks of bf16 lose nothing.
inline array<float> random_weights(cudaStream_t s, std::int64_t n, std::uint64_t seed) {
  array<float> a(n);
  on_each(s, n, [=, p = a.data()] __device__(std::int64_t i) {
    p[i] = static_cast<float>(1 + scramble(seed, static_cast<std::uint64_t>(i)) % 256) / 256;
  });
  return a;
}

/// The rows of a problem on the device, and comparisons with what follows from them.
class reference {
 public:
  reference(cudaStream_t s, problem const& p, std::vector<std::int32_t> const& row_of)
      : stream_(s), p_(p), row_of_(row_of), wrong_(std::vector<unsigned long long>{0}) {}

  /// rows[row(t,j)] is x[t], bit for bit.
  std::string encoded(bf16 const* x, bf16 const* rows) {
    auto const k = p_.top_k, h = p_.hidden;
    return count("elements of rows", p_.routes() * h,
                 [=, row_of = row_of_.data()] __device__(std::int64_t i) {
                   std::int64_t const row = row_of[i / h], t = i / h / k, c = i % h;
                   return row >= 0 && rows[row * h + c].bits != x[t * h + c].bits;
                 });
  }
  /// out[t] is the sum of weight * y[row(t,j)], rounded to bf16. `term`: what a product may be off
  /// by, as a share of it, where it is rounded on its way.
  std::string decoded(bf16 const* y, float const* weights, bf16 const* out, double term = 0) {
    auto const k = p_.top_k, h = p_.hidden;
    return count("elements of out", std::int64_t{p_.tokens} * h,
                 [=, row_of = row_of_.data()] __device__(std::int64_t i) {
                   double sum = 0, size = 0;
                   for (int j = 0; j < k; ++j) {
                     std::int64_t const at = i / h * k + j, row = row_of[at];
                     double const v =
                         row < 0 ? 0 : double{weights[at]} * expar::widen(y[row * h + i % h]);
                     sum += v, size += fabs(v);
                   }
                   double const bound = fabs(sum) * 0x1.01p-8 + size * (term + k * 0x1p-23);
                   return !(fabs(expar::widen(out[i]) - sum) <= bound);
                 });
  }
  /// d_rows[row(t,j)] is weight * d_out[t], rounded once, and d_weights[t,j] their inner product.
  std::string decoded_backward(bf16 const* d_out, bf16 const* y, float const* weights,
                               bf16 const* d_rows, float const* d_weights) {
    auto const k = p_.top_k, h = p_.hidden;
    std::string const wrong =
        count("elements of d_rows", p_.routes() * h,
              [=, row_of = row_of_.data()] __device__(std::int64_t i) {
                std::int64_t const row = row_of[i / h], t = i / h / k, c = i % h;
                if (row < 0) return false;
                float const d = weights[i / h] * expar::widen(d_out[t * h + c]);  // exact
                return d_rows[row * h + c].bits != expar::narrow<bf16>(d).bits;
              });
    if (!wrong.empty()) return wrong;
    return count("entries of d_weights", p_.routes(),
                 [=, row_of = row_of_.data()] __device__(std::int64_t i) {
                   double sum = 0, size = 0;
                   std::int64_t const row = row_of[i], t = i / k;
                   for (std::int64_t c = 0; row >= 0 && c < h; ++c) {
                     double const v =
                         double{expar::widen(y[row * h + c])} * expar::widen(d_out[t * h + c]);
                     sum += v, size += fabs(v);
                   }
                   return !(fabs(d_weights[i] - sum) <= size * h * 0x1p-24);
                 });
  }

  /// How many of n indices are wrong, as a sentence, or nothing.
  template <class F>
  std::string count(char const* what, std::int64_t n, F is_wrong) {
    ok(cudaMemsetAsync(wrong_.data(), 0, wrong_.bytes(), stream_), "cudaMemsetAsync");
    on_each(stream_, n, [=, wrong = wrong_.data()] __device__(std::int64_t i) {
      if (is_wrong(i)) atomicAdd(wrong, 1ull);
    });
    ok(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
    auto const found = wrong_.read()[0];
    return found == 0 ? "" : std::to_string(found) + " " + what + " are wrong";
  }

 private:
  cudaStream_t stream_;
  problem const& p_;
  array<std::int32_t> row_of_;
  array<unsigned long long> wrong_;
};

}  // namespace bench
