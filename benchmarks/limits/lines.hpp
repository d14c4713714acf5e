// SPDX-License-Identifier: Apache-2.0
// What limit kernels are made of: vectors as wide as the compiled file may use, stores that pass by
// the caches or do not, and sums of rows in float.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include <expar/element.hpp>
#include <expar/tensor.hpp>

namespace limits {

using expar::bfloat16;
using expar::index_t;

#if defined(__AVX512F__)
constexpr int vector_bytes = 64;
constexpr char const* instructions = "AVX-512";
#elif defined(__AVX2__)
constexpr int vector_bytes = 32;
constexpr char const* instructions = "AVX2";
#elif defined(__SSE2__)
constexpr int vector_bytes = 16;
constexpr char const* instructions = "SSE2";
#else
constexpr int vector_bytes = 16;
constexpr char const* instructions = "portable";
#endif

using floats [[gnu::vector_size(vector_bytes)]] = float;
using words [[gnu::vector_size(vector_bytes)]] = std::uint32_t;

/// Rows are moved in blocks of so many vectors: whole lines, and as many of one row in a burst as
/// registers allow.
constexpr int vectors = 4;
template <class T>
constexpr index_t block = (vectors * vector_bytes) / index_t{sizeof(T)};

template <class T>
inline words load(T const* p) {
  words v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

/// Stores through the caches. Prefetching costs more than it gives there.
struct temporal {
  static void store(void* p, words v) { std::memcpy(p, &v, sizeof v); }
  static void prefetch(void const*) {}
  static void finish() {}
};

/// Stores past the caches, and loads that are asked for ahead of time. `p` lies on a whole vector.
struct streaming {
  static void store(void* p, words v) {
#if defined(__AVX512F__)
    _mm512_stream_si512(static_cast<__m512i*>(p), (__m512i)v);
#elif defined(__AVX2__)
    _mm256_stream_si256(static_cast<__m256i*>(p), (__m256i)v);
#elif defined(__SSE2__)
    _mm_stream_si128(static_cast<__m128i*>(p), (__m128i)v);
#else
    std::memcpy(p, &v, sizeof v);
#endif
  }
  /// All lines of a block, as far ahead of `p` as memory takes to answer.
  static void prefetch(void const* p) {
    constexpr int ahead = 2048, line = 64;
    for (int i = 0; i < vectors * vector_bytes; i += line)
      __builtin_prefetch(static_cast<char const*>(p) + ahead + i, 0, 3);
  }
  static void finish() {
#if defined(__SSE2__)
    _mm_sfence();
#endif
  }
};

/// The same without a guess what will be read: where a row ends, another begins elsewhere.
struct streaming_alone : streaming {
  static void prefetch(void const*) {}
};

/// Sums of the elements of one vector, in float.
template <class T>
struct sums;

template <>
struct sums<float> {
  floats all = {};
  void add(words row, float weight) { all += (floats)row * weight; }
  void add_products(words a, words b) { all += (floats)a * (floats)b; }
  words rounded() const { return (words)all; }
  float total() const {
    float sum = 0;
    for (int i = 0; i < vector_bytes / 4; ++i) sum += all[i];
    return sum;
  }
};

/// Elements of even and of odd place are widened by a shift and by a mask, without a shuffle.
template <>
struct sums<bfloat16> {
  floats even = {}, odd = {};
  static floats low(words v) { return (floats)(v << 16); }
  static floats high(words v) { return (floats)(v & 0xffff0000u); }
  void add(words row, float weight) { even += low(row) * weight, odd += high(row) * weight; }
  void add_products(words a, words b) { even += low(a) * low(b), odd += high(a) * high(b); }
  /// To nearest, ties to even; no NaN is expected.
  words rounded() const {
    words a = (words)even, b = (words)odd;
    a += 0x7fffu + (a >> 16 & 1u), b += 0x7fffu + (b >> 16 & 1u);
    return (a >> 16) | (b & 0xffff0000u);
  }
  float total() const {
    float sum = 0;
    for (int i = 0; i < vector_bytes / 4; ++i) sum += even[i] + odd[i];
    return sum;
  }
};

}  // namespace limits
