// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <type_traits>

#include <expar/error.hpp>
#include <expar/tensor.hpp>

namespace expar::inline v0::detail {

/// Throws unless an operation that reads each row before it writes it may write `out`, which has
/// the shape of `in`: it is `in` itself, or apart from it.
template <class T, class U>
void check_in_place(char const* what, tensor_view<T, 2> const& out, char const* other,
                    tensor_view<U, 2> const& in) {
  bool const same_rows = out.extents[0] <= 1 || out.strides[0] == in.strides[0];
  bool const same = std::is_same_v<T, std::remove_cv_t<U>> && same_rows &&
                    static_cast<void const*>(out.data) == static_cast<void const*>(in.data);
  expects(same || !overlap(out, in), what, " overlaps ", other,
          " in memory; it is that very tensor, or apart from it");
}

/// A vector as a matrix of one row, for check_apart().
template <class T>
tensor_view<T, 2> as_row(tensor_view<T, 1> const& v) {
  return make_view(v.data, 1, v.extents[0]);
}

}  // namespace expar::inline v0::detail
