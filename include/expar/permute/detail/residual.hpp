// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <type_traits>

#include <expar/element.hpp>

namespace expar::inline v0::detail {

/// A sum of rows that begins with what the output, or a residual of its type, holds.
template <class Row, class Out>
constexpr auto check_summed_alike() {
  static_assert(
      std::is_same_v<accumulator_t<Out>, accumulator_t<Row>>,
      "expar: with a residual, or add_to(), rows and output are summed in the same type: both "
      "double, or neither");
}
template <class Residual, class Out>
constexpr auto check_residual_type() {
  static_assert(std::is_same_v<std::remove_const_t<Residual>, Out>,
                "expar: a residual has the element type of the output");
}

}  // namespace expar::inline v0::detail
