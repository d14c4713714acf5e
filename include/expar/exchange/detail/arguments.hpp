// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <type_traits>

#include <expar/detail/arguments.hpp>
#include <expar/expert_shape.hpp>
#include <expar/tensor.hpp>

namespace expar::inline v0::detail {

/// A view of rows that an exchange reads: of the element type that its batch has.
template <class T, class Context, class X>
tensor_view<T const, 2> rows_view(Context const& ctx, X const& x) {
  auto const v = as_view<2>(ctx, x);
  static_assert(std::is_same_v<element_of<decltype(v)>, T>,
                "expar: these rows must have the element type of the batch");
  return v;
}

/// A view of rows that an exchange writes whole.
template <class Context, class X>
auto overwritten_rows(Context const& ctx, X& x) {
  static_assert(!is_added<std::remove_cv_t<X>>,
                "expar: d_y is overwritten; add_to() serves d_tokens and d_weights");
  return as_output<2>(ctx, x);
}

/// What the tensors that go with a batch must be.
template <class Batch>
rule tokens_of_batch(Batch const& batch) {
  return {batch.plan().tokens(), "the number of tokens in the batch"};
}
template <class Batch>
rule rows_of_batch(Batch const& batch) {
  return {batch.row_count(), "the number of rows in the batch"};
}
inline rule columns_of(expert_shape const& shape) {
  return {shape.hidden, "hidden"};
}
inline rule top_k_of(expert_shape const& shape) {
  return {shape.top_k, "top_k"};
}

/// The routes of a call to dispatch or prepare, named among its arguments.
template <class W, class Context, class Routes>
auto route_weights_of(arguments<Context>& a, expert_shape const& shape, Routes const& routes,
                      index_t tokens) {
  auto const w =
      a.read("weights", routes.weights, {{tokens, "the number of tokens"}, top_k_of(shape)});
  static_assert(std::is_same_v<element_of<decltype(w)>, W>,
                "expar: the batch keeps weights of the element type that the routes have");
  return w;
}

}  // namespace expar::inline v0::detail
