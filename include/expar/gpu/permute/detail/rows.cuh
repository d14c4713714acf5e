// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/gpu/plan/plan.cuh>

namespace expar::inline v0::gpu::detail {

/// Where the rows of the experts stand: the row that has a place among those of its expert, or null
/// where there is none. This is a tensor in the layout of a plan, whose last rows may be missing.
template <class T>
struct tensor_rows {
  tensor_view<T, 2> view;
  __device__ T* operator()(plan_view const& plan, int expert, index_t place) const {
    index_t const row = plan.offsets[expert] + place;
    return row < view.extents[0] ? view.row(row) : nullptr;
  }
};
template <class T>
tensor_rows(tensor_view<T, 2>) -> tensor_rows<T>;

/// The row of a route; null: no expert, dropped, or missing.
template <class Rows>
__device__ auto row_of(plan_view const& plan, Rows const& rows, index_t t, int j)
    -> decltype(rows(plan, 0, 0)) {
  index_t const place = j < plan.top_k ? plan.location(t, j) : -1;
  return place < 0 ? nullptr : rows(plan, plan.ids[t * plan.top_k + j], place);
}

/// A pointer of another lane.
template <class T>
__device__ T* shuffle(T* p, int lane) {
  return reinterpret_cast<T*>(__shfl_sync(~0u, reinterpret_cast<unsigned long long>(p), lane));
}

}  // namespace expar::inline v0::gpu::detail
