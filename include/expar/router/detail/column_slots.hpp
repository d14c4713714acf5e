// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <utility>

#include <expar/router/detail/pack.hpp>
#include <expar/router/detail/transpose.hpp>

EXPAR_IEEE_BEGIN
namespace expar::inline v0::detail {
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

    constexpr void put(int first, int second) { at[count++] = {first, second}; }
    constexpr void sort(int from, int n) {
      for (int p = 1; p < n; p *= 2)
        for (int k = p; k >= 1; k /= 2)
          for (int j = k % p; j + k < n; j += 2 * k)
            for (int i = j; i < j + k && i + k < n; ++i)
              if (i / (2 * p) == (i + k) / (2 * p)) put(from + i, from + i + k);
    }
  };
  /// All of them.
  static constexpr list whole() {
    list all{};
    all.sort(0, N);
    return all;
  }
  /// Only the larger half of them, which comes first.
  static constexpr list half() {
    list all{};
    all.sort(0, N / 2);
    all.sort(N / 2, N / 2);
    for (int i = 0; i < N / 2; ++i) all.put(i, N - 1 - i);
    for (int k = N / 4; k >= 1; k /= 2)  // those ascend and then descend, or the other way round
      for (int i = 0; i < N / 2; ++i)
        if (i / k % 2 == 0) all.put(i, i + k);
    return all;
  }
};

/// Sorts N rows of vectors in every lane, the largest first, or gives only the first Sorted, which
/// is N or N / 2. No entry is NaN.
template <int N, int Sorted = N, class Vector>
inline void sort_rows(Vector* rows) {
  static constexpr auto comparators =
      Sorted == N ? sorting_network<N>::whole() : sorting_network<N>::half();
  auto const network = [rows]<int... Row, int... Given, int... Comparator>(
      std::integer_sequence<int, Row...>, std::integer_sequence<int, Given...>,
      std::integer_sequence<int, Comparator...>) __attribute__((always_inline)) {
    Vector r[N] = {rows[Row]...};
    auto const compare = [](Vector & first, Vector & second) __attribute__((always_inline)) {
      Vector const a = first, b = second;
      first = larger_lanes(a, b);
      second = smaller_lanes(b, a);
    };
    (compare(r[comparators.at[Comparator].first], r[comparators.at[Comparator].second]), ...);
    ((rows[Given] = r[Given]), ...);
  };
  network(std::make_integer_sequence<int, N>{}, std::make_integer_sequence<int, Sorted>{},
          std::make_integer_sequence<int, comparators.count>{});
}

/// The k-th largest of N rows in every lane, k at most N / 2. Sorts either half of the rows.
template <int N>
inline pack<float> kth_largest(typename pack<float>::vector* rows, int k) {
  using p = pack<float>;
  typename p::vector *const a = rows, *const b = rows + N / 2;
  sort_rows<N / 2>(a);
  sort_rows<N / 2>(b);
  p largest = larger(p{a[k - 1]}, p{b[k - 1]});  // if all come from one half; else i from the first
  for (int i = 1; i < k; ++i) largest = larger(smaller(p{a[i - 1]}, p{b[k - 1 - i]}), largest);
  return largest;
}

// How select_top_k() is done for the tokens of all lanes at once. Experts form classes by their id
// mod 16 or 32: at least k keys reach the k-th largest of what is the largest key of each class,
// and seldom many more do. Those go to slots, and the slots of all lanes are sorted by a network.

inline constexpr int most_slots = 32;

/// Of each lane the k best of the slots i with the keys key(i), packs, and the experts id(i),
/// vectors of std::int32_t: experts and keys, by descending key and ascending id; -1 and -inf where
/// a slot holds -inf. No key is NaN, unless its lane does not matter; one of -0 becomes 0. k is at
/// most Sorted, which is Slots or half of it. To be sorted, slots become doubles: the bits of the
/// key, and below them those of the expert. Lest such a double be below the normal numbers, its
/// exponent is raised by 1.
template <int Slots, int Sorted, class Key, class Id>
inline void sort_slots(Key key, Id id, int k, std::int32_t* ids, float* keys) {
  using p = pack<float>;
  using ints = mask_of<float>;
  using bits = typename p::bits;
  using doubles = pack<double>::vector;
  constexpr std::uint32_t raised = 1 << 20;
  constexpr bool little = std::endian::native == std::endian::little;
  p const none = p::all(-infinity<float>);
  doubles first[Slots], second[Slots];
  for (int i = 0; i < Slots; ++i) {
    ints const high = (ints)add(key(i), p::all(0.f)).v;
    ints const low = id(i) ^ ~(high >> 31);  // the lower id is the larger
    ints const above = (ints)((bits)high + raised);
    ints const in_memory[2] = {little ? low : above, little ? above : low};
    first[i] = (doubles)low_pairs(in_memory[0], in_memory[1]);
    second[i] = (doubles)high_pairs(in_memory[0], in_memory[1]);
  }
  sort_rows<Slots, Sorted>(static_cast<doubles*>(first));
  sort_rows<Slots, Sorted>(static_cast<doubles*>(second));
  for (int i = 0; i < k; ++i) {
    ints const even = even_entries((ints)first[i], (ints)second[i]);
    ints const odd = odd_entries((ints)first[i], (ints)second[i]);
    ints const high = (ints)((bits)(little ? odd : even) - raised);
    p const x = {(p::vector)high};
    ints const e = ((little ? even : odd) ^ ~(high >> 31)) | (x.v == none.v);
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

  void put(int slot, int lane, float k, std::int64_t e) {
    key[slot * lanes + lane] = k;
    id[slot * lanes + lane] = static_cast<std::int32_t>(e);
  }
  /// The slots of each lane that are filled; k is at most Slots / 2.
  void sort(int const* filled, int k, std::int32_t* ids, float* keys) const {
    mask_of<float> count;
    std::memcpy(&count, filled, sizeof count);
    auto const key_of = [this, count](int i) {
      return select(count > i, p::load(key + i * lanes), p::all(-infinity<float>));
    };
    auto const id_of = [this](int i) {
      mask_of<float> e;
      std::memcpy(&e, id + i * lanes, sizeof e);
      return e;
    };
    sort_slots<Slots, Slots / 2>(key_of, id_of, k, ids, keys);
  }
};

/// How many bits of a word are set.
inline int count_bits(std::uint64_t x) {
  x -= x >> 1 & 0x5555555555555555u;
  x = (x & 0x3333333333333333u) + (x >> 2 & 0x3333333333333333u);
  return static_cast<int>(((x + (x >> 4)) & 0x0f0f0f0f0f0f0f0fu) * 0x0101010101010101u >> 56);
}

}  // namespace EXPAR_VECTORS
}  // namespace expar::inline v0::detail
EXPAR_IEEE_END
