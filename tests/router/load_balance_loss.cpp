// SPDX-License-Identifier: Apache-2.0
#include <expar/router/load_balance_loss.hpp>

#include "../support/catch.hpp"
#include "support.hpp"

using Catch::Matchers::WithinAbs;
using Catch::Matchers::WithinRel;
using router_test::inf;
using router_test::matrix;
using router_test::qnan;
using router_test::row_type;
using router_test::sentence_of;

namespace {

expar::host_context const ctx;

using mask = std::vector<std::uint8_t>;
using counts_type = std::vector<expar::index_t>;

double by_definition(matrix<double>& z, counts_type const& counts, mask const& valid,
                     double coefficient, double tokens, int choices) {
  router_test::reference_router const softmax;
  double sum = 0;
  for (expar::index_t t = 0; t < z.rows; ++t) {
    row_type const p = softmax.scores(z.row(t));
    for (std::size_t e = 0; e < p.size(); ++e)
      if (valid[static_cast<std::size_t>(t)])
        sum += static_cast<double>(counts[e]) / (tokens * choices) * p[e] / tokens;
  }
  return coefficient * static_cast<double>(z.columns) * sum;
}

struct problem {
  matrix<double> z;
  counts_type counts;
  mask valid;
  expar::load_balance_options options;
  double tokens;
};

problem random_problem(router_test::random& rng, int most_tokens) {
  int const tokens = static_cast<int>(rng.integer(0, most_tokens));
  int const experts = static_cast<int>(rng.integer(1, 12));
  problem p{matrix<double>(tokens, experts, 1), {}, {}, {}, 0};
  for (int t = 0; t < tokens; ++t) {
    row_type const row = router_test::random_row(rng, experts);
    for (int e = 0; e < experts; ++e)
      p.z.set(t, e, row[static_cast<std::size_t>(e)] == inf ? 2 : row[static_cast<std::size_t>(e)]);
    p.valid.push_back(rng.chance(.8));
  }
  for (int e = 0; e < experts; ++e) p.counts.push_back(rng.integer(0, 20));
  p.options = {rng.uniform(.1, 2), rng.chance(.5) ? 0 : 500, static_cast<int>(rng.integer(1, 4))};
  p.tokens = p.options.tokens != 0
                 ? 500
                 : std::max(1., static_cast<double>(std::count(p.valid.begin(), p.valid.end(), 1)));
  return p;
}

}  // namespace

TEST_CASE("the load balance loss of a uniform load is 1", "[router]") {
  matrix<float> z(std::vector<row_type>{{0, 0, 0}, {0, 0, 0}, {0, 0, 0}});
  std::vector<std::int32_t> const counts{2, 2, 2};
  REQUIRE_THAT(expar::load_balance_loss(ctx, z.view(), counts, {.choices = 2}),
               WithinRel(1., 1e-6));
}

TEST_CASE("the load balance loss agrees with its definition", "[router]") {
  router_test::random rng(12);
  for (int round = 0; round < 200; ++round) {
    problem p = random_problem(rng, 200);
    REQUIRE_THAT(expar::load_balance_loss(ctx, p.z.view(), p.counts, p.valid, p.options),
                 WithinAbs(by_definition(p.z, p.counts, p.valid, p.options.coefficient, p.tokens,
                                         p.options.choices),
                           1e-12 * 400));
    if (p.options.tokens != 0) {
      mask const all(p.valid.size(), 1);
      REQUIRE(expar::load_balance_loss(ctx, p.z.view(), p.counts, p.options) ==
              expar::load_balance_loss(ctx, p.z.view(), p.counts, all, p.options));
    }
  }
}

TEST_CASE("the gradient of the load balance loss agrees with differences", "[router]") {
  router_test::random rng(13);
  for (int round = 0; round < 60; ++round) {
    problem p = random_problem(rng, 5);
    matrix<double> dz(p.z.rows, p.z.columns, 2);
    for (double& x : dz.data) x = 3;
    expar::load_balance_loss_backward(ctx, p.z.view(), p.counts, p.valid, p.options, dz.view());
    for (expar::index_t t = 0; t < p.z.rows; ++t)
      for (expar::index_t e = 0; e < p.z.columns; ++e) {
        double const at = p.z.get(t, e);
        auto const loss = [&](double x) {
          p.z.set(t, e, x);
          return by_definition(p.z, p.counts, p.valid, p.options.coefficient, p.tokens,
                               p.options.choices);
        };
        double const slope = (loss(at + 1e-5) - loss(at - 1e-5)) / 2e-5;
        loss(at);
        REQUIRE_THAT(dz.get(t, e), WithinAbs(3 + slope, 1e-6));
        if (!p.valid[static_cast<std::size_t>(t)] || !(at > -inf)) REQUIRE(dz.get(t, e) == 3);
      }
  }
}

TEST_CASE("parts of ranks add up to the load balance loss", "[router]") {
  matrix<double> all(std::vector<row_type>{{1, 2, 0}, {0, 1, 3}, {2, 2, 1}});
  counts_type const counts{1, 1, 1};
  auto const part = [&](int first, int tokens) {
    return expar::load_balance_loss(ctx, expar::make_view(all.view().row(first), tokens, 3), counts,
                                    {.tokens = 3});
  };
  REQUIRE_THAT(part(0, 1) + part(1, 0) + part(1, 2),
               WithinRel(expar::load_balance_loss(ctx, all.view(), counts), 1e-14));
}

