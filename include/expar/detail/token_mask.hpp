// SPDX-License-Identifier: Apache-2.0
#pragma once

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

}  // namespace expar::inline v0::detail
