// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <type_traits>

#include <expar/element.hpp>
#include <expar/tensor.hpp>

namespace expar::inline v0::detail {

/// A residual has the shape and the element type of the output. It is the output itself, or apart
/// from it.
template <class Accumulator, class R, class Out>
void check_residual(char const* what, tensor_view<R, 2> const& residual, char const* out_name,
                    tensor_view<Out, 2> const& out) {
  static_assert(std::is_same_v<std::remove_const_t<R>, Out>,
                "expar: a residual has the element type of the output");
  static_assert(std::is_same_v<accumulator_t<Out>, Accumulator>,
                "expar: with a residual, rows and output are summed in the same type: both double, "
                "or neither");
  check_view(what, residual);
  check_extent(what, residual, 0, out.extents[0], "the number of tokens in the output");
  check_extent(what, residual, 1, out.extents[1], "the row size of the output");
  bool const same_rows = out.extents[0] <= 1 || residual.strides[0] == out.strides[0];
  if (residual.data != out.data || !same_rows) check_apart(out_name, out, what, residual);
}

}  // namespace expar::inline v0::detail
