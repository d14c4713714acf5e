// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <type_traits>

#include <expar/element.hpp>
#include <expar/gpu/permute/detail/rows.cuh>

namespace expar::inline v0::gpu::detail {

// What goes from a route to its row besides the elements of a token: put() for a route that may
// have a row, clear() for a row that no route has.

struct carry_nothing {
  __device__ void put(plan_view const&, index_t, int) const {}
  __device__ void clear(plan_view const&, int, index_t) const {}
};

/// The weight of the route, copied.
template <class W, class Rows>
struct carry_weights {
  tensor_view<W const, 2> from;
  Rows to;
  __device__ void put(plan_view const& plan, index_t t, int j) const {
    if (W* const row = row_of(plan, to, t, j)) *row = from.row(t)[j];
  }
  __device__ void clear(plan_view const& plan, int expert, index_t place) const {
    if (W* const row = to(plan, expert, place)) *row = W{};
  }
};
template <class W, class Rows>
carry_weights(tensor_view<W const, 2>, Rows) -> carry_weights<W, Rows>;

/// The number that stands at the row, to the weight of the route; zero where there is no row.
template <class W, class Rows>
struct carry_back {
  Rows from;
  tensor_view<W, 2> to;
  __device__ void put(plan_view const& plan, index_t t, int j) const {
    auto const* const row = row_of(plan, from, t, j);
    using A = std::remove_cvref_t<decltype(*row)>;
    to.row(t)[j] = narrow<W>(
        static_cast<accumulator_t<W>>(row != nullptr ? widen<A>(*row) : accumulator_t<A>{0}));
  }
  __device__ void clear(plan_view const&, int, index_t) const {}
};
template <class W, class Rows>
carry_back(Rows, tensor_view<W, 2>) -> carry_back<W, Rows>;

/// The number of the token, and of the choice; -1 where there is no route.
template <class Rows>
struct carry_numbers {
  Rows tokens, choices;
  __device__ void put(plan_view const& plan, index_t t, int j) const {
    if (std::int32_t* const row = row_of(plan, tokens, t, j)) *row = static_cast<std::int32_t>(t);
    if (std::int32_t* const row = row_of(plan, choices, t, j)) *row = j;
  }
  __device__ void clear(plan_view const& plan, int expert, index_t place) const {
    if (std::int32_t* const row = tokens(plan, expert, place)) *row = -1;
    if (std::int32_t* const row = choices(plan, expert, place)) *row = -1;
  }
};

inline constexpr int carry_threads = 256;

/// A thread for every route.
template <class Carry>
__device__ void put_routes(plan_view const& plan, Carry const& carry, unsigned block) {
  unsigned const at = block * unsigned{carry_threads} + threadIdx.x;
  auto const k = static_cast<unsigned>(plan.top_k);
  if (at < static_cast<unsigned>(plan.tokens) * k)
    carry.put(plan, at / k, static_cast<int>(at % k));
}
inline index_t carry_blocks(route_plan const& plan) {
  return (plan.tokens() * plan.top_k() + carry_threads - 1) / carry_threads;
}

/// A thread for every route; behind their blocks, one block for each of `fillers`: the rows of an
/// expert that no route has, and at the number of experts the rows behind the layout up to `rows`.
template <class Carry>
__global__ void __launch_bounds__(carry_threads)
    carry_routes(plan_view const plan, Carry const carry, int route_blocks, index_t rows) {
  if (static_cast<int>(blockIdx.x) < route_blocks) return put_routes(plan, carry, blockIdx.x);
  int const e = static_cast<int>(blockIdx.x) - route_blocks;
  bool const behind = e == plan.experts;
  index_t const end = (behind ? rows : plan.offsets[e + 1]) - plan.offsets[e];
  for (index_t l = (behind ? 0 : plan.kept(e)) + threadIdx.x; l < end; l += carry_threads)
    carry.clear(plan, e, l);
}

/// Enqueues carry_routes().
template <class Carry>
void carry(context const& ctx, char const* place, route_plan const& plan, Carry const& what,
           int fillers, index_t rows) {
  if (plan.experts() == 0) return;
  index_t const blocks = carry_blocks(plan);
  launch(ctx, place, carry_routes<Carry>, blocks + fillers, carry_threads, 0, plan.view(), what,
         static_cast<int>(blocks), rows);
}

/// A number to every row: a tensor of rank 1 as rows of one element.
template <class T>
tensor_rows<T> number_rows(tensor_view<T, 1> const& v) {
  return {make_view(v.data, v.extents[0], index_t{1}, v.strides[0])};
}

}  // namespace expar::inline v0::gpu::detail
