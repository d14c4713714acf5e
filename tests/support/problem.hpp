// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include <expar/plan/layout.hpp>
#include <expar/plan/block_placement.hpp>

#include "random.hpp"

namespace expar_test {

/// A whole exchange, of all ranks, made from a seed alone, and what must come of it, in float64 and
/// by definition rather than by algorithm. Values are small halves, so that even 16-bit results are
/// exact.
struct problem {
  struct token {
    std::vector<std::int32_t> ids;
    std::vector<double> weights, x, d_out;
  };

  int ranks, experts, top_k, hidden;
  std::vector<std::vector<token>> tokens;  // [rank][token]
  std::optional<expar::fixed_capacity> capacity;
  int alignment = 1;

  static double slope(int expert) { return expert % 2 + 1; }  // expert e gives slope(e) * row

  expar::index_t rows_per_expert() const {
    expar::index_t most_tokens = 0, most = 0;
    for (int r = 0; r < ranks; ++r) {
      auto const n = static_cast<expar::index_t>(tokens_of(r).size());
      most_tokens = n > most_tokens ? n : most_tokens;
      for (int e = 0; e < experts; ++e) {
        expar::index_t count = 0;
        for (auto const& t : tokens_of(r))
          for (int const id : t.ids) count += id == e;
        most = count > most ? count : most;
      }
    }
    return expar::capacity_of(*capacity, most_tokens, experts, top_k, most);
  }

  std::vector<token> const& tokens_of(int rank) const {
    return tokens[static_cast<std::size_t>(rank)];
  }

  /// How many routes of the same rank and expert come before (t, j): in order of (token, choice),
  /// or with a capacity of (choice, token). -1: no expert, or beyond the capacity.
  expar::index_t location(int rank, int t, int j) const {
    auto const& all = tokens_of(rank);
    int const id = all[static_cast<std::size_t>(t)].ids[static_cast<std::size_t>(j)];
    if (id < 0) return -1;
    expar::index_t before = 0;
    for (int u = 0; u < static_cast<int>(all.size()); ++u)
      for (int i = 0; i < top_k; ++i) {
        bool const earlier = capacity ? (i < j || (i == j && u < t)) : (u < t || (u == t && i < j));
        before +=
            earlier && all[static_cast<std::size_t>(u)].ids[static_cast<std::size_t>(i)] == id;
      }
    return capacity && before >= rows_per_expert() ? -1 : before;
  }

  struct route {
    int rank, token, choice;
  };
  /// What stands in each row of a rank, expert after expert; a row that only fills has no value.
  std::vector<std::optional<route>> rows_at(int rank) const {
    expar::block_placement const place{experts, ranks};
    std::vector<std::optional<route>> rows;
    for (int e = place.first(rank); e < place.first(rank) + place.count(rank); ++e) {
      for (int s = 0; s < ranks; ++s) {
        auto const begin = rows.size();
        std::vector<std::pair<expar::index_t, route>> found;
        for (int t = 0; t < static_cast<int>(tokens_of(s).size()); ++t)
          for (int j = 0; j < top_k; ++j)
            if (at(s, t).ids[static_cast<std::size_t>(j)] == e && location(s, t, j) >= 0)
              found.push_back({location(s, t, j), {s, t, j}});
        auto const n = capacity ? static_cast<std::size_t>(rows_per_expert()) : found.size();
        rows.resize(begin + n);
        for (auto const& [place_of_route, r] : found)
          rows[begin + static_cast<std::size_t>(place_of_route)] = r;
      }
      if (!capacity)
        while (rows.size() % static_cast<std::size_t>(alignment) != 0) rows.emplace_back();
    }
    return rows;
  }

  token const& at(int rank, int t) const { return tokens_of(rank)[static_cast<std::size_t>(t)]; }

  double out(int rank, int t, int h) const {
    double sum = 0;
    for (int j = 0; j < top_k; ++j)
      if (location(rank, t, j) >= 0)
        sum += at(rank, t).weights[static_cast<std::size_t>(j)] *
               slope(at(rank, t).ids[static_cast<std::size_t>(j)]) *
               at(rank, t).x[static_cast<std::size_t>(h)];
    return sum;
  }
  double d_weight(int rank, int t, int j) const {
    if (location(rank, t, j) < 0) return 0;
    double sum = 0;
    for (int h = 0; h < hidden; ++h)
      sum += slope(at(rank, t).ids[static_cast<std::size_t>(j)]) *
             at(rank, t).x[static_cast<std::size_t>(h)] *
             at(rank, t).d_out[static_cast<std::size_t>(h)];
    return sum;
  }
  double d_x(int rank, int t, int h) const {
    double sum = 0;
    for (int j = 0; j < top_k; ++j)
      if (location(rank, t, j) >= 0)
        sum += at(rank, t).weights[static_cast<std::size_t>(j)] *
               slope(at(rank, t).ids[static_cast<std::size_t>(j)]) *
               at(rank, t).d_out[static_cast<std::size_t>(h)];
    return sum;
  }
};

/// Random shapes and the edges among them: no tokens, no experts named, one hot expert, k = E, odd
/// H.
inline problem make_problem(std::uint64_t seed, int ranks) {
  random rng(seed);
  problem p;
  p.ranks = ranks;
  p.experts = ranks + static_cast<int>(rng.integer(0, 6));
  p.top_k =
      static_cast<int>(rng.chance(0.1) ? p.experts : rng.integer(1, p.experts < 4 ? p.experts : 4));
  p.hidden = static_cast<int>(rng.chance(0.3) ? rng.integer(60, 140) : rng.integer(1, 9));
  if (rng.chance(0.5)) {
    double const factors[] = {1.0, 0.0, -1.0, -0.5, 0.6, 1.25, 2.0};
    p.capacity =
        expar::fixed_capacity{factors[rng.integer(0, 6)], static_cast<int>(rng.integer(1, 3))};
    if (rng.chance(0.3)) p.capacity->rows = rng.integer(0, 6);
  } else {
    p.alignment = static_cast<int>(rng.chance(0.5) ? 1 : rng.integer(2, 5));
  }
  double const absent = rng.chance(0.1) ? 1.0 : rng.chance(0.5) ? 0.2 : 0.0;
  bool const hot = rng.chance(0.1), nobody = rng.chance(0.05);
  double const weights[] = {-1, -0.5, 0.5, 1, 2};
  for (int r = 0; r < ranks; ++r) {
    auto const n = nobody || rng.chance(0.2) ? 0 : rng.integer(1, 10);
    auto& mine = p.tokens.emplace_back();
    for (int t = 0; t < n; ++t) {
      auto& token = mine.emplace_back();
      for (int j = 0; j < p.top_k; ++j) {
        auto const id = hot ? 0 : rng.integer(0, p.experts - 1);
        token.ids.push_back(rng.chance(absent) ? -1 : static_cast<std::int32_t>(id));
        token.weights.push_back(weights[rng.integer(0, 4)]);
      }
      for (int h = 0; h < p.hidden; ++h) {
        token.x.push_back(static_cast<double>(rng.integer(-2, 2)));
        token.d_out.push_back(static_cast<double>(rng.integer(-1, 1)));
      }
    }
  }
  return p;
}

}  // namespace expar_test
