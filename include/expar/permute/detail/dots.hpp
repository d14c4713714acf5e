// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/permute/detail/columns.hpp>
#include <expar/permute/detail/rows.hpp>
#include <expar/permute/detail/stores.hpp>

EXPAR_IEEE_BEGIN
namespace expar::inline v0::detail {
inline namespace EXPAR_VECTORS {

/// <x, y> part by part, in an order that depends on the number of columns alone: 16 interleaved
/// sums, then a tree.
template <class T>
class dot_sums {
  using A = accumulator_t<T>;

 public:
  static constexpr int count = 16;

  /// The next columns, whole 16 of them, while as many of `ahead` are asked for, where it is given.
  EXPAR_ALWAYS_INLINE void add(T const* x, T const* y, index_t n, void const* ahead = nullptr) {
    if constexpr (in_vectors<T>)
      add_vectors(x, y, n, static_cast<std::byte const*>(ahead));
    else
      for (index_t c = 0; c < n; c += count)
        for (int l = 0; l < count; ++l) sum_[l] += widen(x[c + l]) * widen(y[c + l]);
  }
  /// With the last columns, fewer than 16.
  A total(T const* x, T const* y, index_t n) const {
    A sum[count];
    for (int l = 0; l < count; ++l) sum[l] = sum_[place(l)];
    for (int l = 0; l < n; ++l) sum[l] += widen(x[l]) * widen(y[l]);
    for (int half = count / 2; half > 0; half /= 2)
      for (int l = 0; l < half; ++l) sum[l] += sum[l + half];
    return sum[0];
  }

 private:
  static constexpr int most = count / 2 * int{sizeof(A)},
                       bytes = vector_bytes < most ? vector_bytes : most;

  EXPAR_ALWAYS_INLINE void add_vectors(T const* x, T const* y, index_t n, std::byte const* ahead) {
    using some = columns<T, bytes>;
    constexpr int parts = count / some::count;
    typename some::vector even[parts], odd[parts];
    for (int p = 0; p < parts; ++p) {
      std::memcpy(&even[p], sum_ + p * some::count, bytes);
      std::memcpy(&odd[p], sum_ + p * some::count + some::lanes, bytes);
    }
    for (index_t c = 0; c < n; c += count) {
      auto const read = static_cast<std::size_t>(c) * sizeof(T);
      if (ahead != nullptr && read % line_bytes == 0) prefetch(ahead + read, 1);
      for (int p = 0; p < parts; ++p) {
        auto const a = some::load(x + c + p * some::count), b = some::load(y + c + p * some::count);
        even[p] += a.a * b.a, odd[p] += a.b * b.b;
      }
    }
    for (int p = 0; p < parts; ++p) {
      std::memcpy(sum_ + p * some::count, &even[p], bytes);
      std::memcpy(sum_ + p * some::count + some::lanes, &odd[p], bytes);
    }
  }
  /// Of the sum of column c: in vectors, even columns stand before odd ones.
  static constexpr int place(int c) {
    if constexpr (in_pairs<T>) {
      constexpr int lanes = bytes / int{sizeof(A)};
      int const within = c % (2 * lanes);
      return c - within + within % 2 * lanes + within / 2;
    } else {
      return c;
    }
  }

  A sum_[count] = {};
};

/// <x, y> in that order. `ahead`: bytes of x that are asked for before they are read.
template <class T>
accumulator_t<T> dot_rows(T const* x, T const* y, index_t n, std::size_t ahead = 0) {
  dot_sums<T> sums;
  index_t const whole = n - n % sums.count;
  sums.add(x, y, whole, ahead == 0 ? nullptr : reinterpret_cast<std::byte const*>(x) + ahead);
  return sums.total(x + whole, y + whole, n - whole);
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
