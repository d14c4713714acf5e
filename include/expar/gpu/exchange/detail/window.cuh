// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/gpu/exchange/window_layout.hpp>
#include <expar/gpu/permute/detail/dots.cuh>

namespace expar::inline v0::gpu::detail {

using expar::detail::destination;
using expar::detail::window_rule;
using expar::detail::window_shape;

/// The rows of all experts in the windows of their owners, beside tensor_rows.
template <class T>
struct peer_rows {
  expar::detail::peer_rows<T> rows;
  __device__ T* operator()(plan_view const&, int expert, index_t place) const {
    return rows(expert, place);
  }
};

inline constexpr int window_threads = 256, seat_threads = 512;

/// First phase: says the counts of this rank to all, and keeps a copy of the route weights.
template <window_view View, class W>
__global__ void __launch_bounds__(window_threads)
    publish_counts(View const window, window_shape const shape, index_t const* counts,
                   index_t tokens, tensor_view<W const, 2> const weights, W* kept) {
  index_t const first = index_t{blockIdx.x} * window_threads + threadIdx.x;
  index_t const step = index_t{gridDim.x} * window_threads;
  expar::detail::publish(window, shape, 0, counts, tokens, {first, step});
  index_t const k = weights.extents[1];
  for (index_t i = first; i < weights.extents[0] * k; i += step)
    kept[i] = weights.row(i / k)[i % k];
}

/// What the second phase makes of the counts of all ranks.
struct seats {
  destination* to;   // [experts]: where the rows of this rank go
  index_t* starts;   // [experts + 1]: rows before an expert, in the order of all ranks and experts
  index_t* offsets;  // [locals + 1], of the local experts, not beyond the window
  index_t* counts;   // [locals], of rows that the window has
  index_t* needed;   // [2]: rows of the fullest rank, and rows of this one that found no place
};

/// Second phase, one block: E x R counts to places.
template <window_view View>
__global__ void __launch_bounds__(seat_threads)
    seat_experts(View const window, window_shape const shape, window_rule const rule,
                 seats const out) {
  constexpr int warps = seat_threads / 32;
  __shared__ index_t warp_sums[warps], carry;
  __shared__ unsigned long long needed, lost;
  int const thread = static_cast<int>(threadIdx.x), lane = thread % 32, warp = thread / 32;
  block_placement const place = shape.place;
  int const me = window.rank(), experts = place.experts;
  auto const* const said = static_cast<index_t const*>(window.peer(me, shape.said_by(0, 0)));
  if (thread == 0) carry = 0, needed = lost = 0;
  __syncthreads();
  for (int base = 0; base < experts; base += seat_threads) {
    int const e = base + thread;
    expar::detail::expert_room room{};
    if (e < experts) room = expar::detail::room_of(shape, rule, said, e, me);
    index_t inclusive = room.size;
    for (int d = 1; d < 32; d *= 2) {
      index_t const left = __shfl_up_sync(~0u, inclusive, d);
      if (lane >= d) inclusive += left;
    }
    if (lane == 31) warp_sums[warp] = inclusive;
    __syncthreads();
    index_t start = carry + inclusive - room.size;
    for (int w = 0; w < warp; ++w) start += warp_sums[w];
    if (e < experts) {
      out.starts[e] = start;
      out.to[e] = {static_cast<std::byte*>(window.peer(place.owner(e), 0)), start + room.before};
    }
    __syncthreads();
    if (thread == seat_threads - 1) carry = start + room.size;
    __syncthreads();
  }
  if (thread == 0) out.starts[experts] = carry;
  __syncthreads();

  for (int e = thread; e < experts; e += seat_threads)
    out.to[e].first_row -= out.starts[place.first(place.owner(e))];
  for (int p = thread; p < place.ranks; p += seat_threads)
    atomicMax(&needed, static_cast<unsigned long long>(out.starts[place.first(p + 1)] -
                                                       out.starts[place.first(p)]));
  int const first = place.first(me), locals = place.count(me);
  for (int l = thread; l <= locals; l += seat_threads) {
    index_t const start = out.starts[first + l] - out.starts[first];
    out.offsets[l] = start < shape.rows ? start : shape.rows;
    if (l == locals) continue;
    index_t const filled = expar::detail::room_of(shape, rule, said, first + l, me).filled;
    index_t const room = shape.rows - out.offsets[l];
    out.counts[l] = filled < room ? filled : room;
    if (filled > room) atomicAdd(&lost, static_cast<unsigned long long>(filled - room));
  }
  __syncthreads();
  if (thread == 0) {
    out.needed[0] = static_cast<index_t>(needed);
    out.needed[1] = static_cast<index_t>(lost);
  }
}

/// Zero in the rows that fill up the local experts of a ragged layout.
template <int N>
__global__ void __launch_bounds__(scatter_threads)
    clear_filling(plan_view const locals, tensor_rows<unsigned char> const rows,
                  scatter_shape const shape) {
  clear_rows<unsigned char, N>(locals, rows, shape, blockIdx.x);
}

inline void clear_filling_rows(context const& ctx, char const* place, int locals, int alignment,
                               seats const& s, tensor_view<unsigned char, 2> rows) {
  if (alignment == 1) return;
  with_width<16>([&](int n) { return fits(rows, n); },
                 [&](auto n) {
                   plan_view mine{};
                   mine.counts = s.counts, mine.offsets = s.offsets;
                   mine.capacity = -1, mine.experts = locals;
                   index_t const bytes = (alignment - 1) * rows.extents[1];
                   int const parts = static_cast<int>(bytes / 65536 < 64 ? bytes / 65536 + 1 : 64);
                   launch(ctx, place, clear_filling<n.value>, index_t{locals} * parts,
                          scatter_threads, 0, mine, tensor_rows{rows},
                          scatter_shape{rows.extents[1] / n, 0, {1, 0}, parts});
                 });
}

}  // namespace expar::inline v0::gpu::detail
