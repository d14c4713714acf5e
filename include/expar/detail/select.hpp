// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <utility>

#include <expar/tensor.hpp>

namespace expar::inline v0::detail {

// Selection by heaps instead of <algorithm>, which is an eighth of what expar.hpp would include.

/// Lets the element at the root of a subtree sink to where no child of it comes after it.
template <class At, class Before>
void sink(At at, index_t n, index_t root, Before before) {
  for (index_t child = 2 * root + 1; child < n; root = child, child = 2 * root + 1) {
    if (child + 1 < n && before(at(child), at(child + 1))) ++child;
    if (!before(at(root), at(child))) return;
    std::swap(at(root), at(child));
  }
}
template <class At, class Before>
void make_heap(At at, index_t n, Before before) {
  for (index_t root = n / 2 - 1; root >= 0; --root) sink(at, n, root, before);
}

/// Moves the `few` elements of n that come first to the front, the last of them to the very front.
template <class At, class Before>
void select_few(At at, index_t n, index_t few, Before before) {
  make_heap(at, few, before);
  for (index_t i = few; few > 0 && i < n; ++i)
    if (before(at(i), at(0))) {
      std::swap(at(i), at(0));
      sink(at, few, 0, before);
    }
}
/// From the other end.
template <class T, class Before>
void select_last_few(T* all, index_t n, index_t few, Before before) {
  select_few([all, n](index_t i) -> T& { return all[n - 1 - i]; }, n, few,
             [before](T const& a, T const& b) { return before(b, a); });
}

/// Moves the `count` elements of all [n] that come first to the front, in no order. O(n log n) at
/// worst, and about n comparisons where few of many are moved.
template <class T, class Before>
void move_first_to_front(T* all, index_t n, index_t count, Before before) {
  if (count <= n / 2)
    select_few([all](index_t i) -> T& { return all[i]; }, n, count, before);
  else
    select_last_few(all, n, n - count, before);
}
/// The element of all [n] that has `rank` others before it; moves them.
template <class T, class Before>
T element_of_rank(T* all, index_t n, index_t rank, Before before) {
  if (rank < n / 2) {
    select_few([all](index_t i) -> T& { return all[i]; }, n, rank + 1, before);
    return all[0];
  }
  select_last_few(all, n, n - rank, before);
  return all[n - 1];
}

template <class T, class Before>
void sort(T* all, index_t n, Before before) {
  auto const at = [all](index_t i) -> T& { return all[i]; };
  make_heap(at, n, before);
  for (index_t last = n - 1; last > 0; --last) {
    std::swap(all[0], all[last]);
    sink(at, last, 0, before);
  }
}

}  // namespace expar::inline v0::detail
