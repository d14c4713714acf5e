// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/gpu/permute/detail/vectors.cuh>
#include <expar/router/score.hpp>

namespace expar::inline v0::gpu::detail {

/// How the lanes that share a token hold its experts. Of 8 lanes each has runs of 4, so that a run
/// is one access; of 32 lanes each has single ones. Either way expert e belongs to one of 32 places
/// e mod 32, which are the partial sums of expar::detail::interleaved_sum(). Groups of lanes do not
/// cross warps, and all lanes of a warp take part in every exchange.
template <int Lanes, int Values>
struct lane_layout {
  static constexpr int lanes = Lanes, values = Values, run = 32 / Lanes;
  __device__ static int expert(int lane, int v) { return v / run * 32 + lane * run + v % run; }
  /// Whether one of the 32 experts that stand beside value v of all lanes is there.
  __device__ static bool begins(int v, int experts) { return v / run * 32 < experts; }
  __device__ static int lane_of(int expert) { return expert / run % Lanes; }
};

/// Blocks of 256 threads that a multiprocessor is to hold of a kernel that keeps a token in
/// registers, which bounds them to 80, 128 or 255.
template <class Layout, class A>
inline constexpr int resident_gates = sizeof(A) > 4       ? (Layout::values > 16 ? 1 : 2)
                                      : Layout::lanes > 8 ? (Layout::values > 16 ? 1 : 2)
                                                          : 3;

/// The logits of one token; -inf for NaN, which means the same, and behind the last expert.
template <class Layout, class T, class A>
__device__ void load_row(T const* row, int experts, int lane, bool vectors,
                         A (&x)[Layout::values]) {
  auto const logit = [](T from) {
    A const a = widen_fast(from);
    return expar::detail::masked(a) ? -expar::detail::infinity<A> : a;
  };
#pragma unroll
  for (int v = 0; v < Layout::values; ++v) x[v] = -expar::detail::infinity<A>;
  if constexpr (Layout::run == 4 && (sizeof(T) & (sizeof(T) - 1)) == 0)
    if (vectors) {
#pragma unroll
      for (int v = 0; v < Layout::values; v += 4)
        if (int const e = Layout::expert(lane, v); e < experts) {
          auto const p = pack<T, 4>::load(row + e);
#pragma unroll
          for (int i = 0; i < 4; ++i) x[v + i] = logit(p.at[i]);
        }
      return;
    }
#pragma unroll
  for (int v = 0; v < Layout::values; ++v)
    if (int const e = Layout::expert(lane, v); e < experts) x[v] = logit(row[e]);
}

template <class Layout, class T, class A>
__device__ void store_row(A const (&x)[Layout::values], int experts, int lane, bool vectors,
                          T* row) {
  auto const narrowed = [](A a) { return narrow<T>(static_cast<accumulator_t<T>>(a)); };
  if constexpr (Layout::run == 4 && (sizeof(T) & (sizeof(T) - 1)) == 0)
    if (vectors) {
#pragma unroll
      for (int v = 0; v < Layout::values; v += 4)
        if (int const e = Layout::expert(lane, v); e < experts) {
          pack<T, 4> p;
#pragma unroll
          for (int i = 0; i < 4; ++i) p.at[i] = narrowed(x[v + i]);
          p.store(row + e);
        }
      return;
    }
#pragma unroll
  for (int v = 0; v < Layout::values; ++v)
    if (int const e = Layout::expert(lane, v); e < experts) row[e] = narrowed(x[v]);
}

/// The largest of what the lanes of a token have.
template <class Layout, class A>
__device__ A largest(A most) {
#pragma unroll
  for (int d = Layout::lanes / 2; d > 0; d /= 2) {
    A const other = __shfl_xor_sync(~0u, most, d);
    most = other > most ? other : most;
  }
  return most;
}
template <class Layout, class A>
__device__ A largest_of_lane(A const (&x)[Layout::values]) {
  A most = x[0];
#pragma unroll
  for (int v = 1; v < Layout::values; ++v) most = x[v] > most ? x[v] : most;
  return most;
}

/// The end of expar::detail::interleaved_sum(), given the partial sums that lanes have.
template <class Layout, class A>
__device__ A sum_of_parts(A (&part)[Layout::run]) {
#pragma unroll
  for (int d = Layout::lanes / 2; d > 0; d /= 2)
#pragma unroll
    for (int i = 0; i < Layout::run; ++i) part[i] = add(part[i], __shfl_xor_sync(~0u, part[i], d));
#pragma unroll
  for (int half = Layout::run / 2; half > 0; half /= 2)
#pragma unroll
    for (int i = 0; i < half; ++i) part[i] = add(part[i], part[i + half]);
  return part[0];
}

/// What all experts of a token share in a separable score.
template <class Score, class A>
struct token_score {
  Score score;
  A most, inverse;

  __device__ A term(A z) const {
    return expar::detail::zero_unless(!expar::detail::masked(z), score.term(z, most));
  }
  __device__ A of(A z) const {
    if constexpr (Score::normalized)
      return expar::detail::multiply(term(z), inverse);
    else
      return term(z);
  }
};
/// Given the largest logit of the lane. The lane has put its logits into the row: reading them from
/// there leaves the compiler no reason to work on all of them at once, and registers to others.
template <class Layout, class Score, class A>
__device__ token_score<Score, A> score_token(Score score, int experts, int lane, A most,
                                             A const* row) {
  token_score<Score, A> shared{score, 0, 0};
  if constexpr (Score::normalized) {
    shared.most = largest<Layout>(most);
    A part[Layout::run] = {};
#pragma unroll(8 / Layout::run)
    for (int e = lane * Layout::run; e < round_up(experts, 32); e += 32)
#pragma unroll
      for (int i = 0; i < Layout::run; ++i) part[i] = add(part[i], shared.term(row[e + i]));
    shared.inverse = expar::detail::inverse_of_sum(sum_of_parts<Layout>(part));
  }
  return shared;
}

/// Writes x to the row, of which no other lane knows.
template <class Layout, class A>
__device__ void put_row(A const (&x)[Layout::values], int experts, int lane, A* row) {
#pragma unroll
  for (int v = 0; v < Layout::values; ++v)
    if (Layout::begins(v, experts)) row[Layout::expert(lane, v)] = x[v];
}

/// Calls f with the layout that holds so many experts, and of 32 lanes if `wide`; false if there is
/// none: more than 2048 floats or 1024 doubles do not fit the registers of a warp.
template <class A, class F>
bool with_layout(int experts, bool wide, F f) {
  if (wide && experts <= 256)
    f(lane_layout<32, 8>{});
  else if (experts <= 64)
    f(lane_layout<8, 8>{});
  else if (experts <= 128)
    f(lane_layout<8, 16>{});
  else if (experts <= 256)
    f(lane_layout<8, 32>{});
  else if (experts <= 512)
    f(lane_layout<32, 16>{});
  else if (experts <= 1024)
    f(lane_layout<32, 32>{});
  else if constexpr (sizeof(A) <= 4) {
    if (experts > 2048) return false;
    f(lane_layout<32, 64>{});
  } else {
    return false;
  }
  return true;
}

}  // namespace expar::inline v0::gpu::detail
