// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/gpu/detail/arguments.cuh>
#include <expar/gpu/permute/detail/vectors.cuh>
#include <expar/gpu/plan/plan.cuh>
#include <expar/permute/detail/moves.hpp>

namespace expar::inline v0::gpu::detail {

using expar::detail::check_same_elements, expar::detail::choices_of, expar::detail::same_width,
    expar::detail::tokens_of;

/// The number of expert rows, where it is known here.
inline expar::detail::rule row_count_of(route_plan const& plan) {
  return plan.capacity() < 0
             ? expar::detail::any_extent
             : expar::detail::rule{plan.max_rows(), "the number of rows in the plan"};
}
inline expar::detail::rule as_many_as(index_t rows) {
  return {rows, "the number of rows"};
}

/// Weights go to rows as they are.
template <class W, class Out>
constexpr auto check_carried() {
  static_assert(std::is_same_v<std::remove_const_t<W>, Out>,
                "expar: weights are copied to rows, so both have the same element type");
}

/// Weights [T,k] of the routes of a plan.
template <class Context, class Weights>
auto read_weights(expar::detail::arguments<Context>& a, route_plan const& plan,
                  Weights const& weights) {
  auto const w = a.read("weights", weights, {tokens_of(plan), choices_of(plan)});
  return matrix_weights<expar::detail::element_of<decltype(w)>>{read_only(w)};
}

}  // namespace expar::inline v0::gpu::detail
