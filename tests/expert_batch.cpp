// SPDX-License-Identifier: Apache-2.0
#include <expar/expert_batch.hpp>

#include <string>
#include <vector>

#include <expar/comm/self.hpp>
#include <expar/expert_parallel.hpp>
#include <expar/router/routes.hpp>

#include "support/catch.hpp"

TEST_CASE("an empty batch has no rows and no experts") {
  expar::expert_batch<float> batch;
  CHECK(batch.row_count() == 0);
  CHECK(batch.local_slots() == 0);
  CHECK(batch.rows().size() == 0);
  CHECK(batch.row_weights().size() == 0);
  CHECK_THROWS_WITH(batch.first_slot(),
                    "expar: first_slot: the batch has no routes; dispatch or prepare it first");
  CHECK_THROWS_WITH(batch.count_from(0, 0),
                    "expar: count_from: local_slot is 0; the batch has 0 local slots");
}

TEST_CASE("a batch shows its rows by expert, and moves with them") {
  expar::self_communicator comm;
  expar::host_context const ctx;
  expar::expert_parallel moe(comm, {3, 1, 2}, expar::ragged{2}, expar::weights_per_row{});
  std::vector<std::int32_t> ids{2, 0, 2, 2};
  std::vector<double> w{.1, .2, .3, .4}, x{0, 1, 2, 3, 4, 5, 6, 7};
  struct {
    expar::tensor_view<std::int32_t, 2> ids;
    expar::tensor_view<double, 2> weights;
  } const routes{expar::make_view(ids.data(), 4, 1), expar::make_view(w.data(), 4, 1)};
  auto first = moe.dispatch(ctx, expar::make_view(x.data(), 4, 2), routes);
  auto batch = std::move(first);
  CHECK(batch.local_slots() == 3);
  CHECK(batch.first_slot() == 0);
  CHECK(batch.hidden() == 2);
  CHECK(batch.row_count() == 6);
  CHECK(std::vector<expar::index_t>(batch.slot_counts().begin(), batch.slot_counts().end()) ==
        std::vector<expar::index_t>{1, 0, 3});
  CHECK(std::vector<expar::index_t>(batch.slot_offsets().begin(), batch.slot_offsets().end()) ==
        std::vector<expar::index_t>{0, 2, 2, 6});
  CHECK(batch.count_from(0, 2) == 3);
  CHECK(batch.first_row_from(0, 2) == 2);
  double const rows[6] = {2, 0, 0, 4, 6, 0}, weights[6] = {.2, 0, .1, .3, .4, 0};
  for (int r = 0; r < 6; ++r) {
    CHECK(batch.rows()(r, 0) == rows[r]);
    CHECK(batch.row_weights()(r) == weights[r]);
  }
  CHECK(batch.plan().counts()[2] == 3);
  CHECK_THROWS_WITH(first.first_slot(),
                    "expar: first_slot: the batch has no routes; dispatch or prepare it first");
  CHECK_THROWS_WITH(first.first_row_from(0, 0),
                    "expar: first_row_from: local_slot is 0; the batch has 0 local slots");
}

TEST_CASE("a batch says so when it is asked for an expert or a rank that it has not") {
  expar::self_communicator comm;
  expar::host_context const ctx;
  expar::expert_parallel moe(comm, {3, 1, 2});
  expar::routes<float> routes(4, 1);
  std::vector<float> x(8);
  expar::expert_batch<float> batch;
  moe.prepare(ctx, routes, batch);
  std::string const experts = "; the batch has 3 local slots";
  CHECK_THROWS_WITH(batch.slot_rows(0),
                    "expar: slot_rows: the batch has no rows; dispatch tokens first");
  CHECK_THROWS_WITH(batch.slot_rows(99), "expar: slot_rows: local_slot is 99" + experts);
  CHECK_THROWS_WITH(batch.slot_rows(-1), "expar: slot_rows: local_slot is -1" + experts);
  CHECK_THROWS_WITH(batch.count_from(0, 3), "expar: count_from: local_slot is 3" + experts);
  CHECK_THROWS_WITH(batch.count_from(1, 0), "expar: count_from: rank is 1; there are 1 ranks");
  CHECK_THROWS_WITH(batch.first_row_from(-1, 0),
                    "expar: first_row_from: rank is -1; there are 1 ranks");
  moe.dispatch(ctx, expar::make_view(x.data(), 4, 2), batch);
  CHECK(batch.slot_rows(0).size() == 0);
}
