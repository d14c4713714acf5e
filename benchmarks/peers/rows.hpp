// SPDX-License-Identifier: Apache-2.0
// How other systems move rows between tokens and experts on a host, written anew from what they do:
// by the index of each row, and one choice after the other. All memory is there before they begin,
// which is more than frameworks have that allocate their results.
#pragma once

#include <cstring>

#include <expar/context.hpp>
#include <expar/element.hpp>

namespace peers {

using expar::host_context;
using expar::index_t;

/// Which row has which route: sources[row] = token * k + choice; rows[route] is the inverse.
struct routing {
  index_t const* sources;
  index_t const* rows;
  index_t tokens, hidden;
  int k;
  index_t row_count() const { return tokens * k; }
};

/// rows = x.index_select(0, tokens of rows): each row fetches its token.
template <class T>
void index_select(host_context const& ctx, routing r, T const* x, T* rows) {
  ctx.for_each_chunk(r.row_count(), 1, [&](int, index_t first, index_t last) {
    for (index_t i = first; i < last; ++i)
      std::memcpy(rows + i * r.hidden, x + r.sources[i] / r.k * r.hidden,
                  static_cast<std::size_t>(r.hidden) * sizeof(T));
  });
}

/// out.zero_().index_add_(0, tokens of rows, weights * rows), and the product is not stored. Each
/// addition is rounded. Threads share the columns, so that none adds to a row of another.
template <class T>
void index_add(host_context const& ctx, routing r, T const* rows, float const* weights, T* out) {
  ctx.for_each_chunk(r.hidden, 256, [&](int, index_t first, index_t last) {
    auto const bytes = static_cast<std::size_t>(last - first) * sizeof(T);
    for (index_t t = 0; t < r.tokens; ++t) std::memset(out + t * r.hidden + first, 0, bytes);
    for (index_t i = 0; i < r.row_count(); ++i) {
      T const* const row = rows + i * r.hidden;
      T* const to = out + r.sources[i] / r.k * r.hidden;
      float const weight = weights == nullptr ? 1.0f : weights[r.sources[i]];
      for (index_t h = first; h < last; ++h)
        to[h] = expar::narrow<T>(expar::widen(to[h]) + weight * expar::widen(row[h]));
    }
  });
}

/// Rows are zeroed, and each choice adds the tokens in a pass of its own, as Tutel encodes.
template <class T>
void add_choices_to_rows(host_context const& ctx, routing r, T const* x, T* rows) {
  ctx.for_each_chunk(r.row_count(), 1, [&](int, index_t first, index_t last) {
    std::memset(static_cast<void*>(rows + first * r.hidden), 0,
                static_cast<std::size_t>((last - first) * r.hidden) * sizeof(T));
  });
  for (int j = 0; j < r.k; ++j)
    ctx.for_each_chunk(r.tokens, 1, [&](int, index_t first, index_t last) {
      for (index_t t = first; t < last; ++t) {
        T* const row = rows + r.rows[t * r.k + j] * r.hidden;
        T const* const token = x + t * r.hidden;
        for (index_t h = 0; h < r.hidden; ++h)
          row[h] = expar::narrow<T>(expar::widen(row[h]) + expar::widen(token[h]));
      }
    });
}

/// Each choice adds its weighted rows in a pass of its own, as Tutel decodes.
template <class T>
void add_choices_to_tokens(host_context const& ctx, routing r, T const* rows, float const* weights,
                           T* out) {
  ctx.for_each_chunk(r.tokens, 1, [&](int, index_t first, index_t last) {
    std::memset(static_cast<void*>(out + first * r.hidden), 0,
                static_cast<std::size_t>((last - first) * r.hidden) * sizeof(T));
  });
  for (int j = 0; j < r.k; ++j)
    ctx.for_each_chunk(r.tokens, 1, [&](int, index_t first, index_t last) {
      for (index_t t = first; t < last; ++t) {
        T const* const row = rows + r.rows[t * r.k + j] * r.hidden;
        T* const to = out + t * r.hidden;
        float const weight = weights == nullptr ? 1.0f : weights[t * r.k + j];
        for (index_t h = 0; h < r.hidden; ++h)
          to[h] = expar::narrow<T>(expar::widen(to[h]) + weight * expar::widen(row[h]));
      }
    });
}

/// As automatic differentiation goes back through weights * rows and index_add_: d_out is fetched
/// for every row, multiplied by the weight, and by the row for a sum; three passes.
template <class T>
void autograd_of_index_add(host_context const& ctx, routing r, T const* d_out, T const* rows,
                           float const* weights, T* fetched, T* d_rows, float* d_weights) {
  constexpr int parts = 16;
  index_select(ctx, r, d_out, fetched);
  ctx.for_each_chunk(r.row_count(), 1, [&](int, index_t first, index_t last) {
    for (index_t i = first; i < last; ++i) {
      float const weight = weights[r.sources[i]];
      for (index_t h = i * r.hidden; h < (i + 1) * r.hidden; ++h)
        d_rows[h] = expar::narrow<T>(weight * expar::widen(fetched[h]));
    }
  });
  ctx.for_each_chunk(r.row_count(), 1, [&](int, index_t first, index_t last) {
    for (index_t i = first; i < last; ++i) {
      float part[parts] = {}, sum = 0;
      for (index_t h = i * r.hidden; h < (i + 1) * r.hidden; h += parts)
        for (int p = 0; p < parts; ++p)
          part[p] += expar::widen(fetched[h + p]) * expar::widen(rows[h + p]);
      for (float const p : part) sum += p;
      d_weights[r.sources[i]] = sum;
    }
  });
}

}  // namespace peers
