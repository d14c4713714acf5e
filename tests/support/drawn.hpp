// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <numeric>
#include <set>
#include <string>
#include <vector>

#include "random.hpp"
#include "reference.hpp"

namespace expar_test {

enum class placed {
  blocks,
  fewer_experts_than_ranks,
  uneven_blocks,
  replicated,
  nearest,
  nearest_of_two,  // ranks per node
  even_quotas,
  uneven_quotas,
  sharded,
  whole,
  table,        // any, with ranks without slots
  token_ranks,  // some ranks have tokens alone, the others slots alone
  lost          // any but the last, on more ranks, of which one or two are lost
};
enum class laid_out {
  ragged,
  aligned,
  capacity,
  capacity_of_most,  // factor 0
  capacity_at_most,  // factor < 0
  capacity_of_rows,
  budget,
  budget_with_drops,
  aligned_budget_with_drops
};
enum class weighed { at_decode, at_encode, per_row };
inline constexpr int placements = 13, layouts = 9, sites = 3;

/// What a problem is of the kinds that are tested in pairs.
struct kinds {
  placed placement;
  laid_out layout;
  weighed site;
  int ranks;

  /// One rank has no fewer experts than ranks, no remainder, and no other rank.
  static bool possible(placed p, int ranks) {
    return ranks > 1 || (p != placed::fewer_experts_than_ranks && p != placed::uneven_blocks &&
                         p != placed::token_ranks);
  }
};

/// How the calls of a problem are made.
struct manner {
  int threads;
  bool two_steps;                              // prepare, then dispatch
  bool again;                                  // dispatch twice
  bool own_rows, own_y, own_back, own_d_rows;  // the caller's memory, not the batch's
  bool recomputes, adds;
  int gap;     // elements between the rows of the caller's tensors
  bool mixed;  // odd ranks do it the other way round, where ranks may

  manner of(int rank) const {
    manner m = *this;
    if (mixed && rank % 2 == 1) {
      m.own_rows = two_steps && !own_rows;
      m.own_y = !own_y, m.own_back = !own_back, m.own_d_rows = !own_d_rows, m.adds = !adds;
      m.gap = 2 - m.gap % 3;
    }
    return m;
  }
};

struct drawn_problem {
  kinds what;
  manner how;
  problem made;
  answer wanted;

