// SPDX-License-Identifier: Apache-2.0
#include <expar/exchange/windows.hpp>

#include <cstdint>
#include <deque>
#include <string>
#include <thread>
#include <vector>

#include <expar/comm/thread.hpp>
#include <expar/expert_parallel.hpp>

#include "../support/catch.hpp"
#include "../support/thrown_by.hpp"

using expar::make_view;

namespace {

constexpr int tokens = 3, experts = 4, k = 2, columns = 3;
expar::host_context const ctx;

/// Tokens of ones, two routes of weight 1 each, and experts that give back what they get.
struct of_one_rank {
  std::int32_t ids[tokens * k] = {0, 1, 2, 3, 1, 1};
  std::vector<float> ones = std::vector<float>(std::size_t{tokens * columns}, 1), out = ones;
  struct {
    expar::tensor_view<std::int32_t, 2> ids;
    expar::tensor_view<float, 2> weights;
  } routes{make_view(ids, tokens, k), make_view(ones.data(), tokens, k)};

  auto x() { return make_view(ones.data(), tokens, columns); }
  /// Whether combine brings twice each row home.
  template <class Moe, class Batch>
  bool comes_home(Moe& moe, Batch& batch) {
    auto const y = batch.y(), rows = batch.rows();
    for (expar::index_t i = 0; i < y.size(); ++i) y.data[i] = rows.data[i];
    moe.combine(ctx, batch, make_view(out.data(), tokens, columns));
    return out == std::vector<float>(out.size(), 2);
  }
};

/// Tokens whose n-th view takes a while.
struct slow_tokens {
  expar::tensor_view<float, 2> rows;
  int* left;
};

}  // namespace

template <>
struct expar::tensor_traits<slow_tokens> {
  static auto view(slow_tokens const& t) {
    if (--*t.left == 0) std::this_thread::sleep_for(std::chrono::milliseconds(300));
    return t.rows;
  }
};

TEST_CASE("windows that quotas need are the same on all ranks, however these hurry") {
  constexpr int ranks = 7, rounds = 300;
  int wrong[ranks] = {};
  expar::run_ranks(ranks, [&](auto& comm) {
    expar::windows x(comm);
    expar::expert_parallel moe(x, {experts, k, columns});
    moe.place(expar::placement::replicated(experts, ranks, 3));
    of_one_rank mine;
    for (int i = 0; i < rounds; ++i) {
      expar::expert_batch<float> batch;  // gives its windows back each time
      moe.dispatch(ctx, mine.x(), mine.routes, batch, expar::even_quotas);
      wrong[comm.rank()] += !mine.comes_home(moe, batch);
    }
  });
  for (int const n : wrong) CHECK(n == 0);
}

TEST_CASE("a batch goes home by a layer whose own placement has fewer slots") {
  bool right[3] = {};
  expar::run_ranks(3, [&](auto& comm) {
    expar::windows x(comm);
    expar::expert_parallel few(x, {experts, k, columns}), many(x, {experts, k, columns});
    many.place(expar::placement::replicated(experts, 3, 30));
    of_one_rank mine;
    auto batch = many.dispatch(ctx, mine.x(), mine.routes);
    bool const home = mine.comes_home(few, batch);
    std::vector<float> d_weights(std::size_t{tokens * k});
    few.combine_backward(ctx, batch, mine.x(), make_view(d_weights.data(), tokens, k));
    right[comm.rank()] = home && d_weights == std::vector<float>(d_weights.size(), columns);
  });
  for (bool const r : right) CHECK(r);
}

TEST_CASE("batches hold at most 1024 sides in windows, and one that all release serves again") {
  std::string said[2];
  bool works[2] = {};
  expar::run_ranks(2, [&](auto& comm) {
    expar::expert_parallel moe(comm, {experts, k, columns});
    of_one_rank mine;
    std::deque<expar::expert_batch<float>> alive;
    said[comm.rank()] = expar_test::thrown_by([&] {
      for (;;) moe.dispatch(ctx, mine.x(), mine.routes, alive.emplace_back());
    });
    alive.front().release(expar::side::rows);
    alive.front().release(expar::side::y);
    moe.dispatch(ctx, mine.x(), mine.routes, alive.back());
    works[comm.rank()] = alive.size() == 513 && mine.comes_home(moe, alive.back());
  });
  for (int const r : {0, 1}) {
    CHECK(works[r]);
    CHECK(
        said[r] ==
        "expar: dispatch: batches hold 1024 sides in windows; no more are possible: release some");
  }
}

TEST_CASE("a rank that is late inside a phase writes into windows that are still there") {
  std::string said[2];
  int writing = 2;  // the view by which rank 1 writes, once ranks have met
  expar::run_ranks(
      2,
      [&](auto& comm) {
        expar::expert_parallel moe(comm, {experts, k, columns});
        of_one_rank mine;
        int never = -1;
        auto& left = comm.rank() == 1 ? writing : never;
        said[comm.rank()] = expar_test::thrown_by([&] {
          moe.dispatch(ctx, slow_tokens{mine.x(), &left}, mine.routes);
        });
      },
      std::chrono::milliseconds(50));
  std::string const sentence = "expar: exchange_phase: rank 1 did not come within 50 ms";
  CHECK(said[0] == sentence);
  CHECK(said[1] == sentence);
  CHECK(writing <= 0);
}

TEST_CASE("a rank that ends is named by its peer, which writes into nothing that is gone") {
  for (bool throws : {false, true}) {
    std::string said;
    auto const run = [&] {
      expar::run_ranks(2, [&](auto& comm) {
        expar::expert_parallel moe(comm, {experts, k, columns});
        of_one_rank mine;
        auto batch = moe.dispatch(ctx, mine.x(), mine.routes);
        if (comm.rank() == 0 && throws) throw expar::error("rank 0 has had enough");
        if (comm.rank() == 0) return;
        for (int time = 0; time < 2; ++time)
          said += expar_test::thrown_by([&] { moe.dispatch(ctx, mine.x(), mine.routes, batch); }) +
                  "; ";
      });
    };
    auto const end = expar_test::thrown_by(run);
    CHECK(end == (throws ? "rank 0 has had enough" : "nothing was thrown"));
    std::string const sentence = "expar: exchange_phase: rank 0 has left and will not come; ";
    CHECK(said == sentence + sentence);
  }
}
