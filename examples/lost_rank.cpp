// SPDX-License-Identifier: Apache-2.0
// A rank throws between two operations, and all go on; then one leaves, and the others go on.
#include <chrono>
#include <cstdio>
#include <string>
#include <vector>

#include <expar/expar.hpp>

namespace {

constexpr int ranks = 4, experts = 8, tokens = 32, hidden = 4;
constexpr expar::expert_shape shape{.experts = experts, .top_k = 1, .hidden = hidden};
struct bad_expert {};

/// The tokens of this rank go to all experts alike, which give them back. Returns what is dropped.
expar::index_t step(auto& moe, bool throws = false) {
  expar::host_context const ctx;
  std::vector<float> x(tokens * hidden, 1), out(x.size());
  expar::routes<float> routes(tokens, 1);
  for (int t = 0; t < tokens; ++t) routes.ids(t, 0) = t % experts, routes.weights(t, 0) = 1;
  auto batch = moe.dispatch(ctx, expar::make_view(x.data(), tokens, hidden), routes);
  if (throws) throw bad_expert();
  moe.combine(ctx, batch, batch.rows(), expar::make_view(out.data(), tokens, hidden));
  return batch.dropped();
}

struct account {  // what a rank was told, and how much it dropped once another was lost
  std::string disagreed, lost;
  expar::index_t dropped = 0;
};

void run(expar::thread_communicator& comm, account& mine) {
  auto const begun = std::chrono::steady_clock::now();
  auto const note = [&](std::string& in, char const* sentence) {
    std::chrono::duration<double, std::milli> const ms = std::chrono::steady_clock::now() - begun;
    std::printf("rank %d, %.1f ms: %s\n", comm.rank(), ms.count(), (in = sentence).c_str());
  };
  expar::expert_parallel moe(comm, shape);
  bool throws = comm.rank() == 2;
  //! [again]
  for (;;) {
    try {
      step(moe, throws);  // dispatch, the experts, combine
      break;
    } catch (bad_expert const&) {  // on rank 2 alone, which begins again while others combine
      throws = false;
    } catch (expar::lost_rank const&) {
      throw;
    } catch (expar::error const& e) {  // one sentence on all ranks, and the next call works
      note(mine.disagreed, e.what());
    }
  }
  //! [again]
  if (comm.rank() == 1) return;  // and never comes again
  //! [lost]
  try {
    step(moe);
  } catch (expar::lost_rank const& e) {
    auto others = comm.without(e.rank());  // asks nobody
    expar::expert_parallel rest(others, shape);
    rest.place(moe.placement().without(e.rank()));  // each rank keeps the weights that it has
    mine.dropped = step(rest);                      // routes of experts that have no copy now
    note(mine.lost, e.what());
  }
  //! [lost]
}

}  // namespace

int main() {
  account of[ranks];
  expar::run_ranks(ranks, [&](auto& comm) { run(comm, of[comm.rank()]); });
  std::printf("each of 3 ranks drops %td of %d routes\n", of[0].dropped, tokens);
  for (account const& a : of) {
    bool const went_on = a.lost == of[0].lost && a.dropped == tokens / ranks;
    if (a.disagreed.empty() || a.disagreed != of[0].disagreed) return 1;
    if (went_on == (&a == &of[1])) return 1;
  }
}
