// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

#include <expar/router/detail/column_slots.hpp>
#include <expar/router/detail/key_rows.hpp>
#include <expar/router/detail/transpose.hpp>

#if defined(__AVX512BW__) && defined(__AVX512VBMI2__) && !defined(__CUDACC__)
#include <immintrin.h>
#define EXPAR_DETAIL_COMPRESSES 1
#endif

namespace expar {
inline namespace v0 {
namespace detail {
inline namespace EXPAR_VECTORS {

#ifdef EXPAR_DETAIL_COMPRESSES

/// Whether slots are filled so fast that rows are better than columns however few experts.
inline constexpr bool fills_fast = true;

/// What is at least `threshold` among 32 keys.
EXPAR_ALWAYS_INLINE __mmask32 reaching(float const* strip, __m512 threshold) {
  return _mm512_kunpackw(_mm512_cmp_ps_mask(_mm512_loadu_ps(strip + 16), threshold, _CMP_GE_OQ),
                         _mm512_cmp_ps_mask(_mm512_loadu_ps(strip), threshold, _CMP_GE_OQ));
}

/// The experts of one lane whose keys reach the threshold to ids [2 Slots], any experts behind
/// them; how many, or more than Slots.
template <int Slots>
EXPAR_ALWAYS_INLINE int reaching_experts(key_rows const& keys, int lane, float threshold,
                                         std::int32_t* ids) {
  static constexpr struct numbers {
    std::uint8_t at[64] = {};
    constexpr numbers() {
      for (int i = 0; i < 64; ++i) at[i] = static_cast<std::uint8_t>(i);
    }
  } numbers;
  for (int i = 0; i < Slots; i += 16) _mm512_storeu_si512(ids + i, _mm512_setzero_si512());
  if (!(threshold > -infinity<float>)) return Slots + 1;
  __m512i const each = _mm512_loadu_si512(numbers.at);
  __m512 const least = _mm512_set1_ps(threshold);
  int found = 0;
  for (int first = 0; first < keys.experts && found <= Slots; first += 64) {
    keys.prefetch(lane, first);
    __mmask64 bits = reaching(keys.strip_at(lane, first), least);
    if (first + 32 < keys.experts) {
      keys.prefetch(lane, first + 32);
      bits = _mm512_kunpackd(reaching(keys.strip_at(lane, first + 32), least), bits);
    }
    __m512i const bytes = _mm512_maskz_compress_epi8(bits, each);
    __m512i const base = _mm512_set1_epi32(first);
    auto const put = [&](__m128i part, int at) {
      _mm512_storeu_si512(ids + at,
                          _mm512_add_epi32(_mm512_maskz_cvtepu8_epi32(0xffff, part), base));
    };
    put(_mm512_maskz_extracti32x4_epi32(0xf, bytes, 0), found);
    if (Slots > 16 && found + 16 <= Slots)
      put(_mm512_maskz_extracti32x4_epi32(0xf, bytes, 1), found + 16);
    found += static_cast<int>(_mm_popcnt_u64(bits));
  }
  return found;
}

/// The keys of 16 experts of one lane, of which there are at most 128 in all.
EXPAR_ALWAYS_INLINE __m512 keys_of(key_rows const& keys, int lane, __m512i experts) {
  __m512i const strips = _mm512_maskz_srli_epi32(0xffff, experts, 5);
  __m512 all = _mm512_setzero_ps();
  for (int first = 0; first < keys.experts; first += key_rows::strip) {
    float const* const strip = keys.strip_at(lane, first);
    __mmask16 const here = _mm512_cmpeq_epi32_mask(strips, _mm512_set1_epi32(first / 32));
    all = _mm512_mask_mov_ps(
        all, here,
        _mm512_permutex2var_ps(_mm512_loadu_ps(strip), experts, _mm512_loadu_ps(strip + 16)));
  }
  return all;
}

/// Puts the keys that reach their row's threshold in slots, and counts them. A row with more of
/// them than slots is said to fill more than Slots, as is one without a threshold.
template <int Slots>
void fill_slots(key_rows const& keys, float const* thresholds, column_slots<Slots>& slots,
                int* filled) {
  using p = pack<float>;
  constexpr int lanes = p::lanes;
  alignas(64) std::int32_t ids[lanes][2 * Slots];
  for (int l = 0; l < lanes; ++l)
    filled[l] = reaching_experts<Slots>(keys, l, thresholds[l], ids[l]);
  transpose(static_cast<std::int32_t const*>(ids[0]), 2 * Slots, Slots,
            static_cast<std::int32_t*>(slots.id));
  if (keys.experts <= 128) {
    alignas(64) float found[lanes][Slots];
    for (int l = 0; l < lanes; ++l)
      for (int i = 0; i < Slots; i += 16)
        _mm512_store_ps(found[l] + i, keys_of(keys, l, _mm512_load_si512(ids[l] + i)));
    transpose(static_cast<float const*>(found[0]), Slots, Slots, static_cast<float*>(slots.key));
  } else {
    for (int l = 0; l < lanes; ++l)
      for (int i = 0; i < Slots; ++i)
        std::memcpy(slots.key + i * lanes + l, keys.row[l] + ids[l][i], sizeof(float));
  }
}

#else

inline constexpr bool fills_fast = false;

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

/// fill_slots() of Steps experts of each class from `first` on.
template <int Slots, int Steps>
void fill_from(key_rows const& keys, float const* thresholds, int first, column_slots<Slots>& slots,
               int* filled) {
  using p = pack<float>;
  using mask = mask_of<float>;
  constexpr int lanes = p::lanes, width = Slots / lanes;
  std::int64_t const last = keys.experts - first - 1;
  for (int l = 0; l < lanes; ++l) {
    p const threshold = p::all(thresholds[l]);
    mask reach[width] = {};
    mask bit = 1 - mask{};
    for (int e = first; e < keys.experts && e < first + Steps * Slots; e += key_rows::strip)
      keys.prefetch(l, e);
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
        for (int m = 0; m < slots.more; ++m) {  // those behind the last one do not count
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

/// Puts the keys that reach their row's threshold in slots, and counts them. A row with more of
/// them than slots is said to fill more than Slots, as is one without a threshold.
template <int Slots>
void fill_slots(key_rows const& keys, float const* thresholds, column_slots<Slots>& slots,
                int* filled) {
  constexpr int lanes = pack<float>::lanes;
  slots.clear();
  for (int l = 0; l < lanes; ++l) filled[l] = 0;
  for (int first = 0; first < keys.experts; first += 16 * Slots) {
    if (keys.experts - first <= 4 * Slots)
      fill_from<Slots, 4>(keys, thresholds, first, slots, filled);
    else if (keys.experts - first <= 8 * Slots)
      fill_from<Slots, 8>(keys, thresholds, first, slots, filled);
    else
      fill_from<Slots, 16>(keys, thresholds, first, slots, filled);
  }
}

#endif

}  // namespace EXPAR_VECTORS
}  // namespace detail
}  // namespace v0
}  // namespace expar

#undef EXPAR_DETAIL_COMPRESSES
