// SPDX-License-Identifier: Apache-2.0
#include <expar/exchange/chain.hpp>

#include "support/catch.hpp"

using expar::chain;
using expar::topology;

TEST_CASE("a chain says which hops it has") {
  struct {
    chain way;
    bool first, second;
  } const cases[] = {{chain::once_per_rank(4), true, false},
                     {chain::once_per_node(topology::blocks(4, 4)), false, true},
                     {chain::once_per_node(topology::blocks(4, 2)), true, true},
                     {chain::gathered(topology::blocks(1, 1)), false, false}};
  for (auto const& c : cases) {
    CHECK(c.way.has_first_hop() == c.first);
    CHECK(c.way.has_second_hop() == c.second);
  }
}

TEST_CASE("chains are equal, and have one hash, where all that they say is equal") {
  auto const two = topology::blocks(4, 2), four = topology::blocks(4, 1);
  chain const all[] = {chain::linear(4),
                       chain::once_per_rank(4),
                       chain::once_per_rank(4, expar::sum::per_hop),
                       chain::once_per_node(two),
                       chain::once_per_node(two, expar::sum::per_hop),
                       chain::aggregated(two),
                       chain::aggregated(four),
                       chain::gathered(two),
                       chain::gathered(four)};
  for (auto const& a : all)
    for (auto const& b : all) {
      CHECK((a == b) == (&a == &b));
      CHECK((a.hash() == b.hash()) == (&a == &b));
    }
  CHECK(chain::once_per_node(four) == chain::once_per_rank(4));
}
