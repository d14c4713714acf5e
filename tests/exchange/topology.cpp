// SPDX-License-Identifier: Apache-2.0
#include <expar/exchange/topology.hpp>

#include "support/catch.hpp"
#include "support/random.hpp"
#include "support/thrown_by.hpp"

using expar::topology;

TEST_CASE("ranks of one colour are on one node") {
  expar_test::random rng(1);
  for (int drawn = 0; drawn < 200; ++drawn) {
    auto const ranks = static_cast<std::size_t>(rng.integer(1, 12));
    std::vector<int> colours(ranks);
    for (int& c : colours) c = static_cast<int>(rng.integer(-2, 2));
    auto const t = topology::of_colours(colours);
    REQUIRE(t.ranks() == static_cast<int>(ranks));
    int most = 0, members = 0;
    for (int n = 0; n < t.nodes(); ++n) {
      auto const there = t.ranks_of(n);
      members += static_cast<int>(there.size());
      most = std::max(most, static_cast<int>(there.size()));
      for (std::size_t i = 0; i < there.size(); ++i) {
        REQUIRE(t.node_of(there[i]) == n);
        if (i > 0) REQUIRE(there[i - 1] < there[i]);
      }
      if (n > 0) REQUIRE(t.ranks_of(n - 1)[0] < there[0]);
    }
    REQUIRE(members == t.ranks());
    REQUIRE(t.most() == most);
    for (int a = 0; a < t.ranks(); ++a)
      for (int b = 0; b < t.ranks(); ++b)
        REQUIRE((t.node_of(a) == t.node_of(b)) ==
                (colours[static_cast<std::size_t>(a)] == colours[static_cast<std::size_t>(b)]));
  }
}

TEST_CASE("a rail joins the ranks that have the same place in their nodes") {
  auto const t = topology::blocks(7, 3);  // 0 1 2 | 3 4 5 | 6
  CHECK(t.nodes() == 3);
  for (int r = 0; r < 7; ++r) {
    CHECK(t.node_of(r) == r / 3);
    CHECK(t.on_rail(r, t.node_of(r)) == r);
    CHECK(t.on_rail(r, 0) == r % 3);
    CHECK(t.on_rail(r, 1) == 3 + r % 3);
    CHECK(t.on_rail(r, 2) == 6);
  }
}

TEST_CASE("topologies are equal where the same ranks are together, whatever the colours") {
  int const colours[] = {5, 5, -1, -1, 5};
  int const others[] = {0, 0, 1, 1, 0};
  int const apart[] = {0, 0, 1, 1, 1};
  auto const t = topology::of_colours(colours);
  CHECK(t == topology::of_colours(others));
  CHECK(t.hash() == topology::of_colours(others).hash());
  CHECK_FALSE(t == topology::of_colours(apart));
  CHECK(t.hash() != topology::of_colours(apart).hash());
  CHECK_FALSE(t == topology());
  CHECK(topology().ranks() == 0);
  CHECK(topology().nodes() == 0);
}

TEST_CASE("a topology names what is wrong") {
  using expar_test::thrown_by;
  CHECK(thrown_by([] { topology::blocks(0, 1); }) ==
        "expar: topology: ranks is 0; at least 1 is needed");
  CHECK(thrown_by([] { topology::blocks(4, 0); }) ==
        "expar: topology: ranks_per_node is 0; at least 1 is needed");
  CHECK(thrown_by([] { topology::of_colours({}); }) ==
        "expar: topology: there are no colours; each rank has one");
  auto const t = topology::blocks(4, 2);
  CHECK(thrown_by([&] { t.node_of(4); }) == "expar: topology: rank is 4; it lies between 0 and 3");
  CHECK(thrown_by([] { topology().node_of(0); }) ==
        "expar: topology: rank is 0; it lies between 0 and -1");
  CHECK(thrown_by([&] { t.ranks_of(2); }) == "expar: topology: node is 2; it lies between 0 and 1");
}
