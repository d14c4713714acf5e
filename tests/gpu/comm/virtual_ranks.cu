// SPDX-License-Identifier: Apache-2.0
#include <expar/gpu/comm/virtual_ranks.cuh>

#include "gpu/comm/local_ranks.cuh"
#include "support/catch.hpp"

TEST_CASE("virtual ranks write each other's windows, phase by phase") {
  expar_test::own_stream const stream;
  expar::gpu::context const ctx(stream);
  for (int const ranks : {1, 2, 5}) {
    expar::gpu::virtual_ranks group(ctx, ranks);
    REQUIRE(group.size() == ranks);
    REQUIRE(group.first_rank() == 0);
    REQUIRE(group.local_ranks() == ranks);
    expar_test::require_windows_that_peers_write(group);
    stream.wait();
  }
}

TEST_CASE("virtual ranks have the collectives of the lower tiers") {
  expar_test::own_stream const stream;
  expar::gpu::context const ctx(stream);
  for (int const ranks : {1, 2, 5}) {
    expar::gpu::virtual_ranks group(ctx, ranks);
    expar_test::require_collectives(group);
  }
}

TEST_CASE("virtual ranks say what is wrong with a collective") {
  expar_test::own_stream const stream;
  expar::gpu::context const ctx(stream);
  expar::gpu::virtual_ranks group(ctx, 2);
  std::vector<void const*> const in(2);
  std::vector<void*> const out(2), few(1);
  std::vector<std::size_t> counts(4), odd{0, 3, 0, 0};
  REQUIRE_THROWS_WITH(group.all_gather(in, few, 4),
                      "expar: all_gather: in and out have 2 and 1 entries; they have one for each "
                      "of 2 ranks");
  REQUIRE_THROWS_WITH(group.all_to_all_v(in, odd, counts, out, counts, counts),
                      "expar: all_to_all_v: rank 0 sends 3 bytes to rank 1, which expects 0");
  REQUIRE_THROWS_WITH(
      group.all_to_all_v(in, std::span(counts).first(3), counts, out, counts, counts),
      "expar: all_to_all_v: a table has 3 entries; it has one for each of 2 x 2 pairs of ranks");
}
