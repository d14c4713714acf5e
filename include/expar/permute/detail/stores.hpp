// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include <expar/detail/vectors.hpp>

namespace expar::inline v0::detail {
inline namespace EXPAR_VECTORS {

inline constexpr std::size_t line_bytes = 64;
/// How far ahead rows that exceed the caches are asked for.
inline constexpr std::size_t rows_ahead = 512;

/// Bytes from an address to the next line.
inline std::size_t to_next_line(void const* at) {
  return (0 - reinterpret_cast<std::uintptr_t>(at)) % line_bytes;
}

typedef long long line_part __attribute__((vector_size(vector_bytes)));

EXPAR_ALWAYS_INLINE void stream(line_part* to, line_part from) {
#if defined(__clang__) && !defined(__CUDACC__)
  __builtin_nontemporal_store(from, to);
#elif EXPAR_VECTOR_BYTES == 64
  __builtin_ia32_movntdq512(to, from);
#elif EXPAR_VECTOR_BYTES == 32
  __builtin_ia32_movntdq256(to, from);
#elif defined(__SSE2__)
  __builtin_ia32_movntdq(to, from);
#else
  *to = from;
#endif
}

/// Writes whole lines past the caches, so that they are not read before: `to` is where a line
/// begins. Where the target has no such stores, as any others. Others see them after end_streams().
EXPAR_ALWAYS_INLINE void stream_lines(std::byte* to, std::byte const* from, std::size_t bytes) {
  for (std::size_t i = 0; i < bytes; i += sizeof(line_part)) {
    line_part part;
    std::memcpy(&part, from + i, sizeof part);
    stream(reinterpret_cast<line_part*>(to + i), part);
  }
}

/// Asks for bytes that are read soon. GCC drops calls of a function that does nothing else, unless
/// it is always inlined.
EXPAR_ALWAYS_INLINE void prefetch(void const* from, std::size_t bytes) {
  for (std::size_t i = 0; i < bytes; i += line_bytes)
    __builtin_prefetch(static_cast<std::byte const*>(from) + i);
}

/// What is read next, and asked for little by little while something else is written.
struct next_read {
  void const* from = nullptr;
  std::size_t bytes = 0;

  /// As much of it as `written` is of `all`.
  EXPAR_ALWAYS_INLINE void ask(std::size_t written, std::size_t all) {
    for (; asked < bytes && asked * all <= written * bytes; asked += line_bytes)
      __builtin_prefetch(static_cast<std::byte const*>(from) + asked);
  }
  std::size_t asked = 0;
};

/// Behind streams, on the thread that wrote them.
inline void end_streams() {
#if defined(__SSE2__)
  __builtin_ia32_sfence();
#endif
}

/// Copies a row past the caches, but for the lines that it shares with its neighbours.
inline void stream_row(void* to, void const* from, std::size_t bytes, next_read next = {}) {
  constexpr std::size_t burst = 4 * line_bytes;
  auto* out = static_cast<std::byte*>(to);
  auto const* in = static_cast<std::byte const*>(from);
  std::size_t const head = to_next_line(to);
  if (bytes < head + line_bytes) {
    if (bytes != 0) std::memcpy(to, from, bytes);
    return;
  }
  std::memcpy(out, in, head);
  out += head, in += head, bytes -= head;
  std::size_t const all = bytes;
  for (; bytes >= burst; out += burst, in += burst, bytes -= burst) {
    next.ask(all - bytes, all);
    stream_lines(out, in, burst);
  }
  for (; bytes >= line_bytes; out += line_bytes, in += line_bytes, bytes -= line_bytes)
    stream_lines(out, in, line_bytes);
  std::memcpy(out, in, bytes);
}

}  // namespace EXPAR_VECTORS
}  // namespace expar::inline v0::detail
