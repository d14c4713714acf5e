// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <type_traits>

#include <expar/detail/expert_ids.hpp>
#include <expar/error.hpp>
#include <expar/tensor.hpp>

namespace expar::inline v0::detail {

/// kept = ids, without the tokens that are not valid.
template <class Id, class Valid>
void copy_valid_ids(tensor_view<Id, 2> ids, Valid valid, tensor_view<std::int32_t, 2> kept) {
  for (index_t t = 0; t < ids.extents[0]; ++t)
    for (index_t j = 0; j < ids.extents[1]; ++j) kept.row(t)[j] = valid(t) ? ids.row(t)[j] : -1;
}

/// The checks that all drop policies share: ids and kept are [T,k].
template <class Id, class Kept>
void check_kept(char const* ids_name, tensor_view<Id, 2> ids, char const* kept_name,
                tensor_view<Kept, 2> kept) {
  static_assert(
      std::is_same_v<std::remove_cv_t<Id>, std::int32_t> && std::is_same_v<Kept, std::int32_t>,
      "expar: expert ids are std::int32_t");
  check_view(ids_name, ids);
  check_output(kept_name, kept);
  check_extent(kept_name, kept, 0, ids.extents[0], "the number of tokens");
  check_extent(kept_name, kept, 1, ids.extents[1], "the number of choices per token");
}
inline void check_places(char const* what, int experts, index_t capacity) {
  expects(experts >= 1, what, ": experts is ", experts, "; at least 1 is needed");
  expects(capacity >= 0, what, ": capacity is ", capacity, "; it is at least 0");
}

}  // namespace expar::inline v0::detail
