// SPDX-License-Identifier: Apache-2.0
#include <expar/plan/detail/copies.hpp>

#include <vector>

#include "support/catch.hpp"
#include "support/random.hpp"

using expar::placement;
using expar::detail::turns;

namespace {

/// The copies that a rank may take: those on its rank, else those on its node, else all.
std::vector<int> near(placement const& p, int expert, int rank, int ranks_per_node) {
  std::vector<int> own, node, all;
  for (int c = 0; c < p.copies(expert); ++c) {
    int const at = p.rank_of(p.slot(expert, c));
    all.push_back(c);
    if (at == rank) own.push_back(c);
    if (at / ranks_per_node == rank / ranks_per_node) node.push_back(c);
  }
  return !own.empty() ? own : !node.empty() ? node : all;
}

}  // namespace

TEST_CASE("turns: the routes of a rank go round its copies") {
  expar_test::random rng(7);
  for (int problem = 0; problem < 300; ++problem) {
    int const experts = static_cast<int>(rng.integer(1, 4)),
              n = static_cast<int>(rng.integer(1, 7));
    std::vector<std::vector<int>> table(static_cast<std::size_t>(n));
    for (int e = 0; e < experts; ++e)
      for (auto i = rng.integer(1, 5); i > 0; --i)
        table[static_cast<std::size_t>(rng.integer(0, n - 1))].push_back(e);
    auto const all = placement::table(experts, table);
    int const per_node = static_cast<int>(rng.integer(1, 3));
    bool const in_turn = rng.chance(0.4);
    auto const p = in_turn ? all : all.nearest(per_node);
    for (int e = 0; e < experts; ++e)
      for (int r = 0; r < n; ++r) {
        auto copies = near(p, e, r, per_node);
        if (in_turn) {
          copies.clear();
          for (int c = 0; c < p.copies(e); ++c) copies.push_back(c);
        }
        turns const t(p, e, r);
        int const m = static_cast<int>(copies.size());
        REQUIRE(t.count() == m);
        for (int c = 0; c < p.copies(e); ++c) {
          bool taken = false;
          for (int const other : copies) taken = taken || other == c;
          REQUIRE(t.takes(c) == taken);
        }
        std::vector<expar::index_t> shares(static_cast<std::size_t>(m), 0);
        for (expar::index_t route = 0; route < 12; ++route) {
          for (int i = 0; i < m; ++i)
            REQUIRE(t.share(route, i) == shares[static_cast<std::size_t>(i)]);
          int const turn = static_cast<int>((route + r) % m);
          // Where it stands among the rank's rows of that copy: as many as went there before.
          REQUIRE(route / m == shares[static_cast<std::size_t>(turn)]);
          ++shares[static_cast<std::size_t>(turn)];
        }
      }
  }
}
