// SPDX-License-Identifier: Apache-2.0
#include <expar/router/load_balance_loss.hpp>
#include <expar/router/normalized_score.hpp>

#include "../support/catch.hpp"
#include "differences.hpp"
#include "support.hpp"

using Catch::Matchers::WithinAbs;
using Catch::Matchers::WithinRel;
using expar::only;
using router_test::inf;
using router_test::matrix;
using router_test::qnan;
using router_test::row_type;
using router_test::sentence_of;

namespace {

expar::host_context const ctx;

using mask = std::vector<std::uint8_t>;
using counts_type = std::vector<expar::index_t>;
expar::load_balance_options const one_choice{.choices = 1};

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
  p.options = {rng.uniform(.1, 2), static_cast<int>(rng.integer(1, 4)), rng.chance(.5) ? 0 : 500};
  p.tokens = p.options.tokens != 0
                 ? 500
                 : std::max(1., static_cast<double>(std::count(p.valid.begin(), p.valid.end(), 1)));
  return p;
}

}  // namespace

TEST_CASE("the load balance loss of a uniform load is the coefficient", "[router]") {
  matrix<float> z(std::vector<row_type>{{0, 0, 0}, {0, 0, 0}, {0, 0, 0}});
  std::vector<std::int32_t> const counts{2, 2, 2};
  REQUIRE_THAT(expar::load_balance_loss(ctx, z.view(), counts, {.coefficient = 3, .choices = 2}),
               WithinRel(3., 1e-6));
}

TEST_CASE("the load balance loss agrees with its definition", "[router]") {
  router_test::random rng(12);
  for (int round = 0; round < 200; ++round) {
    problem p = random_problem(rng, 200);
    REQUIRE_THAT(expar::load_balance_loss(ctx, only(p.valid, p.z.view()), p.counts, p.options),
                 WithinAbs(by_definition(p.z, p.counts, p.valid, p.options.coefficient, p.tokens,
                                         p.options.choices),
                           1e-12 * 400));
    if (p.options.tokens != 0) {
      mask const all(p.valid.size(), 1);
      REQUIRE(expar::load_balance_loss(ctx, p.z.view(), p.counts, p.options) ==
              expar::load_balance_loss(ctx, only(all, p.z.view()), p.counts, p.options));
    }
  }
}

TEST_CASE("the gradient of the load balance loss agrees with differences", "[router]") {
  router_test::random rng(13);
  for (int round = 0; round < 60; ++round) {
    problem p = random_problem(rng, 5);
    auto dz = router_test::gradient_of(p.z.rows, p.z.columns, [&](auto&& d) {
      expar::load_balance_loss_backward(ctx, only(p.valid, p.z.view()), p.counts, p.options, d);
    });
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
        REQUIRE_THAT(dz.get(t, e), WithinAbs(slope, 1e-6));
        if (!p.valid[static_cast<std::size_t>(t)] || !(at > -inf)) REQUIRE(dz.get(t, e) == 0);
      }
  }
}

TEST_CASE("parts of ranks add up to the load balance loss", "[router]") {
  matrix<double> all(std::vector<row_type>{{1, 2, 0}, {0, 1, 3}, {2, 2, 1}});
  counts_type const counts{1, 1, 1};
  auto const part = [&](int first, int tokens) {
    return expar::load_balance_loss(ctx, expar::make_view(all.view().row(first), tokens, 3), counts,
                                    {.choices = 1, .tokens = 3});
  };
  REQUIRE_THAT(part(0, 1) + part(1, 0) + part(1, 2),
               WithinRel(expar::load_balance_loss(ctx, all.view(), counts, one_choice), 1e-14));
}

TEST_CASE("the number of threads does not show in the load balance loss", "[router]") {
  router_test::random rng(14);
  matrix<float> z(3333, 17), one(3333, 17), four(3333, 17);
  for (float& x : z.data) x = static_cast<float>(rng.normal());
  counts_type counts;
  for (int e = 0; e < 17; ++e) counts.push_back(rng.integer(0, 900));
  expar::host_context const threads(4);
  REQUIRE(expar::load_balance_loss(ctx, z.view(), counts, one_choice) ==
          expar::load_balance_loss(threads, z.view(), counts, one_choice));
  expar::load_balance_loss_backward(ctx, z.view(), counts, one_choice, one.view());
  expar::load_balance_loss_backward(threads, z.view(), counts, one_choice, four.view());
  REQUIRE(one.data == four.data);
}

