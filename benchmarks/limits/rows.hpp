// SPDX-License-Identifier: Apache-2.0
// The limits of the row movers: the same loads, stores and sums, with no plan to follow. Row j of
// token t is row t * k + j, so that all memory is walked from its first byte to its last. Each
// takes the tokens [first, last), with k rows for each of them. Which store is best depends on the
// machine and on what its caches hold: the limit of a run is the fastest in it. Rows hold whole
// blocks and lie on a line.
#pragma once

#include <vector>

#include <limits/lines.hpp>

namespace limits {

/// Tokens of `hidden` elements, and k rows for each.
struct extent {
  index_t hidden;
  int k;
};

/// Row j of token t.
template <class T>
auto in_order(T* rows, extent e) {
  return [=](index_t t, int j) { return rows + (t * e.k + j) * e.hidden; };
}

/// Token rows to k rows each (encode).
template <class Store, class T, class Place>
void push_to(T const* x, Place place, extent e, index_t first, index_t last) {
  for (index_t t = first; t < last; ++t)
    for (index_t at = 0; at < e.hidden; at += block<T>) {
      T const* const from = x + t * e.hidden + at;
      words v[vectors];
      for (int i = 0; i < vectors; ++i) v[i] = load(from + i * block<T> / vectors);
      Store::prefetch(from);
      for (int j = 0; j < e.k; ++j) {
        T* const to = place(t, j) + at;
        for (int i = 0; i < vectors; ++i) Store::store(to + i * block<T> / vectors, v[i]);
      }
    }
  Store::finish();
}
template <class Store, class T>
void push(T const* x, T* rows, extent e, index_t first, index_t last) {
  push_to<Store>(x, in_order(rows, e), e, first, last);
}
/// The same, row after row: one stream of stores, from a token row that the first cache holds.
template <class Store, class T, class Place>
void push_rows_to(T const* x, Place place, extent e, index_t first, index_t last) {
  for (index_t t = first; t < last; ++t)
    for (int j = 0; j < e.k; ++j)
      for (index_t at = 0; at < e.hidden; at += block<T>) {
        T const* const from = x + t * e.hidden + at;
        if (j + 1 == e.k) Store::prefetch(from + e.hidden);
        T* const to = place(t, j) + at;
        for (int i = 0; i < vectors; ++i)
          Store::store(to + i * block<T> / vectors, load(from + i * block<T> / vectors));
      }
  Store::finish();
}
template <class Store, class T>
void push_by_rows(T const* x, T* rows, extent e, index_t first, index_t last) {
  push_rows_to<Store>(x, in_order(rows, e), e, first, last);
}
template <class T, class Place>
void push_by_memcpy_to(T const* x, Place place, extent e, index_t first, index_t last) {
  auto const bytes = static_cast<std::size_t>(e.hidden) * sizeof(T);
  for (index_t t = first; t < last; ++t)
    for (int j = 0; j < e.k; ++j) std::memcpy(place(t, j), x + t * e.hidden, bytes);
}
template <class T>
void push_by_memcpy(T const* x, T* rows, extent e, index_t first, index_t last) {
  push_by_memcpy_to(x, in_order(rows, e), e, first, last);
}

/// The weighted sum of k rows to each token row (decode; with weights of 1, encode_backward).
template <class Store, class T, class Place>
void gather_from(Place place, float const* weights, T* out, extent e, index_t first, index_t last) {
  for (index_t t = first; t < last; ++t)
    for (index_t at = 0; at < e.hidden; at += block<T>) {
      sums<T> sum[vectors];
      for (int j = 0; j < e.k; ++j) {
        T const* const from = place(t, j) + at;
        float const weight = weights[t * e.k + j];
        for (int i = 0; i < vectors; ++i) sum[i].add(load(from + i * block<T> / vectors), weight);
        Store::prefetch(from);
      }
      T* const to = out + t * e.hidden + at;
      for (int i = 0; i < vectors; ++i) Store::store(to + i * block<T> / vectors, sum[i].rounded());
    }
  Store::finish();
}
template <class Store, class T>
void gather(T const* rows, float const* weights, T* out, extent e, index_t first, index_t last) {
  gather_from<Store>(in_order(rows, e), weights, out, e, first, last);
}
/// As the compiler makes it of a loop over elements.
template <class T>
void gather_plain(T const* rows, float const* weights, T* out, extent e, index_t first,
                  index_t last) {
  std::vector<float> sum(static_cast<std::size_t>(e.hidden));
  float* const s = sum.data();
  for (index_t t = first; t < last; ++t) {
    for (index_t h = 0; h < e.hidden; ++h) s[h] = 0;
    for (int j = 0; j < e.k; ++j) {
      T const* const row = rows + (t * e.k + j) * e.hidden;
      float const weight = weights[t * e.k + j];
      for (index_t h = 0; h < e.hidden; ++h) s[h] += weight * expar::widen(row[h]);
    }
    for (index_t h = 0; h < e.hidden; ++h) out[t * e.hidden + h] = expar::narrow<T>(s[h]);
  }
}

/// Where the adjoint of gather reads and writes.
template <class T>
struct gather_gradients {
  T const* d_out;
  T const* rows;
  float const* weights;
  T* d_rows;
  float* d_weights;
};

/// The adjoint of gather, in one pass: weight * d_out to k rows, and their products with d_out.
template <class Store, class T>
void gather_backward(gather_gradients<T> g, extent e, index_t first, index_t last) {
  std::vector<sums<T>> products(static_cast<std::size_t>(e.k));
  sums<T>* const product = products.data();
  for (index_t t = first; t < last; ++t) {
    for (int j = 0; j < e.k; ++j) product[j] = {};
    for (index_t at = 0; at < e.hidden; at += block<T>) {
      T const* const from = g.d_out + t * e.hidden + at;
      words d[vectors];
      for (int i = 0; i < vectors; ++i) d[i] = load(from + i * block<T> / vectors);
      for (int j = 0; j < e.k; ++j) {
        index_t const there = (t * e.k + j) * e.hidden + at;
        float const weight = g.weights[t * e.k + j];
        sums<T> p = product[j];
        for (int i = 0; i < vectors; ++i) {
          index_t const here = there + i * block<T> / vectors;
          p.add_products(load(g.rows + here), d[i]);
          sums<T> scaled;
          scaled.add(d[i], weight);
          Store::store(g.d_rows + here, scaled.rounded());
        }
        product[j] = p;
        Store::prefetch(g.rows + there);
      }
    }
    for (int j = 0; j < e.k; ++j) g.d_weights[t * e.k + j] = product[j].total();
  }
  Store::finish();
}
template <class T>
void gather_backward_plain(gather_gradients<T> g, extent e, index_t first, index_t last) {
  constexpr int parts = 16;  // so many sums side by side, as one may write it for the compiler
  for (index_t t = first; t < last; ++t) {
    T const* const d = g.d_out + t * e.hidden;
    for (int j = 0; j < e.k; ++j) {
      T const* const row = g.rows + (t * e.k + j) * e.hidden;
      T* const d_row = g.d_rows + (t * e.k + j) * e.hidden;
      float const weight = g.weights[t * e.k + j];
      float part[parts] = {}, sum = 0;
      for (index_t h = 0; h < e.hidden; h += parts)
        for (int i = 0; i < parts; ++i)
          part[i] += expar::widen(row[h + i]) * expar::widen(d[h + i]);
      for (float const p : part) sum += p;
      g.d_weights[t * e.k + j] = sum;
      for (index_t h = 0; h < e.hidden; ++h)
        d_row[h] = expar::narrow<T>(weight * expar::widen(d[h]));
    }
  }
}

}  // namespace limits
