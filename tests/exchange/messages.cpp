// SPDX-License-Identifier: Apache-2.0
#include <expar/exchange/messages.hpp>

#include <vector>

#include <expar/comm/thread.hpp>
#include <expar/expert_parallel.hpp>

#include "support/catch.hpp"

using expar::index_t;
using expar::make_view;

namespace {

struct route_list {
  expar::tensor_view<std::int32_t const, 2> ids;
  expar::tensor_view<float const, 2> weights;
};

/// Counts what it passes on.
struct counting {
  expar::thread_communicator& to;
  int calls = 0;
  index_t sent = 0, sent_to_self = 0;

  int rank() const noexcept { return to.rank(); }
  int size() const noexcept { return to.size(); }
  void all_to_all_v(expar::host_context const& on, void const* in, expar::byte_counts counts,
                    expar::byte_counts from, void* out, expar::byte_counts out_counts,
                    expar::byte_counts at) {
    ++calls;
    for (std::size_t p = 0; p < counts.size(); ++p)
      (static_cast<int>(p) == rank() ? sent_to_self : sent) += static_cast<index_t>(counts[p]);
    to.all_to_all_v(on, in, counts, from, out, out_counts, at);
  }
};

}  // namespace

TEST_CASE("messages carry no row of the own rank, and rows that come again cost one exchange") {
  constexpr int ranks = 3, tokens = 5, hidden = 16;
  std::vector<int> good(ranks, 1);
  expar::run_ranks(ranks, [&](expar::thread_communicator& threads) {
    counting comm{threads};
    expar::host_context const ctx;
    std::vector<float> const x(tokens * hidden, 1.f), weights(tokens, 1.f);
    std::vector<std::int32_t> ids;
    for (int t = 0; t < tokens; ++t) ids.push_back(t % ranks);
    expar::expert_parallel moe(comm, {.experts = ranks, .top_k = 1, .hidden = hidden});
    auto batch = moe.make_batch<float>();
    moe.prepare(ctx,
                route_list{make_view(ids.data(), tokens, 1), make_view(weights.data(), tokens, 1)},
                batch);
    for (int time = 0; time < 2; ++time) {
      comm.calls = 0, comm.sent = 0, comm.sent_to_self = 0;
      moe.dispatch(ctx, make_view(x.data(), tokens, hidden), batch);
      // Two words to every rank, itself among them, and the rows of the other ranks.
      index_t foreign = 0;
      for (int const id : ids) foreign += id != comm.rank();
      if (comm.calls != 2 || comm.sent_to_self != 16 ||
          comm.sent != 16 * (ranks - 1) + foreign * hidden * 4)
        good[static_cast<std::size_t>(comm.rank())] = 0;
      batch.release(expar::side::rows);
    }
  });
  CHECK(good == std::vector<int>(ranks, 1));
}
