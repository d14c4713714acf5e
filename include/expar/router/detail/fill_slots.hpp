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

EXPAR_IEEE_BEGIN
namespace expar::inline v0::detail {
inline namespace EXPAR_VECTORS {

#ifdef EXPAR_DETAIL_COMPRESSES

/// Whether slots are filled so fast that rows are better than columns however few experts.
inline constexpr bool fills_fast = true;

/// A cast, without GCC's warning of its own header.
EXPAR_ALWAYS_INLINE __m128i first_quad(__m512i v) {
  auto const ints = (mask_of<float>)v;
  return (__m128i)__builtin_shufflevector(ints, ints, 0, 1, 2, 3);
}

/// What is at least `threshold` among 32 keys.
EXPAR_ALWAYS_INLINE __mmask32 reaching(float const* strip, __m512 threshold) {
  return _mm512_kunpackw(_mm512_cmp_ps_mask(_mm512_loadu_ps(strip + 16), threshold, _CMP_GE_OQ),
                         _mm512_cmp_ps_mask(_mm512_loadu_ps(strip), threshold, _CMP_GE_OQ));
}

/// The experts of each lane whose keys reach its threshold, by ascending id.
template <int Slots>
struct reaching_experts {
  static constexpr int lanes = pack<float>::lanes;

  alignas(64) std::uint8_t low[lanes][2 * Slots];  // bits of their ids; any expert's behind them
  std::int32_t filled[most_experts_of_rows / 256][lanes];  // how many are below 256, 512, ...

  /// Finds them; of each lane how many, or more than Slots.
  EXPAR_ALWAYS_INLINE void find(key_rows const& keys, float const* thresholds, int* found) {
    static constexpr struct numbers {
      std::uint8_t at[64] = {};
      constexpr numbers() {
        for (int i = 0; i < 64; ++i) at[i] = static_cast<std::uint8_t>(i);
      }
    } numbers;
    __m512i const more = _mm512_set1_epi8(64);
    int const experts = keys.experts, full = keys.full();
    for (int l = 0; l < lanes; ++l) {
      bool const any = thresholds[l] > -infinity<float>;
      found[l] = any ? 0 : Slots + 1;
      if (!any) std::memset(low[l], 0, Slots);
    }
    for (int base = 0; base < experts; base += 256) {
      int const end = experts - base < 256 ? experts : base + 256;
      int const whole = base + (((full < end ? full : end) - base) & ~63);
      for (int l = 0; l < lanes; ++l) {
        if (base == 0) keys.prefetch(l);
        __m512 const least = _mm512_set1_ps(thresholds[l]);
        __m512i each = _mm512_loadu_si512(numbers.at);
        float const* const row = keys.row[l];
        std::uint8_t* const ids = low[l];
        int n = found[l];
        auto const put = [&](__mmask64 bits) {
          __m512i const chosen = _mm512_maskz_compress_epi8(bits, each);
          _mm_storeu_si128((__m128i*)(ids + n), first_quad(chosen));
          if constexpr (Slots > 16)
            _mm_storeu_si128((__m128i*)(ids + n + 16),
                             _mm512_maskz_extracti32x4_epi32(0xf, chosen, 1));
          n += static_cast<int>(_mm_popcnt_u64(bits));
          each = _mm512_maskz_add_epi8(~__mmask64{}, each, more);
        };
        int first = base;
        for (; first < whole && n <= Slots; first += 64)
          put(_mm512_kunpackd(reaching(row + first + 32, least), reaching(row + first, least)));
        if (first < end && n <= Slots) {
          __mmask64 bits = reaching(keys.strip_at(l, first), least);
          if (first + 32 < end)
            bits = _mm512_kunpackd(reaching(keys.strip_at(l, first + 32), least), bits);
          put(bits);
        }
        found[l] = filled[base / 256][l] = n;
      }
    }
  }

  /// The ids to columns [Slots][lanes].
  EXPAR_ALWAYS_INLINE void put_ids(int experts, std::int32_t* to) const {
    for (int slot = 0; slot < Slots; slot += 16) {
      auto const rows = [&](int i) {
        return load_quads((std::int32_t const*)(low[i] + slot), 2 * Slots);
      };
      auto const rows_0 = (__m512i)rows(0), rows_1 = (__m512i)rows(1);
      auto const rows_2 = (__m512i)rows(2), rows_3 = (__m512i)rows(3);
      __mmask64 const all = ~__mmask64{};
      __mmask32 const all_pairs = ~__mmask32{};
      __m512i const first = _mm512_maskz_unpacklo_epi8(all, rows_0, rows_1);
      __m512i const last = _mm512_maskz_unpackhi_epi8(all, rows_0, rows_1);
      __m512i const first_more = _mm512_maskz_unpacklo_epi8(all, rows_2, rows_3);
      __m512i const last_more = _mm512_maskz_unpackhi_epi8(all, rows_2, rows_3);
      put_four(experts, slot, _mm512_maskz_unpacklo_epi16(all_pairs, first, first_more), to);
      put_four(experts, slot + 4, _mm512_maskz_unpackhi_epi16(all_pairs, first, first_more), to);
      put_four(experts, slot + 8, _mm512_maskz_unpacklo_epi16(all_pairs, last, last_more), to);
      put_four(experts, slot + 12, _mm512_maskz_unpackhi_epi16(all_pairs, last, last_more), to);
    }
  }

 private:
  /// Four slots, of which entry m of quad q has slot m of the lanes 4 q, ..., 4 q + 3.
  EXPAR_ALWAYS_INLINE void put_four(int experts, int slot, __m512i quads, std::int32_t* to) const {
    __m512i const columns = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    __m512i const v = _mm512_maskz_permutexvar_epi32(0xffff, columns, quads);
    put_slot(experts, slot, first_quad(v), to);
    put_slot(experts, slot + 1, _mm512_maskz_extracti32x4_epi32(0xf, v, 1), to);
    put_slot(experts, slot + 2, _mm512_maskz_extracti32x4_epi32(0xf, v, 2), to);
    put_slot(experts, slot + 3, _mm512_maskz_extracti32x4_epi32(0xf, v, 3), to);
  }
  EXPAR_ALWAYS_INLINE void put_slot(int experts, int slot, __m128i bytes, std::int32_t* to) const {
    auto ids = (mask_of<float>)_mm512_maskz_cvtepu8_epi32(0xffff, bytes);
    for (int base = 256; base < experts; base += 256) {
      mask_of<float> below;
      std::memcpy(&below, filled[base / 256 - 1], sizeof below);
      ids += 256 & (below <= slot);
    }
    ids = ids < experts ? ids : 0;
    std::memcpy(to + slot * lanes, &ids, sizeof ids);
  }
};

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
void fill_slots(key_rows const& keys, float const* thresholds, column_slots<Slots>& places,
                int* filled) {
  using p = pack<float>;
  constexpr int lanes = p::lanes;
  reaching_experts<Slots> found;
  found.find(keys, thresholds, filled);
  found.put_ids(keys.experts, static_cast<std::int32_t*>(places.id));
  if (keys.experts <= 128) {
    alignas(64) float rows[lanes][Slots];
    for (int l = 0; l < lanes; ++l)
      for (int i = 0; i < Slots; i += 16) {
        __m128i const ids = _mm_load_si128((__m128i const*)(found.low[l] + i));
        _mm512_store_ps(rows[l] + i, keys_of(keys, l, _mm512_maskz_cvtepu8_epi32(0xffff, ids)));
      }
    transpose(static_cast<float const*>(rows[0]), Slots, Slots, static_cast<float*>(places.key));
  } else {
    for (int l = 0; l < lanes; ++l) {
      float const* const row = keys.row[l];
      for (int at = l; at < Slots * lanes; at += lanes)
        std::memcpy(places.key + at, row + places.id[at], sizeof(float));
    }
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
void fill_from(key_rows const& keys, float const* thresholds, int first,
               column_slots<Slots>& places, int* filled) {
  using p = pack<float>;
  using mask = mask_of<float>;
  constexpr int lanes = p::lanes, width = Slots / lanes;
  std::int64_t const last = keys.experts - first - 1;
  for (int l = 0; l < lanes; ++l) {
    p const threshold = p::all(thresholds[l]);
    mask reach[width] = {};
    mask bit = 1 - mask{};
    if (first == 0) keys.prefetch(l);
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
      for (int j = 0; j < n; j += places.more)
        for (int m = 0; m < places.more; ++m) {  // those behind the last one do not count
          std::int64_t const id = 2 * i + class_word<Slots, Steps>.expert[std::countr_zero(bits)];
          std::int64_t const valid = first + (id < last ? id : last);
          bits &= bits - 1;
          places.put(at + j + m, l, keys.row[l][valid], valid);
        }
      at += n;
    }
    filled[l] = at;
  }
}

/// Puts the keys that reach their row's threshold in slots, and counts them. A row with more of
/// them than slots is said to fill more than Slots, as is one without a threshold.
template <int Slots>
void fill_slots(key_rows const& keys, float const* thresholds, column_slots<Slots>& places,
                int* filled) {
  constexpr int lanes = pack<float>::lanes;
  for (int l = 0; l < lanes; ++l) filled[l] = 0;
  for (int first = 0; first < keys.experts; first += 16 * Slots) {
    if (keys.experts - first <= 4 * Slots)
      fill_from<Slots, 4>(keys, thresholds, first, places, filled);
    else if (keys.experts - first <= 8 * Slots)
      fill_from<Slots, 8>(keys, thresholds, first, places, filled);
    else
      fill_from<Slots, 16>(keys, thresholds, first, places, filled);
  }
}

#endif

}  // namespace EXPAR_VECTORS
}  // namespace expar::inline v0::detail
EXPAR_IEEE_END

#undef EXPAR_DETAIL_COMPRESSES