TEST_CASE("the load balance loss takes narrow logits", "[router]") {
  matrix<expar::bfloat16> z(std::vector<row_type>{{1, 2, -inf}, {0, qnan, 3}});
  matrix<double> wide(std::vector<row_type>{{1, 2, -inf}, {0, qnan, 3}}), d_wide(2, 3);
  matrix<expar::bfloat16> dz(2, 3);
  counts_type const counts{3, 1, 0};
  REQUIRE_THAT(expar::load_balance_loss(ctx, z.view(), counts, one_choice),
               WithinRel(expar::load_balance_loss(ctx, wide.view(), counts, one_choice), 1e-6));
  expar::load_balance_loss_backward(ctx, z.view(), counts, one_choice, dz.view());
  expar::load_balance_loss_backward(ctx, wide.view(), counts, one_choice, d_wide.view());
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
  expar::load_balance_options const plain = one_choice, not_given,
                                    negative{.choices = 1, .tokens = -1};
  REQUIRE(loss(z.view(), short_counts, plain) ==
          "expar: load_balance_loss: counts has extent 2 in dimension 0, but the number of experts "
          "is 3");
  REQUIRE(
      loss(z.view(), counts, not_given) ==
      "expar: load_balance_loss: choices is 0; options.choices must be given, and is at least 1");
  REQUIRE(loss(z.view(), counts, negative) ==
          "expar: load_balance_loss: tokens is -1; it is at least 0");
  REQUIRE(loss(only(valid, z.view()), counts, plain) ==
          "expar: load_balance_loss: valid has extent 1 in dimension 0, but the number of tokens "
          "is 2");
  REQUIRE(loss(expar::make_view<float>(nullptr, 2, 3), counts, plain) ==
          "expar: load_balance_loss: logits has 6 elements but its data is null");
  REQUIRE(loss(z.view(), expar::make_view<int>(nullptr, 3), plain) ==
          "expar: load_balance_loss: counts has 3 elements but its data is null");
  REQUIRE(backward(z.view(), short_counts, plain, dz.view()) ==
          "expar: load_balance_loss_backward: counts has extent 2 in dimension 0, but the number "
          "of experts is 3");
  REQUIRE(backward(z.view(), counts, not_given, dz.view()) ==
          "expar: load_balance_loss_backward: choices is 0; options.choices must be given, and is "
          "at least 1");
  REQUIRE(backward(z.view(), counts, negative, dz.view()) ==
          "expar: load_balance_loss_backward: tokens is -1; it is at least 0");
  REQUIRE(backward(only(valid, z.view()), counts, plain, dz.view()) ==
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

namespace {

/// q = sigmoid(z) / (sum + 1e-20)
row_type normalized_sigmoid(row_type const& z) {
  row_type q(z.size(), 0);
  double sum = 1e-20;
  for (std::size_t e = 0; e < z.size(); ++e)
    if (z[e] > -inf) sum += q[e] = 1 / (1 + std::exp(-z[e]));
  for (double& x : q) x /= sum;
  return q;
}
row_type relu(row_type const& z) {
  row_type q;
  for (double x : z) q.push_back(x > 0 ? x : 0);
  return q;
}

template <class Q>
double by_scores(matrix<double>& z, counts_type const& counts, mask const& valid, double unit,
                 Q q_of) {
  double sum = 0;
  for (expar::index_t t = 0; t < z.rows; ++t) {
    row_type const q = q_of(z.row(t));
    for (std::size_t e = 0; e < q.size(); ++e)
      if (valid[static_cast<std::size_t>(t)]) sum += static_cast<double>(counts[e]) * q[e];
  }
  return unit * sum;
}

}  // namespace

TEST_CASE("the load balance loss of other scores, and of counts of other tokens", "[router]") {
  router_test::random rng(121);
  for (int round = 0; round < 60; ++round) {
    problem p = random_problem(rng, 6);
    for (double& x : p.z.data)
      if (x == 0) x = .25;  // relu has no gradient at 0
    p.options.counted_tokens = rng.chance(.5) ? 0 : 70;
    double const counted = p.options.counted_tokens != 0 ? 70 : p.tokens;
    double const unit = p.options.coefficient * static_cast<double>(p.z.columns) /
                        (p.options.choices * counted * p.tokens);
    auto const require = [&](auto const& score, auto q_of) {
      auto const loss = [&] { return by_scores(p.z, p.counts, p.valid, unit, q_of); };
      REQUIRE_THAT(
          expar::load_balance_loss(ctx, score, only(p.valid, p.z.view()), p.counts, p.options),
          WithinAbs(loss(), 1e-11));
      auto dz = router_test::gradient_of(p.z.rows, p.z.columns, [&](auto&& d) {
        expar::load_balance_loss_backward(ctx, score, only(p.valid, p.z.view()), p.counts,
                                          p.options, d);
      });
      router_test::require_gradient(p.z, dz, 0, loss, 1e-6);
    };
    require(expar::normalized_score{expar::sigmoid_score{}, 1e-20}, normalized_sigmoid);
    require(expar::relu_score{}, relu);
    require(expar::softmax_score{},
            [](row_type const& z) { return router_test::reference_router{}.scores(z); });
  }
}

TEST_CASE("a score given is a score not given, where it is the softmax", "[router]") {
  matrix<double> z(std::vector<row_type>{{1, 2, 0}, {0, 1, 3}}), a(2, 3), b(2, 3);
  counts_type const counts{1, 1, 2};
  mask const valid{1, 0};
  expar::softmax_score const softmax;
  REQUIRE(expar::load_balance_loss(ctx, z.view(), counts, one_choice) ==
          expar::load_balance_loss(ctx, softmax, z.view(), counts, one_choice));
  REQUIRE(expar::load_balance_loss(ctx, only(valid, z.view()), counts, one_choice) ==
          expar::load_balance_loss(ctx, softmax, only(valid, z.view()), counts, one_choice));
  expar::load_balance_loss_backward(ctx, z.view(), counts, one_choice, a.view());
  expar::load_balance_loss_backward(ctx, softmax, z.view(), counts, one_choice, b.view());
  REQUIRE(a.data == b.data);
}

TEST_CASE("the constants of the table of load balance losses", "[router]") {
  router_test::random rng(122);
  int const tokens = 24, experts = 6, k = 2;
  matrix<double> z(tokens, experts);
  for (double& x : z.data) x = rng.normal();
  router_test::reference_router const softmax;
  std::vector<std::int32_t> ids;
  row_type mean(experts, 0), first(experts, 0), all(experts, 0), second(experts, 0);
  for (int t = 0; t < tokens; ++t) {
    auto const mine = softmax.ids(z.row(t), {}, k);
    ids.insert(ids.end(), mine.begin(), mine.end());
    row_type const p = softmax.scores(z.row(t));
    for (std::size_t e = 0; e < p.size(); ++e) mean[e] += p[e] / tokens;
    first[static_cast<std::size_t>(mine[0])] += 1. / tokens;
    second[static_cast<std::size_t>(mine[1])] += 1. / tokens;
  }
  double over_first = 0, over_all = 0, over_second = 0;
  for (std::size_t e = 0; e < mean.size(); ++e) {
    over_first += mean[e] * first[e];
    over_second += mean[e] * second[e];
    over_all += mean[e] * (first[e] + second[e]);
  }
  counts_type of_first(experts), of_all(experts), of_second(experts);
  auto const view = expar::make_view(ids.data(), tokens, k);
  expar::count_choices(ctx, view, 1, of_first);
  expar::count_choices(ctx, view, k, of_all);
  expar::count_choices(ctx, expar::make_view(ids.data() + 1, tokens, 1, k), 1, of_second);
  auto const require = [&](counts_type const& counts, expar::load_balance_options const& o,
                           double expected) {
    REQUIRE_THAT(expar::load_balance_loss(ctx, z.view(), counts, o), WithinRel(expected, 1e-12));
  };
  double const n = experts;
  require(of_all, {.choices = k}, n * over_all / k);          // Megatron, DeepSpeed topk
  require(of_all, {.choices = 1}, n * over_all);              // Hugging Face, flaxformer
  require(of_first, {.choices = 1}, over_first / n * n * n);  // E^2 mean(me ce)
  require(of_first, {.coefficient = 1 / (n * n), .choices = 1}, over_first / n);  // fairscale
  require(of_first, {.coefficient = 9 / (n * n), .choices = 1},
          over_first / n * 9);  // fastmoe, 3 local experts
  require(of_second, {.coefficient = .5, .choices = 1}, n * over_second / 2);  // Mesh TensorFlow

  // fastmoe's Switch gate: both means over the kept routes. Here, each expert keeps 2.
  counts_type kept(of_first);
  expar::index_t sum = 0;
  for (auto& c : kept) sum += c = std::min<expar::index_t>(c, 2);
  double switch_loss = 0;
  for (std::size_t e = 0; e < kept.size(); ++e)
    switch_loss += static_cast<double>(kept[e]) / static_cast<double>(sum) * mean[e] * tokens /
                   static_cast<double>(sum);
  require(kept, {.choices = 1, .tokens = sum}, n * switch_loss);
}

TEST_CASE("the plain L1 of ReMoE is a load balance loss of equal counts", "[router]") {
  matrix<double> z(std::vector<row_type>{{.5, -.25, 0, 1}, {2, .75, .25, -.5}});
  counts_type const ones(4, 1);
  REQUIRE(expar::load_balance_loss(ctx, expar::relu_score{}, z.view(), ones,
                                   {.coefficient = 4, .choices = 4, .counted_tokens = 1}) ==
          4 * (1.5 + 3) / 2);
}

TEST_CASE("a batch without tokens or valid tokens has no load balance loss", "[router]") {
  matrix<double> z(std::vector<row_type>{{1, 2}}), dz(1, 2);
  counts_type const none(2, 0);
  mask const invalid{0};
  REQUIRE(expar::load_balance_loss(ctx, expar::make_view(z.data.data(), 0, 2), none, one_choice) ==
          0);
  REQUIRE(expar::load_balance_loss(ctx, only(invalid, z.view()), counts_type{1, 0}, one_choice) ==
          0);
  expar::load_balance_loss_backward(ctx, only(invalid, z.view()), counts_type{1, 0}, one_choice,
                                    dz.view());
  REQUIRE(dz.data == std::vector<double>{0, 0});
  REQUIRE(sentence_of([&] {
            (void)expar::load_balance_loss(ctx, z.view(), none,
                                           {.choices = 1, .counted_tokens = -1});
          }) == "expar: load_balance_loss: counted_tokens is -1; it is at least 0");
}
