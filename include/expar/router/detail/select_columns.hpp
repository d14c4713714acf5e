// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include <expar/router/detail/column_slots.hpp>
#include <expar/tensor.hpp>

EXPAR_IEEE_BEGIN
namespace expar::inline v0::detail {
inline namespace EXPAR_VECTORS {

/// How many columns of keys select_columns() may read, though it makes nothing of those behind the
/// last expert.
constexpr index_t selected_columns(index_t experts) {
  return (experts + 63) / 64 * 64 + 1;
}

/// The largest keys of the experts from `from` on in steps of `step`.
template <class A>
inline pack<A> largest_column(A const* keys, index_t experts, index_t from = 0, index_t step = 1) {
  constexpr int lanes = pack<A>::lanes;
  pack<A> most = pack<A>::all(-infinity<A>);
  for (index_t e = from; e < experts; e += step)
    most = larger(pack<A>::load(keys + e * lanes), most);
  return most;
}

/// One lane, as select_top_k() would.
template <class A>
inline void select_column(A const* keys, int experts, int k, int lane, std::int32_t* ids,
                          A* best_keys) {
  constexpr int lanes = pack<A>::lanes;
  std::int32_t mine[most_slots];
  A best[most_slots];
  int found = 0;
  for (int e = 0; e < experts; ++e) {
    A const key = keys[index_t{e} * lanes + lane];
    if (!(key > -infinity<A>)) continue;
    if (found == k && !(key > best[k - 1])) continue;
    int at = found < k ? found++ : k - 1;
    for (; at > 0 && key > best[at - 1]; --at) best[at] = best[at - 1], mine[at] = mine[at - 1];
    best[at] = key, mine[at] = e;
  }
  for (int j = 0; j < k; ++j) {
    ids[j * lanes + lane] = j < found ? mine[j] : -1;
    best_keys[j * lanes + lane] = j < found ? best[j] : -infinity<A>;
  }
}

/// The K best of keys that come expert by expert, by insertion, which is the fastest for few of
/// them. One of -0 becomes 0.
template <int K>
struct few_best {
  using ints = mask_of<float>;
  pack<float> key[K];
  ints id[K];

  EXPAR_ALWAYS_INLINE few_best() {
    for (int j = 0; j < K; ++j) key[j] = pack<float>::all(-infinity<float>), id[j] = ints{} - 1;
  }
  EXPAR_ALWAYS_INLINE void enter(pack<float> x, int expert) {
    ints const e = expert - ints{};
    for (int j = K - 1; j > 0; --j) {
      ints const next = x.v > key[j - 1].v ? id[j - 1] : e;
      id[j] = x.v > key[j].v ? next : id[j];
      key[j] = larger(smaller(key[j - 1], x), key[j]);
    }
    id[0] = x.v > key[0].v ? e : id[0];
    key[0] = larger(x, key[0]);
  }
  EXPAR_ALWAYS_INLINE void store(std::int32_t* ids, float* keys) const {
    for (int j = 0; j < K; ++j) {
      add(key[j], pack<float>::all(0)).store(keys + j * pack<float>::lanes);
      std::memcpy(ids + j * pack<float>::lanes, &id[j], sizeof id[j]);
    }
  }
};
template <int K>
inline void select_few(float const* keys, int experts, std::int32_t* ids, float* best_keys) {
  few_best<K> best;
  for (int e = 0; e < experts; ++e) best.enter(pack<float>::load(keys + e * pack<float>::lanes), e);
  best.store(ids, best_keys);
}

/// All experts have a slot.
template <int Slots>
inline void select_all(float const* keys, int experts, int k, std::int32_t* ids, float* best_keys) {
  using p = pack<float>;
  sort_slots<Slots, Slots>(
      [=](int e) {
        p const none = p::all(-infinity<float>);
        return e < experts ? larger(p::load(keys + e * p::lanes), none) : none;
      },
      [first = mask_of<float>{}](int e) { return e + first; }, k, ids, best_keys);
}

/// For more experts than slots, and k <= Slots / 2.
template <int Slots>
inline pack<float> select_by_threshold(float const* keys, int experts, int k, std::int32_t* ids,
                                       float* best_keys) {
  using p = pack<float>;
  constexpr int lanes = p::lanes;
  typename p::vector classes[Slots];
  for (int c = 0; c < Slots; ++c) classes[c] = largest_column(keys, experts, c, Slots).v;
  p const threshold = kth_largest<Slots>(static_cast<typename p::vector*>(classes), k);
  column_slots<Slots> places;
  int filled[lanes] = {};
  for (int first = 0; first < experts; first += 64) {
    alignas(64) std::uint32_t words[2][lanes];  // bit i: expert first + i, first + 32 + i
    for (int half = 0; half < 2; ++half) {
      int const from = first + 32 * half, end = from + 32 < experts ? from + 32 : experts;
      typename p::bits bits = {};
      for (int e = end - 1; e >= from; --e)
        bits += bits - (typename p::bits)(p::load(keys + index_t{e} * lanes).v >= threshold.v);
      std::memcpy(words[half], &bits, sizeof bits);
    }
    float const* const from = keys + index_t{first} * lanes;
    for (int l = 0; l < lanes; ++l) {
      std::uint64_t bits = words[0][l] | std::uint64_t{words[1][l]} << 32;
      int const n = count_bits(bits);
      if (filled[l] + n > Slots) {
        filled[l] = Slots + 1;  // too many
        continue;
      }
      for (int i = 0; i < n; i += places.more)
        for (int j = 0; j < places.more; ++j) {  // those behind the last one do not count
          int const e = std::countr_zero(bits);
          bits &= bits - 1;
          places.put(filled[l] + i + j, l, from[e * lanes + l], first + e);
        }
      filled[l] += n;
    }
  }
  places.sort(static_cast<int const*>(filled), k, ids, best_keys);
  for (int l = 0; l < lanes; ++l)
    if (filled[l] > Slots) select_column(keys, experts, k, l, ids, best_keys);
  return larger(p{classes[0]}, p{classes[Slots / 2]});
}

/// The k best experts of each lane to ids [k][lanes], -1 where there are fewer; gives the largest
/// keys. k is at most 16, or at most `experts`, which is at most 32.
template <class A>
inline pack<A> select_columns(A const* keys, int experts, int k, std::int32_t* ids, A* best_keys) {
  if constexpr (std::is_same_v<A, float>) {
    if (experts > (k <= 8 ? 16 : 32))
      return k <= 8 ? select_by_threshold<16>(keys, experts, k, ids, best_keys)
                    : select_by_threshold<32>(keys, experts, k, ids, best_keys);
    if (k == 1)
      select_few<1>(keys, experts, ids, best_keys);
    else if (k == 2)
      select_few<2>(keys, experts, ids, best_keys);
    else if (k == 3)
      select_few<3>(keys, experts, ids, best_keys);
    else if (k == 4)
      select_few<4>(keys, experts, ids, best_keys);
    else if (experts <= 8)
      select_all<8>(keys, experts, k, ids, best_keys);
    else if (experts <= 16)
      select_all<16>(keys, experts, k, ids, best_keys);
    else
      select_all<32>(keys, experts, k, ids, best_keys);
    return pack<A>::load(best_keys);
  } else {
    for (int l = 0; l < pack<A>::lanes; ++l) select_column(keys, experts, k, l, ids, best_keys);
  }
  return largest_column(keys, experts);
}

}  // namespace EXPAR_VECTORS
}  // namespace expar::inline v0::detail
EXPAR_IEEE_END
