// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include <expar/context.hpp>
#include <expar/detail/buffer.hpp>
#include <expar/element.hpp>
#include <expar/error.hpp>
#include <expar/tensor.hpp>

EXPAR_IEEE_BEGIN
namespace expar::inline v0::detail {

/// How many `things` a row has, which functions of one token count in int.
inline int row_size(char const* operation, char const* name, index_t n, char const* things) {
  expects(n <= INT32_MAX, operation, ": ", name, " has ", n, " ", things, "; at most ", INT32_MAX,
          " are possible");
  return static_cast<int>(n);
}

/// Calls f(token, scratch) for every token, with `size` numbers of scratch per thread: on its stack
/// for some thousand experts, from the context beyond. A chunk holds some thousand logits: less is
/// not worth waking a thread.
template <class A, class F>
void for_each_token_with(host_context const& ctx, index_t tokens, index_t experts, index_t size,
                         F&& f) {
  constexpr index_t on_stack = 8192;
  index_t const grain = 4096 / (experts + 1) + 1;
  if (size <= on_stack) {
    ctx.for_each_chunk(tokens, grain, [&](int, index_t first, index_t last) {
      alignas(64) A scratch[on_stack];
      for (index_t t = first; t < last; ++t) f(t, scratch);
    });
    return;
  }
  index_t const stride = size + 64;  // keeps threads off each other's cache lines
  buffer<A> scratch(ctx.memory());
  scratch.resize(stride * ctx.chunks(tokens, grain));
  ctx.for_each_chunk(tokens, grain, [&](int part, index_t first, index_t last) {
    for (index_t t = first; t < last; ++t) f(t, scratch.data() + part * stride);
  });
}

template <class A, class T>
void widen_row(T const* from, A* to, index_t n) {
  for (index_t i = 0; i < n; ++i) to[i] = static_cast<A>(widen(from[i]));
}
template <class A, class T>
void narrow_row(A const* from, T* to, index_t n) {
  for (index_t i = 0; i < n; ++i) to[i] = narrow<T>(static_cast<accumulator_t<T>>(from[i]));
}

}  // namespace expar::inline v0::detail
EXPAR_IEEE_END