  drawn_problem(kinds k, manner m, problem p) : what(k), how(m), made(std::move(p)), wanted(made) {}
  drawn_problem(drawn_problem const&) = delete;
};

inline expar_test::problem::limit limit_of(laid_out l) {
  if (l < laid_out::capacity) return problem::limit::none;
  return l < laid_out::budget ? problem::limit::capacity : problem::limit::budget;
}

/// Gives every expert `copies` times `shards` places on some of the ranks.
inline void draw_table(random& rng, problem& p, std::vector<int> const& on, int most_copies) {
  p.experts_of_rank.assign(static_cast<std::size_t>(p.ranks), {});
  for (int e = 0; e < p.experts; ++e)
    for (auto n = rng.integer(1, most_copies) * p.shards; n > 0; --n) {
      auto const r = on[static_cast<std::size_t>(rng.integer(0, std::ssize(on) - 1))];
      p.experts_of_rank[static_cast<std::size_t>(r)].push_back(e);
    }
}
/// Cuts slots into blocks: number n holds expert_of(n).
template <class F>
void cut_into_blocks(problem& p, int slots, F expert_of) {
  p.experts_of_rank.clear();
  int n = 0;
  for (int const size : problem::blocks(slots, p.ranks)) {
    auto& mine = p.experts_of_rank.emplace_back();
    for (int i = 0; i < size; ++i) mine.push_back(expert_of(n++));
  }
}

inline void draw_placement(random& rng, problem& p, placed kind) {
  if (kind == placed::lost) {
    int const left = p.ranks;
    p.ranks += static_cast<int>(rng.integer(1, 2));
    draw_placement(rng, p, static_cast<placed>(rng.integer(0, static_cast<int>(placed::table))));
    for (; p.ranks > left; --p.ranks) {
      auto const r = static_cast<int>(rng.integer(0, p.ranks - 1));
      p.lost.push_back(p.is_lost(r) ? p.ranks : r);
    }
    return;
  }
  int const copies = static_cast<int>(rng.integer(2, 3));
  int const experts = static_cast<int>(rng.integer(1, 9));
  std::vector<int> all(static_cast<std::size_t>(p.ranks));
  std::iota(all.begin(), all.end(), 0);
  p.experts = experts;
  switch (kind) {
    case placed::blocks:
      p.experts = p.ranks * static_cast<int>(rng.integer(1, p.ranks < 3 ? 4 : 2));
      break;
    case placed::fewer_experts_than_ranks:
      p.experts = static_cast<int>(rng.integer(1, p.ranks - 1));
      break;
    case placed::uneven_blocks:
      p.experts = p.ranks + static_cast<int>(rng.integer(1, p.ranks - 1));
      break;
    case placed::sharded:
      p.shards = copies;
      break;
    default:
      break;
  }
  if (kind <= placed::uneven_blocks) {
    cut_into_blocks(p, p.experts, [](int n) { return n; });
  } else if (kind == placed::sharded) {
    cut_into_blocks(p, experts * p.shards, [&](int n) { return n / p.shards; });
  } else if (kind == placed::whole) {
    std::vector<int> each(static_cast<std::size_t>(experts));
    std::iota(each.begin(), each.end(), 0);
    p.experts_of_rank.assign(all.size(), each);
    p.choice = problem::way::nearest;
  } else if (kind == placed::table || kind == placed::token_ranks) {
    p.shards = rng.chance(.3) ? 2 : 1;
    std::vector<int> some;
    while (some.empty() || (p.ranks > 1 && some.size() == all.size())) {
      some.clear();
      for (int const r : all)
        if (rng.chance(.6)) some.push_back(r);
    }
    draw_table(rng, p, some, 3);
    if (rng.chance(.3)) p.choice = problem::way::nearest;
  } else if (rng.chance(.6)) {
    cut_into_blocks(p, experts * copies, [&](int n) { return n % experts; });
  } else {  // copies that differ from expert to expert
    p.shards = rng.chance(.2) ? 2 : 1;
    draw_table(rng, p, all, 4);
  }
  if (kind == placed::nearest || kind == placed::nearest_of_two) p.choice = problem::way::nearest;
  if (kind == placed::nearest_of_two) p.ranks_per_node = 2;
  if (kind == placed::even_quotas || kind == placed::uneven_quotas) {
    p.choice = problem::way::quotas;
    p.even = kind == placed::even_quotas;
  }
}

/// Random tokens, and the edges: none, no experts named, one hot expert. `apart`: only where there
/// are no slots.
inline void draw_tokens(random& rng, problem& p, bool apart) {
  double const absent = rng.chance(.1) ? 1 : rng.chance(.5) ? .2 : 0;
  bool const hot = rng.chance(.15), nobody = rng.chance(.04);
  double const weights[] = {-1, -.5, .5, 1, 2};
  p.tokens.clear();
  for (int r = 0; r < p.ranks; ++r) {
    bool const none =
        apart ? !p.experts_of_rank[static_cast<std::size_t>(r)].empty() : nobody || rng.chance(.2);
    auto const n = none ? 0 : rng.integer(1, 8);
    auto& mine = p.tokens.emplace_back();
    for (int t = 0; t < n; ++t) {
      auto& token = mine.emplace_back();
      for (int j = 0; j < p.top_k; ++j) {
        auto const id = hot ? 0 : rng.integer(0, p.experts - 1);
        token.ids.push_back(rng.chance(absent) ? -1 : static_cast<int>(id));
        token.weights.push_back(weights[rng.integer(0, 4)]);
      }
      for (int h = 0; h < p.hidden; ++h) token.x.push_back(static_cast<double>(rng.integer(-2, 2)));
      for (int h = 0; h < p.hidden_out; ++h)
        token.d_out.push_back(static_cast<double>(rng.integer(-1, 1)));
    }
  }
}

inline void draw_layout(random& rng, problem& p, laid_out kind) {
  p.limited = limit_of(kind);
  auto const alignment = static_cast<int>(rng.integer(2, 5));
  if (kind == laid_out::aligned || kind == laid_out::aligned_budget_with_drops ||
      (p.limited == problem::limit::capacity && rng.chance(.5)))
    p.alignment = alignment;
  double const factors[] = {.6, 1, 1.25, 2};
  p.factor = factors[rng.integer(0, 3)];
  if (kind == laid_out::capacity_of_most) p.factor = 0;
  if (kind == laid_out::capacity_at_most) p.factor *= -1;
  if (kind == laid_out::capacity_of_rows) p.rows = rng.integer(0, 6);
  if (p.limited == problem::limit::budget) {
    p.drops = kind != laid_out::budget;
    p.rows = 1L << 40;
    long const needed = answer(p).needed;
    bool const less = rng.chance(p.drops ? .8 : .25);
    p.rows = less ? rng.integer(0, needed) : needed + (rng.chance(.5) ? 0 : rng.integer(0, 9));
  }
}

/// Values are small halves, and a token has few routes, so that even 16-bit results are exact.
inline int draw_top_k(random& rng, problem const& p) {
  int const most = std::min(p.experts, 14 / p.shards);
  return rng.chance(.15) ? most : static_cast<int>(rng.integer(1, std::min(most, 4)));
}

inline problem make_problem(random& rng, kinds const& k) {
  problem p{};
  p.ranks = k.ranks;
  draw_placement(rng, p, k.placement);
  p.top_k = draw_top_k(rng, p);
  p.hidden = static_cast<int>(rng.chance(.15) ? rng.integer(60, 140) : rng.integer(1, 9));
  p.hidden_out = rng.chance(.6) ? p.hidden : static_cast<int>(rng.integer(1, 2 * p.hidden));
  draw_tokens(rng, p, k.placement == placed::token_ranks);
  draw_layout(rng, p, k.layout);
  return p;
}

inline manner draw_manner(random& rng) {
  manner m{};
  m.threads = static_cast<int>(rng.integer(1, 3));
  m.own_rows = rng.chance(.3), m.own_y = rng.chance(.4);
  m.own_back = rng.chance(.4), m.own_d_rows = rng.chance(.4);
  m.two_steps = m.own_rows || rng.chance(.3);
  m.again = rng.chance(.4), m.recomputes = rng.chance(.4), m.adds = rng.chance(.4);
  m.gap = rng.chance(.5) ? 0 : static_cast<int>(rng.integer(1, 4));
  m.mixed = rng.chance(.3);
  return m;
}

using problems = std::vector<std::unique_ptr<drawn_problem>>;

/// Which pairs of kinds some problems have, and which they lack.
class covered_pairs {
 public:
  void count(kinds const& k) {
    for (auto const& [a, b] : pairs_of(k)) seen_.insert({a, b});
  }
  /// Pairs that are possible on these ranks with these sites of a layout and were never drawn.
  std::vector<std::string> missing(std::vector<int> const& ranks) const {
    std::set<std::string> lacking;
    for (int const r : ranks)
      for (int p = 0; p < placements; ++p)
        for (int l = 0; l < layouts; ++l)
          for (int s = 0; s < sites; ++s) {
            kinds const k{static_cast<placed>(p), static_cast<laid_out>(l), static_cast<weighed>(s),
                          r};
            if (!kinds::possible(k.placement, r)) continue;
            for (auto const& two : pairs_of(k))
              if (seen_.count(two) == 0) lacking.insert(two.first + ", " + two.second);
          }
    return {lacking.begin(), lacking.end()};
  }

