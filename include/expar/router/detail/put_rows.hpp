// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstring>
#include <type_traits>

#include <expar/element.hpp>
#include <expar/router/detail/pack.hpp>
#include <expar/router/detail/shuffles.hpp>
#include <expar/tensor.hpp>

EXPAR_IEEE_BEGIN
namespace expar::inline v0::detail {
inline namespace EXPAR_VECTORS {

/// Packs [k] to rows of k, for numbers of 4 bytes and k of 2 or at least 4, if rows of 2 follow one
/// another; whether it could be done.
template <class T>
EXPAR_ALWAYS_INLINE bool put_quads(T const* packs, int k, tensor_view<T, 2> const& to) {
  typedef T V __attribute__((vector_size(vector_bytes)));
  constexpr int lanes = vector_bytes / static_cast<int>(sizeof(T));
  index_t const count = to.extents[0];
  auto const load = [packs](int j) {
    V v;
    std::memcpy(&v, packs + j * lanes, sizeof v);
    return v;
  };
  if (k == 2 && count == lanes && to.strides[0] == 2) {
    interleave(load(0), load(1),
               [&to](int i, V v) { std::memcpy(to.data + i * lanes, &v, sizeof v); });
    return true;
  }
  auto const put = [&](auto all) {
    for (int j = 0; j < k; j += 4) {
      int const at = j + 4 < k ? j : k - 4;
      transpose_quads(load(at), load(at + 1), load(at + 2), load(at + 3), [=](int i, V v) {
        split_quads(v, [=](int part, auto quad) {
          int const l = i + 4 * part;
          if (all || l < count) std::memcpy(to.row(l) + at, &quad, sizeof quad);
        });
      });
    }
  };
  if (k < 4) return false;
  if (count == lanes)
    put(std::true_type{});
  else
    put(std::false_type{});
  return true;
}

/// Numbers [k][Lanes] to rows of k, one of each lane, as many as there are.
template <int Lanes, class From, class To>
EXPAR_ALWAYS_INLINE void put_rows(From const* numbers, int k, tensor_view<To, 2> const& to) {
  if constexpr (std::is_same_v<From, To> && Lanes * sizeof(To) == vector_bytes && sizeof(To) == 4)
    if (put_quads(numbers, k, to)) return;
  for (int l = 0; l < to.extents[0]; ++l) {
    To* const mine = to.row(l);
    for (int j = 0; j < k; ++j) {
      if constexpr (std::is_same_v<From, To>)
        mine[j] = numbers[j * Lanes + l];
      else
        mine[j] = narrow<To>(static_cast<accumulator_t<To>>(numbers[j * Lanes + l]));
    }
  }
}

}  // namespace EXPAR_VECTORS
}  // namespace expar::inline v0::detail
EXPAR_IEEE_END
