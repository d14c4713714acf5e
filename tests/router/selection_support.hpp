// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/router/selection.hpp>

#include "../support/catch.hpp"
#include "support.hpp"

namespace selection_test {

using router_test::inf;
using router_test::qnan;
using router_test::row_type;
using ids_type = std::vector<std::int32_t>;

/// What a selection makes of these keys, and of scores that are the keys if there are no others.
template <class Selection>
ids_type select(Selection const& x, row_type const& keys, int k, row_type const& scores = {}) {
  STATIC_REQUIRE(expar::selection_policy<Selection>);
  int const experts = static_cast<int>(keys.size());
  int room = 0;
  if constexpr (requires { x.scratch(1, 1); }) room = x.scratch(experts, k);
  ids_type ids(static_cast<std::size_t>(k), 77);
  row_type scratch(static_cast<std::size_t>(room) + 1, 77);
  x.select(keys.data(), scores.empty() ? keys.data() : scores.data(), experts, k, ids.data(),
           scratch.data());
  REQUIRE(scratch.back() == 77);
  return ids;
}

}  // namespace selection_test
