// SPDX-License-Identifier: Apache-2.0
// What memory gives to code that does nothing else: a copy, and STREAM's triad.
#pragma once

#include <limits/lines.hpp>

namespace limits {

template <class Store>
void copy(float const* from, float* to, index_t first, index_t last) {
  for (index_t at = first; at < last; at += block<float>) {
    Store::prefetch(from + at);
    for (int i = 0; i < vectors; ++i) {
      index_t const here = at + i * block<float> / vectors;
      Store::store(to + here, load(from + here));
    }
  }
  Store::finish();
}
inline void copy_by_memcpy(float const* from, float* to, index_t first, index_t last) {
  std::memcpy(to + first, from + first, static_cast<std::size_t>(last - first) * sizeof(float));
}

/// a = b + scale * c
template <class Store>
void triad(float* a, float const* b, float const* c, float scale, index_t first, index_t last) {
  for (index_t at = first; at < last; at += block<float>) {
    Store::prefetch(b + at), Store::prefetch(c + at);
    for (int i = 0; i < vectors; ++i) {
      index_t const here = at + i * block<float> / vectors;
      Store::store(a + here, (words)((floats)load(b + here) + scale * (floats)load(c + here)));
    }
  }
  Store::finish();
}
inline void triad_plain(float* a, float const* b, float const* c, float scale, index_t first,
                        index_t last) {
  for (index_t i = first; i < last; ++i) a[i] = b[i] + scale * c[i];
}

}  // namespace limits