 private:
  using pair = std::pair<std::string, std::string>;
  static std::vector<pair> pairs_of(kinds const& k) {
    std::string const of[] = {"placement " + std::to_string(static_cast<int>(k.placement)),
                              "layout " + std::to_string(static_cast<int>(k.layout)),
                              "site " + std::to_string(static_cast<int>(k.site)),
                              "ranks " + std::to_string(k.ranks)};
    std::vector<pair> all;
    for (int a = 0; a < 4; ++a)
      for (int b = a + 1; b < 4; ++b) all.push_back({of[a], of[b]});
    return all;
  }
  std::set<pair> seen_;
};

/// A problem for every placement and layout, with the sites in turn.
inline problems draw_problems(int ranks, std::uint64_t seed) {
  problems all;
  for (int p = 0; p < placements; ++p)
    for (int l = 0; l < layouts; ++l) {
      kinds const k{static_cast<placed>(p), static_cast<laid_out>(l),
                    static_cast<weighed>((static_cast<std::uint64_t>(p + l + ranks) + seed) % 3),
                    ranks};
      if (!kinds::possible(k.placement, ranks)) continue;
      random rng((seed * 16 + static_cast<std::uint64_t>(ranks)) * 1000 +
                 static_cast<std::uint64_t>(p * layouts + l));
      auto p_ = make_problem(rng, k);
      all.push_back(std::make_unique<drawn_problem>(k, draw_manner(rng), std::move(p_)));
    }
  return all;
}

/// Five problems of one shape, layout and site, over five placements.
inline problems draw_group(int ranks, std::uint64_t seed) {
  random rng(seed);
  kinds const k{placed::table, static_cast<laid_out>(seed % layouts),
                static_cast<weighed>(seed / layouts % sites), ranks};
  problem p = make_problem(rng, k);
  if (p.limited == problem::limit::budget) p.drops = true;
  p.top_k = std::min(p.top_k, 7);
  problems group;
  for (int i = 0; i < 5; ++i) {
    std::vector<int> on;
    for (int r = 0; r < ranks; ++r)
      if (r != i) on.push_back(r);
    p.shards = static_cast<int>(rng.integer(1, 2));
    p.choice = rng.chance(.5) ? problem::way::nearest : problem::way::in_turn;
    p.ranks_per_node = static_cast<int>(rng.integer(1, 2));
    draw_table(rng, p, on, 3);
    draw_tokens(rng, p, false);
    group.push_back(std::make_unique<drawn_problem>(k, draw_manner(rng), p));
  }
  return group;
}

}  // namespace expar_test
