// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <type_traits>

#include <expar/error.hpp>
#include <expar/tensor.hpp>

namespace expar::inline v0::detail {

/// Throws unless the ids of each token that is valid(token) are -1 or an expert.
template <class Id, class Valid>
void check_expert_ids(char const* what, tensor_view<Id, 2> const& ids, index_t experts,
                      Valid valid) {
  static_assert(std::is_same_v<std::remove_cv_t<Id>, std::int32_t>,
                "expar: expert ids are std::int32_t");
  for (index_t t = 0; t < ids.extents[0]; ++t)
    for (index_t j = 0; j < ids.extents[1]; ++j)
      expects((ids.row(t)[j] >= -1 && ids.row(t)[j] < experts) || !valid(t), what, "(", t, ", ", j,
              ") is ", ids.row(t)[j], "; an expert id is -1 (no expert) or 0 to ", experts - 1);
}
template <class Id>
void check_expert_ids(char const* what, tensor_view<Id, 2> const& ids, index_t experts) {
  check_expert_ids(what, ids, experts, [](index_t) { return true; });
}

}  // namespace expar::inline v0::detail
