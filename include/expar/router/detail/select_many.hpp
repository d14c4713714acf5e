// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include <expar/router/detail/pack.hpp>
#include <expar/router/top_k.hpp>
#include <expar/tensor.hpp>

namespace expar {
inline namespace v0 {
namespace detail {

// select_top_k() for the tokens of all lanes at once, keys [experts][lanes]. Experts form classes
// by their id mod 16 or 32: the k-th largest of the largest keys of each class is a threshold that
// at least k keys reach, and seldom many more. Those that do go to slots, and the slots are sorted
// by a network, as doubles that hold a key of float above and the expert below.

inline constexpr int most_slots = 32;

/// How many columns of keys select_columns() may read.
constexpr index_t selected_columns(index_t experts) {
  return (experts + 63) / 64 * 64;
}

template <class A>
inline pack<A> largest_column(A const* keys, index_t experts, index_t from = 0, index_t step = 1) {
  constexpr int lanes = pack<A>::lanes;
  pack<A> most = pack<A>::all(-infinity<A>);
  for (index_t e = from; e < experts; e += step)
    most = larger(pack<A>::load(keys + e * lanes), most);
  return most;
}

/// Slots of all lanes.
template <int Slots>
struct column_slots {
  static constexpr int lanes = pack<float>::lanes;
  static constexpr std::int64_t id_bits = (std::int64_t{1} << 29) - 1;  // what a float leaves
  static constexpr double far = 0x1p500, least = 0x1p-300;              // infinity and 0

  alignas(64) double key[(Slots + 4) * lanes];
  alignas(64) std::int64_t id[(Slots + 4) * lanes];

  void put(int slot, int lane, float k, std::int64_t e) {
    key[slot * lanes + lane] = static_cast<double>(k);
    id[slot * lanes + lane] = e;
  }
  void clear(int slot, int lane) { key[slot * lanes + lane] = -infinity<double>; }

  /// The k best of each lane.
  void sort(int k, std::int32_t* ids) {
    using d = pack<double>;
    for (int part = 0; part < lanes; part += d::lanes) {
      typename d::vector rows[Slots];
      d::mask const bits = id_bits - d::mask{};
      for (int i = 0; i < Slots; ++i) {
        auto const at = i * lanes + part;
        d x = add(d::load(key + at), d::all(least));
        x = larger(x, d::all(-far));  // NaN too
        x = {x.v < d::all(far).v ? x.v : d::all(far).v};
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
        low |= x <= d::all(-far).v;
        for (int l = 0; l < d::lanes; ++l)
          ids[i * lanes + part + l] = static_cast<std::int32_t>(low[l]);
      }
    }
  }
};

/// One lane, as select_top_k() would.
template <class A>
inline void select_column(A const* keys, int experts, int k, int lane, std::int32_t* ids) {
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
  for (int j = 0; j < k; ++j) ids[j * lanes + lane] = j < found ? mine[j] : -1;
}

/// All experts have a slot.
template <int Slots>
inline void select_all(float const* keys, int experts, int k, std::int32_t* ids) {
  constexpr int lanes = pack<float>::lanes;
  column_slots<Slots> slots;
  for (int e = 0; e < Slots; ++e)
    for (int l = 0; l < lanes; ++l) {
      if (e < experts)
        slots.put(e, l, keys[e * lanes + l], e);
      else
        slots.clear(e, l);
    }
  slots.sort(k, ids);
}

template <int Slots>
inline pack<float> select_by_threshold(float const* keys, int experts, int k, std::int32_t* ids) {
  using p = pack<float>;
  constexpr int lanes = p::lanes;
  typename p::vector classes[Slots];
  for (int c = 0; c < Slots; ++c) classes[c] = largest_column(keys, experts, c, Slots).v;
  sort_rows<Slots>(static_cast<typename p::vector*>(classes));
  p const threshold = {classes[k - 1]};
  column_slots<Slots> slots;
  for (int i = 0; i < Slots * lanes; ++i) slots.key[i] = -infinity<double>;
  int filled[lanes] = {};
  for (int first = 0; first < experts; first += 64) {
    alignas(64) std::uint32_t low[lanes], high[lanes];
    alignas(64) std::int32_t counts[lanes];
    mask_of<float> count = {};
    auto const word = [&](int from, std::uint32_t* to) {
      int const last = from + 32 < experts ? from + 32 : experts;
      mask_of<float> bits = {};
      for (int e = last - 1; e >= from; --e) {
        mask_of<float> const reaches = p::load(keys + index_t{e} * lanes).v >= threshold.v;
        bits = bits + bits - reaches;
        count -= reaches;
      }
      std::memcpy(to, &bits, sizeof bits);
    };
    word(first, low), word(first + 32, high);
    std::memcpy(counts, &count, sizeof count);
    for (int l = 0; l < lanes; ++l) {
      int const n = counts[l];
      if (filled[l] + n > Slots) {
        filled[l] = Slots + 1;
        continue;
      }
      std::uint64_t bits = low[l] | std::uint64_t{high[l]} << 32;
      for (int i = 0; i < n; i += 4)
        for (int j = 0; j < 4; ++j) {  // those behind the last one are cleared, or overwritten
          int const e = first + std::countr_zero(bits | std::uint64_t{1} << 63);
          bits &= bits - 1;
          slots.put(filled[l] + i + j, l, keys[index_t{e} * lanes + l], e);
        }
      filled[l] += n;
    }
  }
  for (int l = 0; l < lanes; ++l)
    if (filled[l] <= Slots)
      for (int j = 0; j < 4; ++j) slots.clear(filled[l] + j, l);
  slots.sort(k, ids);
  for (int l = 0; l < lanes; ++l)
    if (filled[l] > Slots) select_column(keys, experts, k, l, ids);
  return {classes[0]};
}

/// How many bits of a word are set.
inline int count_bits(std::uint64_t x) {
  x -= x >> 1 & 0x5555555555555555u;
  x = (x & 0x3333333333333333u) + (x >> 2 & 0x3333333333333333u);
  return static_cast<int>(((x + (x >> 4)) & 0x0f0f0f0f0f0f0f0fu) * 0x0101010101010101u >> 56);
}

/// Rows of keys [experts], one of each lane, and what is behind their last strip of 32.
struct key_rows {
  static constexpr int lanes = pack<float>::lanes, strip = 32;

  float const* row[lanes];
  int experts;
  index_t ahead = 0;  // how much further the row is that takes this one's place next
  alignas(64) float tail[lanes][strip];  // -inf where there is no expert

  /// Once the rows are there.
  void make_tails() {
    int const first = full();
    if (first == experts) return;
    for (int l = 0; l < lanes; ++l)
      for (int i = 0; i < strip; ++i)
        tail[l][i] = first + i < experts ? row[l][first + i] : -infinity<float>;
  }
  /// Where the tail begins.
  int full() const { return experts / strip * strip; }
  /// The keys of expert e and those behind it, which are of one strip.
  float const* at(int lane, int e) const {
    return e < full() ? row[lane] + e : tail[lane] + (e - full());
  }
  /// f(keys) for the strips of one row, in turn.
  template <class F>
  void for_each_strip(int lane, F f) const {
    int const end = full();
    for (int e = 0; e < end; e += strip) f(row[lane] + e);
    if (end < experts) f(static_cast<float const*>(tail[lane]));
  }
};

/// What the bits of a word stand for: bit i, for Steps steps from one expert of a class to the
/// next.
template <int Slots, int Steps>
struct word_of_classes {
  std::int64_t expert[64];

  constexpr word_of_classes() : expert{} {
    for (int bit = 0; bit < 64; ++bit)
      expert[bit] = bit % Steps * Slots + bit % 32 / Steps * 2 + bit / 32;
  }
};
template <int Slots, int Steps>
inline constexpr word_of_classes<Slots, Steps> class_word;

/// Puts keys that reach their row's threshold in slots, of `steps` times Slots experts from `first`
/// on. A row with more than Slots is said to fill Slots + 1, as is one without a threshold.
template <int Slots, int Steps>
__attribute__((noinline)) void fill_slots(key_rows const& keys, float const* thresholds, int first,
                                          int steps, column_slots<Slots>& slots, int* filled) {
  using p = pack<float>;
  constexpr int lanes = p::lanes, width = Slots / lanes;
  std::int64_t const last = keys.experts - first - 1;
  for (int l = 0; l < lanes; ++l) {
    p const threshold = p::all(thresholds[l]);
    mask_of<float> reach[width] = {};  // bit i: expert first + i * Slots + class
    auto const look = [&reach, threshold](float const* strip) {
      for (int i = 0; i < width; ++i)
        reach[i] = reach[i] + reach[i] - (p::load(strip + i * lanes).v >= threshold.v);
    };
    int e = first + (steps - 1) * Slots;
    for (; e >= keys.full(); e -= Slots) look(keys.at(l, e));
    for (; e >= first; e -= Slots) {
      __builtin_prefetch(keys.row[l] + e + keys.ahead, 0, 2);
      look(keys.row[l] + e);
    }
    alignas(64) std::uint64_t two[Slots / 2];  // each of the classes 2 i, 2 i + 1
    std::memcpy(two, reach, sizeof two);
    int at = thresholds[l] > -infinity<float> ? filled[l] : Slots + 1;
    for (int i = 0; i < Slots / 2; i += 32 / Steps) {
      std::uint64_t bits = 0;
      for (int j = 0; j < 32 / Steps; ++j) bits |= two[i + j] << j * Steps;
      int const n = count_bits(bits);
      if (at + n > Slots) {
        at = Slots + 1;
        break;
      }
      for (int j = 0; j < n; j += 4)
        for (int m = 0; m < 4; ++m) {  // those behind the last one are cleared, or overwritten
          std::int64_t const id = 2 * i + class_word<Slots, Steps>.expert[std::countr_zero(bits)];
          std::int64_t const valid = id < last ? id : last;
          bits &= bits - 1;
          slots.put(at + j + m, l, keys.row[l][first + valid], first + valid);
        }
      at += n;
    }
    filled[l] = at;
  }
}

/// The k best experts of each row to ids [k][lanes], -1 where there are fewer, for more experts
/// than slots, and k <= Slots / 2; gives the largest keys.
template <int Slots>
inline pack<float> select_rows(key_rows const& keys, int k, std::int32_t* ids) {
  using p = pack<float>;
  constexpr int lanes = p::lanes, width = Slots / lanes;  // packs of one number per class
  int const experts = keys.experts;
  alignas(64) float largest[lanes][Slots];
  alignas(64) float by_class[Slots * lanes];
  float const* largest_rows[lanes];
  for (int l = 0; l < lanes; ++l) {
    largest_rows[l] = largest[l];
    p most[width];
    for (p& m : most) m = p::all(-infinity<float>);
    keys.for_each_strip(l, [&most](float const* strip) {
      for (int i = 0; i < key_rows::strip / lanes; ++i)
        most[i % width] = larger(p::load(strip + i * lanes), most[i % width]);
    });
    for (int i = 0; i < width; ++i) most[i].store(largest[l] + i * lanes);
  }
  transpose(static_cast<float const* const*>(largest_rows), Slots, by_class, 0);
  typename p::vector classes[Slots];
  for (int i = 0; i < Slots; ++i) classes[i] = p::load(by_class + i * lanes).v;
  sort_rows<Slots>(static_cast<typename p::vector*>(classes));
  alignas(64) float thresholds[lanes];
  p{classes[k - 1]}.store(thresholds);
  column_slots<Slots> slots;
  for (int i = 0; i < Slots * lanes; ++i) slots.key[i] = -infinity<double>;
  alignas(64) int filled[lanes] = {};
  for (int first = 0; first < experts; first += 16 * Slots) {
    int const last = experts - first < 16 * Slots ? experts : first + 16 * Slots;
    int const steps = (last - first + Slots - 1) / Slots;
    if (steps <= 4)
      fill_slots<Slots, 4>(keys, thresholds, first, steps, slots, filled);
    else if (steps <= 8)
      fill_slots<Slots, 8>(keys, thresholds, first, steps, slots, filled);
    else
      fill_slots<Slots, 16>(keys, thresholds, first, steps, slots, filled);
  }
  for (int l = 0; l < lanes; ++l)
    for (int j = 0; j < 4 && filled[l] <= Slots; ++j) slots.clear(filled[l] + j, l);
  slots.sort(k, ids);
  for (int l = 0; l < lanes; ++l)
    if (filled[l] > Slots) {
      std::int32_t mine[most_slots];
      float best[most_slots];
      select_top_k(keys.row[l], experts, k, static_cast<std::int32_t*>(mine),
                   static_cast<float*>(best));
      for (int j = 0; j < k; ++j) ids[j * lanes + l] = mine[j];
    }
  return {classes[0]};
}

/// The k best experts of each lane to ids [k][lanes], -1 where there are fewer; gives the largest
/// keys. k is at most 16, or at most `experts`, which is at most 32.
template <class A>
inline pack<A> select_columns(A const* keys, int experts, int k, std::int32_t* ids) {
  if constexpr (std::is_same_v<A, float>) {
    if (experts > (k <= 8 ? 16 : 32))
      return k <= 8 ? select_by_threshold<16>(keys, experts, k, ids)
                    : select_by_threshold<32>(keys, experts, k, ids);
    if (experts <= 8)
      select_all<8>(keys, experts, k, ids);
    else if (experts <= 16)
      select_all<16>(keys, experts, k, ids);
    else
      select_all<32>(keys, experts, k, ids);
  } else {
    for (int l = 0; l < pack<A>::lanes; ++l) select_column(keys, experts, k, l, ids);
  }
  return largest_column(keys, experts);
}

}  // namespace detail
}  // namespace v0
}  // namespace expar
