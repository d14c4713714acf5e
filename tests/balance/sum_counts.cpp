// SPDX-License-Identifier: Apache-2.0
#include <expar/balance/sum_counts.hpp>

#include <limits>
#include <string>
#include <vector>

#include <expar/comm/self.hpp>
#include <expar/comm/thread.hpp>
#include <expar/router/count_choices.hpp>
#include <expar/router/cv_squared.hpp>
#include <expar/router/importance_loss.hpp>
#include <expar/router/load_balance_loss.hpp>
#include <expar/router/research/lambda_control.hpp>
#include <expar/router/route.hpp>
#include <expar/router/router.hpp>
#include <expar/router/routes.hpp>
#include <expar/router/state/bias_update.hpp>
#include <expar/router/state/quantile_histogram.hpp>

#include "../support/catch.hpp"
#include "../support/random.hpp"

using Catch::Matchers::WithinRel;

namespace {

/// What f gives on each rank, or the sentence that it throws there.
template <class F>
std::vector<std::string> on_ranks(int ranks, F f) {
  std::vector<std::string> said(static_cast<std::size_t>(ranks));
  expar::run_ranks(ranks, [&](expar::thread_communicator& comm) {
    auto& mine = said[static_cast<std::size_t>(comm.rank())];
    try {
      f(comm);
      mine = "done";
    } catch (expar::error const& e) {
      mine = e.what();
    }
  });
  return said;
}

/// A communicator that has all_to_all_v and nothing else.
struct bare {
  expar::thread_communicator& comm;
  int rank() const noexcept { return comm.rank(); }
  int size() const noexcept { return comm.size(); }
  void all_to_all_v(expar::host_context const& on, void const* in, expar::byte_counts counts,
                    expar::byte_counts from, void* out, expar::byte_counts out_counts,
                    expar::byte_counts to) const {
    comm.all_to_all_v(on, in, counts, from, out, out_counts, to);
  }
};

}  // namespace

TEST_CASE("counts become their sums over ranks") {
  expar::host_context const ctx;
  for (int ranks : {1, 2, 5}) {
    std::vector<std::vector<std::int32_t>> counts(static_cast<std::size_t>(ranks));
    std::vector<std::vector<double>> sums(static_cast<std::size_t>(ranks));
    expar::run_ranks(ranks, [&](expar::thread_communicator& comm) {
      auto const me = static_cast<std::size_t>(comm.rank());
      counts[me] = {comm.rank(), 1, 10 * comm.rank()};
      expar::sum_counts(ctx, comm, counts[me]);
      sums[me] = {1. / (1 + comm.rank()), .1 * comm.rank()};
      bare b{comm};
      expar::sum_counts(ctx, b, sums[me]);
      std::vector<std::int64_t> none;
      expar::sum_counts(ctx, comm, none);
    });
    int const all = ranks * (ranks - 1) / 2;
    double harmonic = 0, tenths = 0;
    for (int r = 0; r < ranks; ++r) harmonic += 1. / (1 + r), tenths += .1 * r;
    for (auto const& c : counts) REQUIRE(c == std::vector<std::int32_t>{all, ranks, 10 * all});
    for (auto const& s : sums) REQUIRE(s == std::vector<double>{harmonic, tenths});  // in order
  }
}

TEST_CASE("values that stand apart are summed where they stand") {
  expar::host_context const ctx;
  std::vector<std::vector<int>> memory(2);
  expar::run_ranks(2, [&](expar::thread_communicator& comm) {
    auto& mine = memory[static_cast<std::size_t>(comm.rank())];
    mine = {comm.rank() + 1, 7, 10, 7};
    expar::sum_counts(ctx, comm, expar::make_strided_view(mine.data(), 2, 2));
  });
  for (auto const& m : memory) REQUIRE(m == std::vector<int>{3, 7, 20, 7});
}

