// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <type_traits>

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

/// A view of const elements is an argument that is read, any other one that is written.
template <class X>
void check_matrix(char const* what, tensor_view<X, 2> const& v, index_t rows,
                  char const* rows_because, index_t columns, char const* columns_because) {
  if constexpr (std::is_const_v<X>)
    check_view(what, v);
  else
    check_output(what, v);
  check_extent(what, v, 0, rows, rows_because);
  check_extent(what, v, 1, columns, columns_because);
}

}  // namespace expar::inline v0::detail
