// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/detail/arguments.hpp>

namespace expar::inline v0::detail {

/// kept = ids, without the tokens that are not valid.
template <class Id, class Valid>
void copy_valid_ids(tensor_view<Id, 2> ids, Valid valid, tensor_view<std::int32_t, 2> kept) {
  for (index_t t = 0; t < ids.extents[0]; ++t)
    for (index_t j = 0; j < ids.extents[1]; ++j) kept.row(t)[j] = valid(t) ? ids.row(t)[j] : -1;
}

/// What is kept of ids [T,k]: of the same shape, and perhaps the same tensor.
template <class Kept, class Ids>
auto kept_ids(arguments<host_context>& a, Kept& kept, index_t experts, Ids const& ids) {
  return a.written_ids("kept", kept, experts,
                       {{ids.extents[0], "the number of tokens"},
                        {ids.extents[1], "the number of choices per token"},
                        may_be("ids")});
}
inline void check_places(char const* what, int experts, index_t capacity) {
  expects(experts >= 1, what, ": experts is ", experts, "; at least 1 is needed");
  expects(capacity >= 0, what, ": capacity is ", capacity, "; it is at least 0");
}

}  // namespace expar::inline v0::detail
