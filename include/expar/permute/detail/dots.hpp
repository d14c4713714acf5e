// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/permute/detail/columns.hpp>
#include <expar/permute/detail/rows.hpp>
#include <expar/permute/detail/stores.hpp>

EXPAR_IEEE_BEGIN
namespace expar::inline v0::detail {
inline namespace EXPAR_VECTORS {

/// Adds x[c] * y[c] to sum[c % 16] for as many columns as make whole 16, and returns these.
template <class T>
index_t add_products(T const* x, T const* y, index_t n, accumulator_t<T>* sum, std::size_t ahead) {
  constexpr int sums = 16, most = sums / 2 * int{sizeof(accumulator_t<T>)};
  using some = columns<T, (vector_bytes < most ? vector_bytes : most)>;
  constexpr int parts = sums / some::count;
  typename some::vector even[parts]{}, odd[parts]{};
  index_t c = 0;
  for (; c + sums <= n; c += sums) {
    if (ahead != 0) prefetch(reinterpret_cast<std::byte const*>(x + c) + ahead, 1);
    for (int p = 0; p < parts; ++p) {
      some const a = some::load(x + c + p * some::count), b = some::load(y + c + p * some::count);
      even[p] += a.a * b.a, odd[p] += a.b * b.b;
    }
  }
  constexpr int step = in_pairs<T> ? 2 : 1, behind = in_pairs<T> ? 1 : some::lanes;
  for (int p = 0; p < parts; ++p)
    for (int l = 0; l < some::lanes; ++l) {
      sum[p * some::count + step * l] = even[p][l];
      sum[p * some::count + step * l + behind] = odd[p][l];
    }
  return c;
}

/// <x, y> in an order that depends on n alone: 16 interleaved sums, then a tree. `ahead`: bytes of
/// x that are asked for before they are read.
template <class T>
accumulator_t<T> dot_rows(T const* x, T const* y, index_t n, std::size_t ahead = 0) {
  using A = accumulator_t<T>;
  constexpr int sums = 16;
  A sum[sums] = {};
  index_t c = 0;
  if constexpr (in_vectors<T>)
    c = add_products<T>(x, y, n, sum, ahead);
  else
    for (; c + sums <= n; c += sums)
      for (int l = 0; l < sums; ++l) sum[l] += widen(x[c + l]) * widen(y[c + l]);
  for (int l = 0; c < n; ++c, ++l) sum[l] += widen(x[c]) * widen(y[c]);
  for (int half = sums / 2; half > 0; half /= 2)
    for (int l = 0; l < half; ++l) sum[l] += sum[l + half];
  return sum[0];
}

}  // namespace EXPAR_VECTORS

/// d_weights[j] = <row(t, j), x>, 0 where there is no row. `beyond`: rows exceed the caches, and
/// are asked for here.
template <class T, bool Adds = false, class W, class Rows>
void put_dot(plan_view const& plan, index_t t, int j, Rows const& rows, T const* x, index_t n,
             W* d_weights, bool beyond) {
  std::int32_t const *const ids = plan.ids + t * plan.top_k, *const locations =
                                                                 plan.locations + t * plan.top_k;
  std::size_t const ahead = beyond ? rows_ahead : 0;
  if (beyond && j + 1 < plan.top_k && locations[j + 1] >= 0)
    prefetch(rows(ids[j + 1], locations[j + 1]), ahead);
  auto const dot =
      locations[j] < 0 ? accumulator_t<T>{0} : dot_rows(rows(ids[j], locations[j]), x, n, ahead);
  put_gradient<Adds>(d_weights[j], static_cast<accumulator_t<W>>(dot));
}

}  // namespace expar::inline v0::detail
EXPAR_IEEE_END