TEST_CASE("the number of threads does not show in the load balance loss", "[router]") {
  router_test::random rng(14);
  matrix<float> z(3333, 17), one(3333, 17), four(3333, 17);
  for (float& x : z.data) x = static_cast<float>(rng.normal());
  counts_type counts;
  for (int e = 0; e < 17; ++e) counts.push_back(rng.integer(0, 900));
  expar::host_context const threads(4);
  REQUIRE(expar::load_balance_loss(ctx, z.view(), counts) ==
          expar::load_balance_loss(threads, z.view(), counts));
  expar::load_balance_loss_backward(ctx, z.view(), counts, {}, one.view());
  expar::load_balance_loss_backward(threads, z.view(), counts, {}, four.view());
  REQUIRE(one.data == four.data);
}

TEST_CASE("the load balance loss takes narrow logits", "[router]") {
  matrix<expar::bfloat16> z(std::vector<row_type>{{1, 2, -inf}, {0, qnan, 3}});
  matrix<double> wide(std::vector<row_type>{{1, 2, -inf}, {0, qnan, 3}}), d_wide(2, 3);
  matrix<expar::bfloat16> dz(2, 3);
  counts_type const counts{3, 1, 0};
  REQUIRE_THAT(expar::load_balance_loss(ctx, z.view(), counts),
               WithinRel(expar::load_balance_loss(ctx, wide.view(), counts), 1e-6));
  expar::load_balance_loss_backward(ctx, z.view(), counts, {}, dz.view());
  expar::load_balance_loss_backward(ctx, wide.view(), counts, {}, d_wide.view());
  for (int t = 0; t < 2; ++t)
    for (int e = 0; e < 3; ++e) REQUIRE_THAT(dz.get(t, e), WithinAbs(d_wide.get(t, e), 2e-3));
}

TEST_CASE("the load balance loss refuses what does not fit", "[router]") {
  matrix<float> z(std::vector<row_type>{{1, 2, 3}, {3, 2, 1}}), dz(2, 3);
  counts_type counts(3, 1), short_counts(2, 1);
  mask const valid{1};
  auto const loss = [&](auto const&... arguments) {
    return sentence_of([&] { (void)expar::load_balance_loss(ctx, arguments...); });
  };
  auto const backward = [&](auto const&... arguments) {
    return sentence_of([&] { expar::load_balance_loss_backward(ctx, arguments...); });
  };
  expar::load_balance_options const plain, no_choices{.choices = 0}, negative{.tokens = -1};
  REQUIRE(loss(z.view(), short_counts) ==
          "expar: load_balance_loss: counts has extent 2 in dimension 0, but the number of experts "
          "is 3");
  REQUIRE(loss(z.view(), counts, no_choices) ==
          "expar: load_balance_loss: choices is 0; it is at least 1");
  REQUIRE(loss(z.view(), counts, negative) ==
          "expar: load_balance_loss: tokens is -1; it is at least 0");
  REQUIRE(loss(z.view(), counts, valid, plain) ==
          "expar: load_balance_loss: valid has extent 1 in dimension 0, but the number of tokens "
          "is 2");
  REQUIRE(loss(expar::make_view<float>(nullptr, 2, 3), counts) ==
          "expar: load_balance_loss: logits has 6 elements but its data is null");
  REQUIRE(loss(z.view(), expar::make_view<int>(nullptr, 3)) ==
          "expar: load_balance_loss: counts has 3 elements but its data is null");
  REQUIRE(backward(z.view(), short_counts, plain, dz.view()) ==
          "expar: load_balance_loss_backward: counts has extent 2 in dimension 0, but the number "
          "of experts is 3");
  REQUIRE(backward(z.view(), counts, no_choices, dz.view()) ==
          "expar: load_balance_loss_backward: choices is 0; it is at least 1");
  REQUIRE(backward(z.view(), counts, negative, dz.view()) ==
          "expar: load_balance_loss_backward: tokens is -1; it is at least 0");
  REQUIRE(backward(z.view(), counts, valid, plain, dz.view()) ==
          "expar: load_balance_loss_backward: valid has extent 1 in dimension 0, but the number of "
          "tokens is 2");
  REQUIRE(backward(expar::make_view<float>(nullptr, 2, 3), counts, plain, dz.view()) ==
          "expar: load_balance_loss_backward: logits has 6 elements but its data is null");
  REQUIRE(backward(z.view(), counts, plain, expar::make_view(dz.data.data(), 1, 3)) ==
          "expar: load_balance_loss_backward: d_logits has extent 1 in dimension 0, but the number "
          "of tokens is 2");
  REQUIRE(backward(z.view(), counts, plain, expar::make_view(dz.data.data(), 2, 2)) ==
          "expar: load_balance_loss_backward: d_logits has extent 2 in dimension 1, but the number "
          "of experts is 3");
  REQUIRE(backward(z.view(), counts, plain, expar::make_view<float>(nullptr, 2, 3)) ==
          "expar: load_balance_loss_backward: d_logits has 6 elements but its data is null");
}
