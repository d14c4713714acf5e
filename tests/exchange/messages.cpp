// SPDX-License-Identifier: Apache-2.0
#include <expar/exchange/messages.hpp>

#include <string>
#include <vector>

#include <expar/comm/thread.hpp>
#include <expar/expert_parallel.hpp>

#include "support/catch.hpp"
#include "support/counting.hpp"

using expar::index_t;
using expar::make_view;

namespace {

constexpr int ranks = 3, tokens = 5, hidden = 16;

struct route_list {
  expar::tensor_view<std::int32_t const, 2> ids;
  expar::tensor_view<float const, 2> weights;
};

/// The tensors of one rank, by whose number its tokens begin.
struct data {
  std::vector<float> x, out, weights, d_weights;
  std::vector<std::int32_t> ids;

  explicit data(int rank)
      : x(tokens * hidden, 1.f), out(x.size()), weights(tokens, 1.f), d_weights(weights) {
    for (int t = 0; t < tokens; ++t) ids.push_back((t + rank) % ranks);
  }
  auto rows() { return make_view(x.data(), tokens, hidden); }
  auto result() { return make_view(out.data(), tokens, hidden); }
  auto gradients() { return make_view(d_weights.data(), tokens, 1); }
  route_list routes() const {
    return {make_view(ids.data(), tokens, 1), make_view(weights.data(), tokens, 1)};
  }
  int foreign(int rank) const {
    int n = 0;
    for (int const id : ids) n += id != rank;
    return n;
  }
};

constexpr index_t word = 64;

void fill(expar::tensor_view<float, 2> const& rows) {
  for (index_t i = 0; i < rows.extents[0]; ++i)
    for (index_t c = 0; c < rows.extents[1]; ++c) rows(i, c) = 1;
}

/// What each call of a layer costs in collectives, on each rank.
template <bool Checks>
std::vector<std::vector<int>> collectives() {
  std::vector<std::vector<int>> all(ranks);
  expar::run_ranks(ranks, [&](expar::thread_communicator& threads) {
    expar_test::counting<Checks> comm{threads};
    expar::host_context const ctx;
    data d(comm.rank());
    expar::expert_parallel moe(comm, {.experts = ranks, .top_k = 1, .hidden = hidden});
    auto batch = moe.template make_batch<float>();
    std::vector<int> calls;
    for (int time = 0; time < 3; ++time) {
      calls.clear();
      auto const count = [&](auto call) {
        comm.calls = 0;
        call();
        calls.push_back(comm.calls);
      };
      count([&] { moe.dispatch(ctx, d.rows(), d.routes(), batch); });
      fill(batch.y());
      count([&] { moe.combine(ctx, batch, d.result()); });
      count([&] { moe.combine_backward(ctx, batch, d.rows(), d.gradients()); });
      fill(batch.d_rows());
      count([&] { moe.dispatch_backward(ctx, batch, d.result()); });
      count([&] { moe.dispatch(ctx, d.rows(), batch); });
      count([&] { moe.prepare(ctx, d.routes(), batch); });
    }
    all[static_cast<std::size_t>(comm.rank())] = calls;
  });
  return all;
}

}  // namespace

TEST_CASE("messages carry no row of the own rank, and rows that come again cost one exchange") {
  std::vector<std::string> said(ranks);
  expar::run_ranks(ranks, [&](expar::thread_communicator& threads) {
    expar_test::counting<true> comm{threads};
    expar::host_context const ctx;
    data d(comm.rank());
    expar::expert_parallel moe(comm, {.experts = ranks, .top_k = 1, .hidden = hidden});
    auto batch = moe.make_batch<float>();
    moe.prepare(ctx, d.routes(), batch);
    for (int time = 0; time < 2; ++time) {
      comm.restart();
      moe.dispatch(ctx, d.rows(), batch);
      index_t const rows = d.foreign(comm.rank()) * hidden * index_t{sizeof(float)};
      said[static_cast<std::size_t>(comm.rank())] +=
          std::to_string(comm.calls) + " exchange, to others " +
          std::to_string(comm.sent_to_others() - rows - word * (ranks - 1)) +
          " bytes more, to itself " + std::to_string(comm.sent_to_self()) + "; ";
      batch.release(expar::side::rows);
    }
  });
  std::string const once = "1 exchange, to others 0 bytes more, to itself 0; ";
  CHECK(said == std::vector<std::string>(ranks, once + once));
}

TEST_CASE("a call has one collective for rows, dispatch one for counts, and words where needed") {
  // dispatch, combine, combine_backward, dispatch_backward; dispatch again, prepare.
  CHECK(collectives<true>() == std::vector<std::vector<int>>(ranks, {2, 1, 2, 1, 1, 1}));
  CHECK(collectives<false>() == std::vector<std::vector<int>>(ranks, {3, 2, 3, 2, 2, 2}));
}
