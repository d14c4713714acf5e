// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

#include <expar/router/detail/column_slots.hpp>
#include <expar/router/detail/transpose.hpp>
#include <expar/router/top_k.hpp>
#include <expar/tensor.hpp>

namespace expar {
inline namespace v0 {
namespace detail {

/// Rows of keys [experts], one of each lane, and what is behind their last strip of 32.
struct key_rows {
  static constexpr int lanes = pack<float>::lanes, strip = 32;

  float const* row[lanes];
  int experts;
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
  /// f(keys) for the strips from expert `first` to `last`, which are multiples of 32 or beyond all.
  template <class F>
  void for_each_strip(int lane, int first, int last, F f) const {
    int const end = last < full() ? last : full();
    for (int e = first; e < end; e += strip) f(row[lane] + e);
    if (end < experts && end < last) f(static_cast<float const*>(tail[lane]));
  }
};

/// What the bits of a word stand for, where each class has Steps bits: bit i of a class is its i-th
/// expert. An entry more, for a word without a bit.
template <int Slots, int Steps>
struct word_of_classes {
  std::int64_t expert[65];

  constexpr word_of_classes() : expert{} {
    for (int bit = 0; bit < 64; ++bit)
      expert[bit] = bit % Steps * Slots + bit % 32 / Steps * 2 + bit / 32;
  }
};
template <int Slots, int Steps>
inline constexpr word_of_classes<Slots, Steps> class_word{};

/// Puts keys that reach their row's threshold in slots, of Steps experts of each class from `first`
/// on. A row with more of them than slots is said to fill Slots + 1, as is one without a threshold.
template <int Slots, int Steps>
void fill_slots(key_rows const& keys, float const* thresholds, int first,
                column_slots<Slots>& slots, int* filled) {
  using p = pack<float>;
  using mask = mask_of<float>;
  constexpr int lanes = p::lanes, width = Slots / lanes;
  std::int64_t const last = keys.experts - first - 1;
  for (int l = 0; l < lanes; ++l) {
    p const threshold = p::all(thresholds[l]);
    mask reach[width] = {};
    mask bit = 1 - mask{};
    keys.for_each_strip(l, first, first + Steps * Slots, [&](float const* strip) {
      for (int i = 0; i < key_rows::strip / lanes; ++i) {
        reach[i % width] |= bit & (p::load(strip + i * lanes).v >= threshold.v);
        if (i % width == width - 1) bit += bit;
      }
    });
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
      for (int j = 0; j < n; j += slots.more)
        for (int m = 0; m < slots.more; ++m) {  // those behind the last one will be cleared
          std::int64_t const id = 2 * i + class_word<Slots, Steps>.expert[std::countr_zero(bits)];
          std::int64_t const valid = first + (id < last ? id : last);
          bits &= bits - 1;
          slots.put(at + j + m, l, keys.row[l][valid], valid);
        }
      at += n;
    }
    filled[l] = at;
  }
}

/// The k best experts of each row to ids [k][lanes], -1 where there are fewer; gives the largest
/// keys. For more experts than slots, and k <= Slots / 2.
template <int Slots>
pack<float> select_rows(key_rows const& keys, int k, std::int32_t* ids) {
  using p = pack<float>;
  constexpr int lanes = p::lanes, width = Slots / lanes;
  int const experts = keys.experts;
  alignas(64) float largest[lanes * Slots], by_class[Slots * lanes], thresholds[lanes];
  float const* largest_rows[lanes];
  for (int l = 0; l < lanes; ++l) {
    p most[width];
    for (p& m : most) m = p::all(-infinity<float>);
    keys.for_each_strip(l, 0, experts, [&most](float const* strip) {
      for (int i = 0; i < key_rows::strip / lanes; ++i)
        most[i % width] = larger(p::load(strip + i * lanes), most[i % width]);
    });
    for (int i = 0; i < width; ++i) most[i].store(largest + l * Slots + i * lanes);
    largest_rows[l] = largest + l * Slots;
  }
  transpose(static_cast<float const* const*>(largest_rows), Slots, static_cast<float*>(by_class));
  typename p::vector classes[Slots];
  for (int i = 0; i < Slots; ++i) classes[i] = p::load(by_class + i * lanes).v;
  sort_rows<Slots>(static_cast<typename p::vector*>(classes));
  p{classes[k - 1]}.store(thresholds);
  column_slots<Slots> slots;
  slots.clear();
  int filled[lanes] = {};
  for (int first = 0; first < experts; first += 16 * Slots) {
    if (experts - first <= 4 * Slots)
      fill_slots<Slots, 4>(keys, thresholds, first, slots, filled);
    else if (experts - first <= 8 * Slots)
      fill_slots<Slots, 8>(keys, thresholds, first, slots, filled);
    else
      fill_slots<Slots, 16>(keys, thresholds, first, slots, filled);
  }
  for (int l = 0; l < lanes; ++l) slots.clear_from(filled[l], l);
  slots.sort(k, ids);
  for (int l = 0; l < lanes; ++l)
    if (filled[l] > Slots) {
      std::int32_t mine[Slots];
      float best[Slots];
      select_top_k(keys.row[l], experts, k, static_cast<std::int32_t*>(mine),
                   static_cast<float*>(best));
      for (int j = 0; j < k; ++j) ids[j * lanes + l] = mine[j];
    }
  return p{classes[0]};
}

}  // namespace detail
}  // namespace v0
}  // namespace expar
