// SPDX-License-Identifier: Apache-2.0
// Two nodes of four ranks, which are threads here: what crosses between them.
#include "far_ranks.hpp"

int main() {
  constexpr int ranks = 8, per_node = 4;
  bool good[ranks] = {};
  expar::run_ranks(ranks, [&](auto& comm) {
    good[comm.rank()] = far_ranks::run(comm, expar::topology::blocks(ranks, per_node));
  });
  for (bool const g : good)
    if (!g) return 1;
  std::puts("every rank has the rows and the sums that it should have");
}
