// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <utility>

#include <expar/router/detail/pack.hpp>
#include <expar/router/detail/transpose.hpp>

namespace expar {
inline namespace v0 {
namespace detail {
inline namespace EXPAR_VECTORS {

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
  auto const network = [rows]<int... Row, int... I>(std::integer_sequence<int, Row...>,
                                                    std::integer_sequence<int, I...>)
      __attribute__((always_inline)) {
    Vector r[N] = {rows[Row]...};
    constexpr auto& at = sorting_network<N>::comparators.at;
    auto const compare = [](Vector & first, Vector & second) __attribute__((always_inline)) {
      Vector const a = first, b = second;
      first = larger_lanes(a, b);
      second = smaller_lanes(b, a);
    };
    (compare(r[at[I].first], r[at[I].second]), ...);
    ((rows[Row] = r[Row]), ...);
  };
  network(std::make_integer_sequence<int, N>{},
          std::make_integer_sequence<int, sorting_network<N>::comparators.count>{});
}

// How select_top_k() is done for the tokens of all lanes at once. Experts form classes by their id
// mod 16 or 32: at least k keys reach the k-th largest of what is the largest key of each class,
// and seldom many more do. Those go to slots, and the slots of all lanes are sorted by a network.

inline constexpr int most_slots = 32;

/// Of each lane the k best of the slots i with the keys key(i), packs, and the experts id(i),
/// vectors of std::int32_t: experts and keys, by descending key and ascending id; -1 and -inf where
/// a slot holds NaN or -inf. To be sorted, slots become doubles: the bits of the key, and below
/// them those of the expert and of the key's sign. Lest such a double be NaN or below the normal
/// numbers, its exponent is raised by 1.
template <int Slots, class Key, class Id>
inline void sort_slots(Key key, Id id, int k, std::int32_t* ids, float* keys) {
  using p = pack<float>;
  using ints = mask_of<float>;
  using doubles = pack<double>::vector;
  constexpr std::int32_t raised = 1 << 20;
  constexpr bool little = std::endian::native == std::endian::little;
  p const none = p::all(-infinity<float>);
  doubles first[Slots], second[Slots];
  for (int i = 0; i < Slots; ++i) {
    p const x = key(i);
    ints const e = id(i);
    ints const high = (ints)add(larger(x, none), p::all(0.f)).v;      // 0 also where x is -0
    ints const low = ((e << 1) - ((ints)x.v >> 31)) ^ ~(high >> 31);  // the lower id is the larger
    ints const in_memory[2] = {little ? low : high + raised, little ? high + raised : low};
    first[i] = (doubles)low_pairs(in_memory[0], in_memory[1]);
    second[i] = (doubles)high_pairs(in_memory[0], in_memory[1]);
  }
  sort_rows<Slots>(static_cast<doubles*>(first));
  sort_rows<Slots>(static_cast<doubles*>(second));
  for (int i = 0; i < k; ++i) {
    ints const even = even_entries((ints)first[i], (ints)second[i]);
    ints const odd = odd_entries((ints)first[i], (ints)second[i]);
    ints const high = (little ? odd : even) - raised;
    ints const low = (little ? even : odd) ^ ~(high >> 31);
    p const x = {(p::vector)(high | (low << 31))};
    ints const e = low >> 1 | (x.v == none.v);
    x.store(keys + i * p::lanes);
    std::memcpy(ids + i * p::lanes, &e, sizeof e);
  }
}

/// Keys of float with their experts, `Slots` for each lane.
template <int Slots>
struct column_slots {
  using p = pack<float>;
  static constexpr int lanes = p::lanes;
  static constexpr int more = 4;  // slots behind the last one that may be written

  alignas(64) float key[(Slots + more) * lanes];
  alignas(64) std::int32_t id[(Slots + more) * lanes];

  void clear() {
    for (float& k : key) k = -infinity<float>;
  }
  void put(int slot, int lane, float k, std::int64_t e) {
    key[slot * lanes + lane] = k;
    id[slot * lanes + lane] = static_cast<std::int32_t>(e);
  }
  /// After `filled` entries, of which the last ones may have been written with others behind them.
  void clear_from(int filled, int lane) {
    for (int j = 0; j < more && filled <= Slots; ++j)
      key[(filled + j) * lanes + lane] = -infinity<float>;
  }
  void sort(int k, std::int32_t* ids, float* keys) const {
    auto const id_of = [this](int i) {
      mask_of<float> e;
      std::memcpy(&e, id + i * lanes, sizeof e);
      return e;
    };
    sort_slots<Slots>([this](int i) { return p::load(key + i * lanes); }, id_of, k, ids, keys);
  }
};

/// How many bits of a word are set.
inline int count_bits(std::uint64_t x) {
  x -= x >> 1 & 0x5555555555555555u;
  x = (x & 0x3333333333333333u) + (x >> 2 & 0x3333333333333333u);
  return static_cast<int>(((x + (x >> 4)) & 0x0f0f0f0f0f0f0f0fu) * 0x0101010101010101u >> 56);
}

}  // namespace EXPAR_VECTORS
}  // namespace detail
}  // namespace v0
}  // namespace expar
