// SPDX-License-Identifier: Apache-2.0
#include <expar/expert_shape.hpp>

#include <string>

#include <expar/comm/self.hpp>
#include <expar/comm/thread.hpp>
#include <expar/expert_parallel.hpp>

#include "support/catch.hpp"
#include "support/thrown_by.hpp"

using expar_test::thrown_by;

TEST_CASE("a shape that cannot be served is refused with the bound") {
  expar::self_communicator comm;
  auto const say = [&](expar::expert_shape shape) {
    return thrown_by([&] { expar::expert_parallel moe(comm, shape); });
  };
  CHECK(say({0, 1, 4}) == "expar: expert_parallel: experts is 0; at least 1 is needed");
  CHECK(say({4, 5, 4}) ==
        "expar: expert_parallel: top_k is 5; it lies between 1 and the 4 experts");
  CHECK(say({4, 0, 4}) ==
        "expar: expert_parallel: top_k is 0; it lies between 1 and the 4 experts");
  CHECK(say({4, 1, 0}) == "expar: expert_parallel: hidden is 0; at least 1 is needed");
  CHECK(thrown_by([&] {
          expar::expert_parallel moe(comm, {4, 1, 4}, expar::ragged{0});
        }) == "expar: expert_parallel: alignment is 0; it is at least 1");
  CHECK(thrown_by([&] {
          expar::expert_parallel moe(comm, {4, 1, 4}, expar::fixed_capacity{1e9});
        }) ==
        "expar: expert_parallel: capacity factor is 1000000000; it lies between -1000000 and "
        "1000000");
  CHECK(thrown_by([&] {
          expar::expert_parallel moe(comm, {4, 1, 4}, expar::fixed_capacity{.rows = -3});
        }) ==
        "expar: expert_parallel: capacity rows is -3; it is at least 0, or -1 for the factor, and "
        "at most 2147483647");
  CHECK(say({4, 1, 4, -2}) ==
        "expar: expert_parallel: hidden_out is -2; it lies between 0, for hidden, and "
        "281474976710656");
  CHECK(thrown_by([&] {
          expar::expert_parallel moe(comm, {4, 1, 4}, expar::row_budget{-1});
        }) == "expar: expert_parallel: the budget has -1 rows; it is at least 0");
}

TEST_CASE("fewer experts than ranks are served, and rows of y are as long as hidden if not said") {
  expar::run_ranks(4, [](expar::thread_communicator& four) {
    expar::expert_parallel moe(four, {3, 1, 4});
    if (moe.placement().count(four.rank()) != (four.rank() < 3) || moe.shape().hidden_out != 4)
      throw expar::error("the shape or the placement is another");
  });
  SUCCEED();
}
