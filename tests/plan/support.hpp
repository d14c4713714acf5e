// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

#include <expar/tensor.hpp>

#include "../router/support.hpp"

namespace drop_test {

using router_test::matrix;
using router_test::random;

using id_rows = std::vector<std::vector<std::int32_t>>;
using rows = std::vector<std::vector<double>>;
using flags = std::vector<std::uint8_t>;
using counts = std::vector<std::int64_t>;

inline std::size_t at(std::int64_t i) {
  return static_cast<std::size_t>(i);
}

/// Ids whose rows stand apart.
struct id_matrix {
  expar::index_t tokens, k, pitch;
  std::vector<std::int32_t> data;

  id_matrix(expar::index_t t, expar::index_t columns, expar::index_t gap = 0)
      : tokens(t), k(columns), pitch(columns + gap), data(at(t * (columns + gap)), -7) {}
  explicit id_matrix(id_rows const& from) : id_matrix(from, from[0].size()) {}
  id_matrix(id_rows const& from, std::size_t columns)
      : id_matrix(static_cast<expar::index_t>(from.size()), static_cast<expar::index_t>(columns),
                  1) {
    for (expar::index_t t = 0; t < tokens; ++t)
      for (expar::index_t j = 0; j < k; ++j) data[at(t * pitch + j)] = from[at(t)][at(j)];
  }
  expar::tensor_view<std::int32_t, 2> view() {
    return expar::make_view(data.data(), tokens, k, pitch);
  }
  id_rows rows() const {
    id_rows out(at(tokens), std::vector<std::int32_t>(at(k)));
    for (expar::index_t t = 0; t < tokens; ++t)
      for (expar::index_t j = 0; j < k; ++j) out[at(t)][at(j)] = data[at(t * pitch + j)];
    return out;
  }
};

/// Routes of a few tokens: experts that differ within a token, some of them missing, and numbers of
/// which some are equal.
struct problem {
  int experts, k;
  std::int64_t tokens, capacity;
  id_rows ids;
  rows values;    // [T,k], positive
  rows scores;    // [T,1]
  flags valid;    // [T]
  counts routes;  // [experts], of valid tokens

  problem(random& rng, int most_tokens, bool whole_rows = false)
      : experts(static_cast<int>(rng.integer(1, 9))),
        k(static_cast<int>(rng.integer(1, std::min(experts, 4)))),
        tokens(rng.integer(0, most_tokens)),
        capacity(rng.integer(0, tokens * k / experts + 2)),
        routes(at(experts)) {
    bool const hot = rng.chance(.2);
    double const missing = rng.chance(.1) ? 1 : whole_rows ? 0 : .1;
    for (std::int64_t t = 0; t < tokens; ++t) {
      std::vector<std::int32_t> order(at(experts));
      std::iota(order.begin(), order.end(), 0);
      for (int i = 0; i < experts; ++i)
        std::swap(order[at(i)], order[at(rng.integer(i, experts - 1))]);
      if (hot) std::iter_swap(order.begin(), std::find(order.begin(), order.end(), 0));
      order.resize(at(k));
      for (auto& e : order)
        if (rng.chance(missing)) e = -1;
      ids.push_back(order);
      values.emplace_back();
      for (int j = 0; j < k; ++j)
        values.back().push_back(static_cast<double>(rng.integer(1, 12)) / 8);
      scores.push_back({static_cast<double>(rng.integer(0, 6)) / 8});
      valid.push_back(rng.chance(.85));
      for (auto const e : order)
        if (e >= 0 && valid.back() != 0) ++routes[at(e)];
    }
  }
};

/// [T,columns], also where T is 0.
template <class T>
matrix<T> matrix_of(rows const& from, expar::index_t columns, expar::index_t gap = 0) {
  matrix<T> m(static_cast<expar::index_t>(from.size()), columns, gap);
  for (expar::index_t r = 0; r < m.rows; ++r)
    for (expar::index_t c = 0; c < columns; ++c) m.set(r, c, from[at(r)][at(c)]);
  return m;
}

}  // namespace drop_test
