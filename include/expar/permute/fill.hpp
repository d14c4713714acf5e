// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <concepts>
#include <type_traits>

#include <expar/config.hpp>

namespace expar::inline v0 {

/// What becomes of the rows of a layout that no route has, where expert rows are written: they
/// become zero, or are left as they are. Zeros cost a write of each such row.
enum class fill { zero, none };

/// Tells a last argument from the tensor before it.
template <class T>
concept not_fill = !std::same_as<std::remove_cvref_t<T>, fill>;

}  // namespace expar::inline v0
