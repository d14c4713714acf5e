// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/detail/arguments.hpp>
#include <expar/gpu/context.cuh>

namespace expar::inline v0::gpu::detail {

/// A gradient that a kernel writes whole.
template <class X>
auto overwritten(expar::detail::arguments<context>& a, char const* name, X&& x,
                 expar::detail::rules fits) {
  static_assert(!expar::detail::is_added<std::remove_cvref_t<X>>,
                "expar: gradients on a device are overwritten; add_to() is for the host");
  return a.written(name, x, fits);
}

/// Throws unless a kernel can read the numbers of a vector one behind the other.
template <class T>
void check_packed(char const* what, char const* name, tensor_view<T, 1> const& v) {
  expar::detail::expects(v.strides[0] == 1 || v.extents[0] <= 1, what, ": ", name, " has stride ",
                         v.strides[0], "; on a device it must be contiguous (stride 1)");
}

}  // namespace expar::inline v0::gpu::detail