TEST_CASE("the sum of two ranks' losses, with counts of both, is the loss of one") {
  int const tokens = 10, experts = 4, k = 2;
  expar_test::random rng(430);
  std::vector<double> logits(tokens * experts), whole_gradient(logits.size()),
      gradient(logits.size()), two_gradients(logits.size()), whole_variation(logits.size());
  for (double& x : logits) x = rng.normal();
  std::vector<std::int32_t> ids;
  for (int i = 0; i < tokens * k; ++i)
    ids.push_back(static_cast<std::int32_t>(rng.integer(0, experts - 1)));
  expar::host_context const ctx;
  auto const rows = [&](std::vector<double>& m, expar::index_t first, expar::index_t n) {
    return expar::make_view(m.data() + first * experts, n, experts);
  };
  expar::softmax_score const softmax;
  expar::cv_squared_options const variation{.ddof = 1, .epsilon = 1e-10};

  std::vector<std::int64_t> counts(experts);
  std::vector<double> sums(experts);
  expar::count_choices(ctx, expar::make_view(ids.data(), tokens, k), k, counts);
  expar::load_balance_options const o{.choices = k, .tokens = tokens};
  double const whole = expar::load_balance_loss(ctx, rows(logits, 0, tokens), counts, o);
  expar::load_balance_loss_backward(ctx, rows(logits, 0, tokens), counts, o,
                                    rows(whole_gradient, 0, tokens));
  expar::score_importance(ctx, softmax, rows(logits, 0, tokens), sums);
  double const whole_cv = expar::cv_squared(ctx, sums, variation);
  expar::score_importance_loss_backward(ctx, softmax, rows(logits, 0, tokens), sums, variation,
                                        rows(whole_variation, 0, tokens));

  std::vector<double> parts(2), cvs(2);
  expar::run_ranks(2, [&](expar::thread_communicator& comm) {
    expar::index_t const first = comm.rank() == 0 ? 0 : 3, n = comm.rank() == 0 ? 3 : tokens - 3;
    auto const me = static_cast<std::size_t>(comm.rank());
    std::vector<std::int64_t> mine(experts);
    expar::count_choices(ctx, expar::make_view(ids.data() + first * k, n, k), k, mine);
    expar::sum_counts(ctx, comm, mine);
    parts[me] = expar::load_balance_loss(ctx, rows(logits, first, n), mine, o);
    expar::load_balance_loss_backward(ctx, rows(logits, first, n), mine, o,
                                      rows(gradient, first, n));
    std::vector<double> importance(experts);
    expar::score_importance(ctx, softmax, rows(logits, first, n), importance);
    expar::sum_counts(ctx, comm, importance);
    cvs[me] = expar::cv_squared(ctx, importance, variation);
    expar::score_importance_loss_backward(ctx, softmax, rows(logits, first, n), importance,
                                          variation, rows(two_gradients, first, n));
  });
  REQUIRE_THAT(parts[0] + parts[1], WithinRel(whole, 1e-14));
  REQUIRE(gradient == whole_gradient);
  REQUIRE(cvs[0] == cvs[1]);
  REQUIRE_THAT(cvs[0], WithinRel(whole_cv, 1e-12));
  for (std::size_t i = 0; i < two_gradients.size(); ++i)
    REQUIRE_THAT(two_gradients[i], Catch::Matchers::WithinAbs(whole_variation[i], 1e-14));
}

