// SPDX-License-Identifier: Apache-2.0
#include <expar/exchange/routed_batch.hpp>

#include <string>
#include <type_traits>
#include <vector>

#include <expar/comm/thread.hpp>
#include <expar/exchange/window.hpp>
#include <expar/expert_parallel.hpp>

#include "../support/catch.hpp"
#include "../support/moe.hpp"

namespace {

/// Whether a batch tells of its rows what the definition says: token t of rank r goes to expert
/// (r + t) % 5 of 5, three tokens from each of two ranks.
std::string wrong_in(expar::routed_batch const& batch, int rank) {
  expar::block_placement const place{5, 2};
  if (batch.first_expert() != place.first(rank)) return "first_expert";
  if (batch.local_experts() != place.count(rank)) return "local_experts";
  expar::index_t row = 0;
  for (int l = 0; l < place.count(rank); ++l) {
    auto const at = static_cast<std::size_t>(l);
    if (batch.expert_offsets()[at] != row) return "expert_offsets";
    expar::index_t count = 0;
    for (int s = 0; s < 2; ++s) {
      expar::index_t from = 0;
      for (int t = 0; t < 3; ++t) from += (s + t) % 5 == place.first(rank) + l;
      if (batch.count_from(s, l) != from) return "count_from";
      if (batch.first_row_from(s, l) != row) return "first_row_from";
      row += from, count += from;
    }
    if (batch.expert_counts()[at] != count) return "expert_counts";
  }
  if (batch.plan().tokens() != 3) return "plan";
  return batch.expert_offsets().back() == row ? "" : "the last of expert_offsets";
}

}  // namespace

TEST_CASE("both kinds of batch tell the same of their rows") {
  std::vector<std::string> wrong(4);
  expar::run_ranks(2, [&](expar::thread_communicator& comm) {
    expar::host_context const ctx;
    auto const me = static_cast<std::size_t>(comm.rank());
    std::vector<std::int32_t> ids;
    for (int t = 0; t < 3; ++t) ids.push_back((comm.rank() + t) % 5);
    std::vector<float> w(3, 1.f), x(6, 2.f);
    expar_test::routes_of_rank const routes{expar::make_view(ids.data(), 3, 1),
                                            expar::make_view(w.data(), 3, 1)};
    auto const tokens = expar::make_view(x.data(), 3, 2);
    expar::expert_parallel messages(comm, {5, 1, 2});
    wrong[me] = wrong_in(messages.dispatch(ctx, tokens, routes), comm.rank());
    expar::window_parallel windows(comm, {5, 1, 2});
    auto batch = windows.make_batch<float>({6});
    windows.dispatch(ctx, tokens, routes, batch);
    wrong[2 + me] = wrong_in(batch, comm.rank());
  });
  REQUIRE(wrong == std::vector<std::string>(4));
}
