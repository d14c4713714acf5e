// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#include <expar/router/detail/pack.hpp>

namespace expar {
inline namespace v0 {
namespace detail {

/// Comparators that sort n numbers, n a power of 2 (Batcher's odd-even merge sort).
template <int N>
struct sorting_network {
  struct comparator {
    int first, second;
  };
  struct list {
    comparator at[N * 6];
    int count = 0;
  };
  static constexpr list make() {
    list all{};
    for (int p = 1; p < N; p *= 2)
      for (int k = p; k >= 1; k /= 2)
        for (int j = k % p; j + k < N; j += 2 * k)
          for (int i = j; i < j + k && i + k < N; ++i)
            if (i / (2 * p) == (i + k) / (2 * p)) all.at[all.count++] = {i, i + k};
    return all;
  }
  static constexpr list comparators = make();
};

/// Sorts N rows of vectors in every lane, the largest first. No entry is NaN.
template <int N, class Vector>
inline void sort_rows(Vector* rows) {
  Vector r[N];
  for (int i = 0; i < N; ++i) r[i] = rows[i];
  auto const compare = [&r](auto step) {
    constexpr auto c = sorting_network<N>::comparators.at[step()];
    Vector const a = r[c.first], b = r[c.second];
    r[c.first] = a > b ? a : b;
    r[c.second] = a > b ? b : a;
  };
  [&]<int... I>(std::integer_sequence<int, I...>) {
    (compare(std::integral_constant<int, I>{}), ...);
  }
  (std::make_integer_sequence<int, sorting_network<N>::comparators.count>{});
  for (int i = 0; i < N; ++i) rows[i] = r[i];
}

// How select_top_k() is done for the tokens of all lanes at once. Experts form classes by their id
// mod 16 or 32: at least k keys reach the k-th largest of what is the largest key of each class,
// and seldom many more do. Those go to slots, and the slots of all lanes are sorted by a network.

inline constexpr int most_slots = 32;

/// Keys of float with their experts, `Slots` for each lane. To be sorted they become doubles, of
/// which the upper bits are the key and the lower ones the expert.
template <int Slots>
struct column_slots {
  static constexpr int lanes = pack<float>::lanes;
  static constexpr int more = 4;  // slots behind the last one that may be written
  static constexpr std::int64_t id_bits = (std::int64_t{1} << 29) - 1;  // what a float leaves
  static constexpr double most = 0x1p500, least = 0x1p-300;  // in the place of infinity and of 0

  alignas(64) double key[(Slots + more) * lanes];
  alignas(64) std::int64_t id[(Slots + more) * lanes];

  void clear() {
    for (double& k : key) k = -infinity<double>;
  }
  void put(int slot, int lane, float k, std::int64_t e) {
    key[slot * lanes + lane] = static_cast<double>(k);
    id[slot * lanes + lane] = e;
  }
  /// After `filled` entries, of which the last ones may have been written with others behind them.
  void clear_from(int filled, int lane) {
    for (int j = 0; j < more && filled <= Slots; ++j)
      key[(filled + j) * lanes + lane] = -infinity<double>;
  }

  /// The experts of the k best of each lane, by descending key and ascending id; -1 where a slot is
  /// empty, or holds NaN or -inf.
  void sort(int k, std::int32_t* ids) {
    using d = pack<double>;
    for (int part = 0; part < lanes; part += d::lanes) {
      typename d::vector rows[Slots];
      d::mask const bits = id_bits - d::mask{};
      for (int i = 0; i < Slots; ++i) {
        auto const at = i * lanes + part;
        d x = add(d::load(key + at), d::all(least));
        x = larger(x, d::all(-most));  // NaN too
        x = {x.v < d::all(most).v ? x.v : d::all(most).v};
        d::mask low;
        std::memcpy(&low, id + at, sizeof low);
        low ^= (x.v > d::all(0).v) & bits;  // the lower id makes the larger number
        rows[i] = (typename d::vector)((d::mask)x.v | (low & bits));
      }
      sort_rows<Slots>(static_cast<typename d::vector*>(rows));
      for (int i = 0; i < k; ++i) {
        typename d::vector const x = rows[i];
        d::mask low = (d::mask)x & bits;
        low = x > d::all(0).v ? bits - low : low;
        low |= x <= d::all(-most).v;
        for (int l = 0; l < d::lanes; ++l)
          ids[i * lanes + part + l] = static_cast<std::int32_t>(low[l]);
      }
    }
  }
};

/// How many bits of a word are set.
inline int count_bits(std::uint64_t x) {
  x -= x >> 1 & 0x5555555555555555u;
  x = (x & 0x3333333333333333u) + (x >> 2 & 0x3333333333333333u);
  return static_cast<int>(((x + (x >> 4)) & 0x0f0f0f0f0f0f0f0fu) * 0x0101010101010101u >> 56);
}

}  // namespace detail
}  // namespace v0
}  // namespace expar