TEST_CASE("the states of routers are the same on all ranks, and those of one rank") {
  int const tokens = 50, experts = 6, k = 2, bins = 40;
  expar_test::random rng(431);
  expar::host_context const ctx;
  std::vector<double> logits(tokens * experts);
  for (double& x : logits) x = rng.normal();
  logits[7] = std::numeric_limits<double>::quiet_NaN();
  std::vector<std::uint8_t> valid;
  for (int t = 0; t < tokens; ++t) valid.push_back(rng.chance(.7));

  struct state {
    std::vector<double> moved = std::vector<double>(experts), won = moved;
    double lambda = 1e-8;
    bool operator==(state const&) const = default;
  };
  auto const at = [](int e) { return static_cast<std::size_t>(e); };
  // Some steps on the tokens from `first`; sum() adds up over ranks.
  auto const run = [&](expar::index_t first, expar::index_t n, auto sum) {
    expar::router const router({experts, k}, expar::sigmoid_score{}, expar::biased_key{});
    auto const z = expar::make_view(logits.data() + first * experts, n, experts);
    auto const marks = expar::make_view(valid.data() + first, n);
    state s;
    expar::lambda_control const control{.experts = experts, .top_k = k};
    for (int step = 0; step < 5; ++step) {
      expar::routes<double> routes(n, k);
      expar::route(ctx, router, z, s.moved, routes);
      std::vector<std::int64_t> counts(experts), all{0}, histogram(experts * bins);
      expar::count_choices(ctx, expar::only(marks, routes.ids), k, counts);
      for (expar::index_t t = 0; t < n; ++t) all[0] += marks(t);
      sum(counts), sum(all);
      expar::update_bias(ctx, counts, {.rate = .0123, .centered = true}, s.moved);
      std::vector<std::int64_t> positive(experts);  // the routes of a ReLU, as lambda shifts them
      for (expar::index_t t = 0; t < n; ++t)
        for (int e = 0; e < experts; ++e) positive[at(e)] += marks(t) && z(t, e) > .3 * step - .3;
      sum(positive);
      s.lambda = control.next(s.lambda, expar::route_sparsity(ctx, positive, all[0]));

      expar::quantile_bins const range = expar::score_bins(ctx, s.won);
      auto const h = expar::make_view(histogram.data(), experts, bins);
      expar::add_quantile_histogram(ctx, expar::sigmoid_score{}, expar::only(marks, z), s.won, k,
                                    range, h);
      sum(histogram);
      expar::histogram_bias(ctx, h, k, range, s.won);
    }
    return s;
  };
  state const one = run(0, tokens, [](auto&) {});
  REQUIRE(one != state{});
  std::vector<state> states(3);
  expar::run_ranks(3, [&](expar::thread_communicator& comm) {
    expar::index_t const first[] = {0, 11, 11, tokens};  // the second rank has no tokens
    auto const me = static_cast<std::size_t>(comm.rank());
    states[me] = run(first[me], first[me + 1] - first[me],
                     [&](auto& values) { expar::sum_counts(ctx, comm, values); });
  });
  for (state const& s : states) {
    REQUIRE(s.moved == one.moved);
    REQUIRE(s.won == one.won);
    REQUIRE(s.lambda == one.lambda);
  }
}

TEST_CASE("ranks that pass other values all say so") {
  expar::host_context const ctx;
  auto const lengths = on_ranks(3, [&](expar::thread_communicator& comm) {
    std::vector<int> values(comm.rank() == 2 ? 4 : 3);
    expar::sum_counts(ctx, comm, values);
  });
  REQUIRE(lengths == std::vector<std::string>(3,
                                              "expar: sum_counts: rank 0 has 3 values but rank 2 "
                                              "has 4; all ranks must pass as many"));
  auto const nulls = on_ranks(2, [&](expar::thread_communicator& comm) {
    std::vector<int> values(3);
    expar::sum_counts(ctx, comm, expar::make_view(comm.rank() == 1 ? nullptr : values.data(), 3));
  });
  REQUIRE(nulls ==
          std::vector<std::string>(
              2, "expar: sum_counts: values has 3 elements but its data is null (rank 1)"));
}

TEST_CASE("sums are exact, or all ranks say that they do not fit and keep their values") {
  expar::host_context const ctx;
  std::vector<std::vector<std::int32_t>> narrow(2);
  std::vector<std::vector<std::int64_t>> wide(2);
  auto const said = on_ranks(2, [&](expar::thread_communicator& comm) {
    auto const me = static_cast<std::size_t>(comm.rank());
    wide[me] = {2000000000, comm.rank() == 0 ? PTRDIFF_MAX : -5, -1};
    expar::sum_counts(ctx, comm, wide[me]);
    narrow[me] = {comm.rank(), 2000000000};
    expar::sum_counts(ctx, comm, narrow[me]);
  });
  REQUIRE(said == std::vector<std::string>(2,
                                           "expar: sum_counts: values(1) of ranks 0 to 1 add up to "
                                           "what an integer of 4 bytes cannot hold"));
  for (auto const& w : wide)
    REQUIRE(w == std::vector<std::int64_t>{4000000000, PTRDIFF_MAX - 5, -2});
  REQUIRE(narrow == std::vector<std::vector<std::int32_t>>{{0, 2000000000}, {1, 2000000000}});
}
