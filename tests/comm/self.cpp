// SPDX-License-Identifier: Apache-2.0
#include <expar/comm/self.hpp>

#include <vector>

#include <expar/laws.hpp>

#include "../support/catch.hpp"
#include "random_rounds.hpp"

TEST_CASE("self_communicator: the laws") {
  expar::host_context const on;
  expar::self_communicator comm;
  CHECK(expar::broken_communicator_law(on, comm) == "");
  expar::self_communicator const frozen{};
  CHECK(expar::broken_communicator_law(on, frozen) == "");
  CHECK(expar_test::random_rounds(on, comm, 200, 1) == 0);
}

TEST_CASE("self_communicator: a rank that disagrees with itself") {
  expar::host_context const on;
  expar::self_communicator const comm;
  std::vector<std::size_t> const three{3}, four{4}, zero{0};
  char const in[4] = "abc";
  char out[4] = "xyz";
  STATIC_REQUIRE(expar::traits_of<expar::self_communicator>().checks_sizes);
  auto const call = [&] { comm.all_to_all_v(on, in, three, zero, out, four, zero); };
  REQUIRE_THROWS_AS(call(), expar::disagreement);
  REQUIRE_THROWS_WITH(call(), "expar: all_to_all_v: rank 0 sends 3 bytes to itself but expects 4");
  CHECK(out[0] == 'x');
}
