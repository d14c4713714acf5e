// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include <expar/router/detail/pack.hpp>

#if defined(__AVX512F__) && !defined(__CUDACC__)
#include <immintrin.h>
#define EXPAR_DETAIL_AVX512 1
#endif

EXPAR_IEEE_BEGIN
namespace expar::inline v0::detail {
inline namespace EXPAR_VECTORS {

/// How many experts rows may have where slots are filled fast.
inline constexpr int most_experts_of_rows = 1024;

/// Rows of keys [experts], one of each lane, and what is behind their last strip of 32.
struct key_rows {
  static constexpr int lanes = pack<float>::lanes, strip = 32;

  float const* row[lanes];
  int experts;
  std::uintptr_t next_block = 0;         // bytes to its rows, or behind the last one; 0: unknown
  alignas(64) float tail[lanes][strip];  // -inf where there is no expert

  /// Once the rows are there.
  void make_tails() {
    int const first = full();
    if (first == experts) return;
#ifdef EXPAR_DETAIL_AVX512
    std::uint32_t const there = (1u << (experts - first)) - 1;
    __m512 const none = _mm512_set1_ps(-infinity<float>);
    for (int l = 0; l < lanes; ++l)
      for (int i = 0; i < strip; i += 16)
        _mm512_store_ps(tail[l] + i, _mm512_mask_loadu_ps(none, static_cast<__mmask16>(there >> i),
                                                          row[l] + first + i));
#else
    for (int l = 0; l < lanes; ++l)
      for (int i = 0; i < strip; ++i)
        tail[l][i] = first + i < experts ? row[l][first + i] : -infinity<float>;
#endif
  }
  /// Where the tail begins.
  int full() const {
    return experts & -strip;
  }
  float const* strip_at(int lane, int first) const {
    return first < full() ? row[lane] + first : tail[lane];
  }
  /// Has the caches fetch what the next block has in place of a row; its rows may be far too many
  /// for them to keep.
  EXPAR_ALWAYS_INLINE void prefetch(int lane) const {
    if (next_block == 0) return;
    auto const at = reinterpret_cast<std::uintptr_t>(row[lane]) + next_block;
    for (unsigned e = 0; e < static_cast<unsigned>(experts); e += 16)
      __builtin_prefetch(reinterpret_cast<void const*>(at + 4 * e), 0, 2);
  }
  /// f(keys) for the strips from expert `first` to `last`, which are multiples of 32 or beyond all.
  template <class F>
  void for_each_strip(int lane, int first, int last, F f) const {
    int const end = last < full() ? last : full();
    for (int e = first; e < end; e += strip) f(row[lane] + e);
    if (end < experts && end < last) f(static_cast<float const*>(tail[lane]));
  }
};

}  // namespace EXPAR_VECTORS
}  // namespace expar::inline v0::detail
EXPAR_IEEE_END

#undef EXPAR_DETAIL_AVX512
