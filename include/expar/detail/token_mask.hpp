// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <type_traits>

#include <expar/tensor.hpp>

namespace expar::inline v0::detail {

/// Which tokens take part, as a callable: all of them, or those whose mark is not zero.
struct every_token {
  constexpr bool operator()(index_t) const { return true; }
};
template <class Mark>
struct marked_tokens {
  tensor_view<Mark const, 1> marks;
  bool operator()(index_t t) const { return marks(t) != Mark{}; }
};
template <class T>
auto as_marks(tensor_view<T, 1> const& marks) {
  using Mark = std::remove_const_t<T>;
  static_assert(std::is_same_v<Mark, bool> || std::is_same_v<Mark, std::uint8_t>,
                "expar: the mask of valid tokens holds bool or std::uint8_t");
  return marked_tokens<Mark>{marks};
}

}  // namespace expar::inline v0::detail
