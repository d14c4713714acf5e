// SPDX-License-Identifier: Apache-2.0
#include <expar/router/state/quantile_histogram.hpp>

#include <expar/router/count_choices.hpp>
#include <expar/router/route.hpp>
#include <expar/router/router.hpp>
#include <expar/router/routes.hpp>

#include "../../support/catch.hpp"
#include "../differences.hpp"
#include "../support.hpp"

using Catch::Matchers::WithinAbs;
using router_test::inf;
using router_test::mask;
using router_test::matrix;
using router_test::qnan;
using router_test::row_type;
using router_test::sentence_of;

namespace {

expar::host_context const ctx;
expar::sigmoid_score const sigmoid;
using histogram_type = std::vector<std::int32_t>;

histogram_type by_definition(matrix<double>& z, row_type const& bias, int k,
                             expar::quantile_bins const& bins, int n, mask const& valid) {
  std::size_t const experts = bias.size();
  histogram_type h(experts * static_cast<std::size_t>(n), 0);
  for (expar::index_t t = 0; t < z.rows; ++t) {
    row_type const row = z.row(t);
    row_type s, keys;
    for (std::size_t e = 0; e < experts; ++e) {
      s.push_back(1 / (1 + std::exp(-row[e])));
      if (row[e] > -inf) keys.push_back(s[e] + bias[e]);
    }
    std::sort(keys.rbegin(), keys.rend());
    double const cutoff =
        keys.size() > static_cast<std::size_t>(k) ? keys[static_cast<std::size_t>(k)] : -inf;
    for (std::size_t e = 0; e < experts; ++e) {
      if (!valid[static_cast<std::size_t>(t)] || !(row[e] > -inf)) continue;
      double const bin = std::floor((cutoff - s[e] - bins.lower) * n / (bins.upper - bins.lower));
      ++h[e * static_cast<std::size_t>(n) +
          static_cast<std::size_t>(std::max(0., std::min(bin, n - 1.)))];
    }
  }
  return h;
}

}  // namespace

TEST_CASE("Transformer Engine: the histogram agrees with its definition", "[router]") {
  router_test::random rng(420);
  expar::host_context const threads(3);
  for (int round = 0; round < 100; ++round) {
    int const tokens = static_cast<int>(rng.chance(.1) ? 2500 : rng.integer(0, 12));
    int const experts = static_cast<int>(rng.integer(2, 40)),
              k = static_cast<int>(rng.integer(1, experts - 1)),
              n = static_cast<int>(rng.integer(1, 30));
    matrix<double> z(tokens, experts, 1);
    for (double& x : z.data)
      x = rng.chance(.05) ? (rng.chance(.5) ? qnan : -inf) : 2 * rng.normal();
    row_type bias;
    for (int e = 0; e < experts; ++e) bias.push_back(rng.normal() / 3);
    mask const valid = router_test::random_mask(rng, tokens);
    expar::quantile_bins const bins{-rng.uniform(.2, 2), rng.uniform(.2, 2)};
    histogram_type h(static_cast<std::size_t>(experts * (n + 1)), 5),
        expected = by_definition(z, bias, k, bins, n, valid);
    auto const view = expar::make_view(h.data(), experts, n, n + 1);
    expar::add_quantile_histogram(rng.chance(.5) ? ctx : threads, sigmoid,
                                  expar::only(valid, z.view()), bias, k, bins, view);
    // A value on the edge of a bin may fall on either side of it.
    int off = 0;
    for (int e = 0; e < experts; ++e)
      for (int i = 0; i < n; ++i)
        off += std::abs(view(e, i) - 5 - expected[static_cast<std::size_t>(e * n + i)]);
    REQUIRE(off <= 2);
  }
}

TEST_CASE("histograms of parts add up to that of the whole, for any number of threads",
          "[router]") {
  router_test::random rng(421);
  matrix<float> z(3000, 16);
  for (float& x : z.data) x = static_cast<float>(rng.normal());
  std::vector<float> bias(16, .1f);
  histogram_type whole(16 * 50), parts(whole), three(whole);
  auto const view = [](histogram_type& h) { return expar::make_view(h.data(), 16, 50); };
  expar::add_quantile_histogram(ctx, sigmoid, z.view(), bias, 2, {-1, 1}, view(whole));
  expar::add_quantile_histogram(expar::host_context(3), sigmoid, z.view(), bias, 2, {-1, 1},
                                view(three));
  for (int part = 0; part < 3; ++part)
    expar::add_quantile_histogram(ctx, sigmoid,
                                  expar::make_view(z.view().row(1000 * part), 1000, 16), bias, 2,
                                  {-1, 1}, view(parts));
  REQUIRE(parts == whole);
  REQUIRE(three == whole);
}

TEST_CASE("histograms of narrow logits are those of the same logits", "[router]") {
  router_test::random rng(423);
  matrix<expar::bfloat16> narrow(40, 16, 1);
  matrix<float> wide(40, 16);
  for (int t = 0; t < 40; ++t)
    for (int e = 0; e < 16; ++e) {
      narrow.set(t, e, rng.normal());
      wide.set(t, e, narrow.get(t, e));
    }
  std::vector<float> const bias(16, .1f);
  histogram_type a(16 * 50), b(a);
  expar::add_quantile_histogram(ctx, sigmoid, narrow.view(), bias, 2, {-1, 1},
                                expar::make_view(a.data(), 16, 50));
  expar::add_quantile_histogram(ctx, sigmoid, wide.view(), bias, 2, {-1, 1},
                                expar::make_view(b.data(), 16, 50));
  REQUIRE(a == b);
  REQUIRE(std::accumulate(a.begin(), a.end(), 0) == 40 * 16);
}

TEST_CASE("Megatron-LM: the bias and the bins that a histogram gives", "[router]") {
  histogram_type const h{0, 2, 2, 0, 2, 2, 0, 0};
  row_type bias(2, 0);
  expar::histogram_bias(ctx, expar::make_view(h.data(), 2, 4), 1, {-1, 1}, bias);
  REQUIRE(bias == row_type{.25, -.25});
  expar::quantile_bins const bins = expar::score_bins(ctx, bias);
  REQUIRE(bins.lower == -1.25);
  REQUIRE(bins.upper == 1.25);
}

TEST_CASE("histograms balance a load", "[router]") {
  router_test::random rng(422);
  int const tokens = 1024, experts = 8, k = 2;
  matrix<float> z(tokens, experts);
  for (int t = 0; t < tokens; ++t)
    for (int e = 0; e < experts; ++e) z.set(t, e, rng.normal() + e / 4.);
  expar::router const router({experts, k}, sigmoid, expar::biased_key{});
  std::vector<float> bias(experts, 0);
  auto const busiest = [&] {
    expar::routes<float> routes(tokens, k);
    expar::route(ctx, router, z.view(), bias, routes);
    std::vector<int> counts(experts);
    expar::count_choices(ctx, routes.ids, k, counts);
    return *std::max_element(counts.begin(), counts.end());
  };
  REQUIRE(busiest() > 500);
  for (int step = 0; step < 30; ++step) {
    histogram_type h(experts * 1000, 0);
    expar::quantile_bins const bins = expar::score_bins(ctx, bias);
    auto const view = expar::make_view(h.data(), experts, 1000);
    expar::add_quantile_histogram(ctx, sigmoid, z.view(), bias, k, bins, view);
    expar::histogram_bias(ctx, view, k, bins, bias);
  }
  REQUIRE(busiest() < 290);  // 256 is even
}

TEST_CASE("a token for which an expert is masked is in the share of none", "[router]") {
  // Expert 0 is masked for half of the tokens. quantile_bias() asks for half of all 8 tokens.
  matrix<double> z(8, 2);
  for (int t = 0; t < 8; ++t) {
    z.set(t, 0, t < 4 ? -inf : t - 4);
    z.set(t, 1, 0);
  }
  row_type bias(2, 0), target(2);
  expar::quantile_bias(ctx, z.view(), bias, 1, target);
  REQUIRE(target[0] == 0);  // the fifth largest difference is that of a masked expert: it stays
  histogram_type h(8, 0);
  auto const view = expar::make_view(h.data(), 2, 4);
  expar::add_quantile_histogram(ctx, sigmoid, z.view(), bias, 1, {-1, 1}, view);
  REQUIRE(std::accumulate(h.begin(), h.begin() + 4, 0) == 4);
  REQUIRE(std::accumulate(h.begin() + 4, h.end(), 0) == 8);
}

TEST_CASE("the quantile of a histogram at its ends", "[router]") {
  histogram_type const h{0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 3};
  row_type bias{5, 0, 0};
  expar::histogram_bias(ctx, expar::make_view(h.data(), 3, 4), 3, {0, 4}, bias);
  // An expert without tokens keeps its 5; all of a bin: its upper edge. {5, 1, 4} minus 10 / 3.
  REQUIRE_THAT(bias[0], WithinAbs(5 - 10 / 3., 1e-14));
  REQUIRE_THAT(bias[1], WithinAbs(1 - 10 / 3., 1e-14));
  REQUIRE_THAT(bias[2], WithinAbs(4 - 10 / 3., 1e-14));
  // What is selected in any case needs no bias: below all bins.
  matrix<double> z(std::vector<row_type>{{1, qnan, -inf}});
  histogram_type one(12, 0);
  expar::add_quantile_histogram(ctx, sigmoid, z.view(), row_type(3, 0), 1, {-1, 1},
                                expar::make_view(one.data(), 3, 4));
  REQUIRE(one == histogram_type{1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0});
}

TEST_CASE("histograms refuse what does not fit", "[router]") {
  matrix<float> z(2, 3);
  row_type three(3), two(2);
  histogram_type h(12);
  auto const view = expar::make_view(h.data(), 3, 4);
  auto const add = [&](row_type const& bias, int k, expar::quantile_bins const& bins,
                       auto const& to) {
    return sentence_of(
        [&] { expar::add_quantile_histogram(ctx, sigmoid, z.view(), bias, k, bins, to); });
  };
  REQUIRE(
      add(three, 3, {-1, 1}, view) ==
      "expar: add_quantile_histogram: top_k is 3; it is at least 1 and less than the 3 experts");
  REQUIRE(add(two, 1, {-1, 1}, view) ==
          "expar: add_quantile_histogram: bias has extent 2 in dimension 0, but the number of "
          "experts is 3");
  REQUIRE(add(three, 1, {1, 1}, view) ==
          "expar: add_quantile_histogram: the bins reach from 1 to 1; their range is finite and "
          "not empty");
  REQUIRE(add(three, 1, {-1, inf}, view) ==
          "expar: add_quantile_histogram: the bins reach from -1 to inf; their range is finite and "
          "not empty");
  REQUIRE(add(three, 1, {-1e308, 1e308}, view) ==
          "expar: add_quantile_histogram: the bins reach from -1e+308 to 1e+308; their range is "
          "finite and not empty");
  REQUIRE(add(three, 1, {-1, 1}, expar::make_view(h.data(), 2, 4)) ==
          "expar: add_quantile_histogram: histogram has extent 2 in dimension 0, but the number of "
          "experts is 3");
  REQUIRE(
      add(three, 1, {-1, 1}, expar::make_view(h.data(), 3, 0)) ==
      "expar: add_quantile_histogram: histogram has 0 bins; there is at least 1, and fewer than "
      "2147483647");
  std::vector<std::int32_t> full(12);
  full[5] = 2147483646;
  REQUIRE(add(three, 1, {-1, 1}, expar::make_view(full.data(), 3, 4)) ==
          "expar: add_quantile_histogram: a count may become 2147483648, more than an integer of 4 "
          "bytes holds");
  REQUIRE(full[5] == 2147483646);
  REQUIRE(sentence_of([&] {
            expar::add_quantile_histogram(ctx, sigmoid, expar::only(mask{1}, z.view()), three, 1,
                                          {-1, 1}, view);
          }) ==
          "expar: add_quantile_histogram: valid has extent 1 in dimension 0, but the number of "
          "tokens is 2");
  REQUIRE(sentence_of([&] {
            expar::histogram_bias(ctx, view, 4, {-1, 1}, three);
          }) == "expar: histogram_bias: top_k is 4; it is at least 1 and at most the 3 experts");
  REQUIRE(
      sentence_of([&] {
        expar::histogram_bias(ctx, view, 1, {-1, 1}, two);
      }) ==
      "expar: histogram_bias: bias has extent 2 in dimension 0, but the number of experts is 3");
  REQUIRE(sentence_of([&] { (void)expar::score_bins(ctx, row_type{}); }) ==
          "expar: score_bins: bias has no experts; at least 1 is needed");
}

TEST_CASE("biases of histograms that do not follow one another", "[router]") {
  router_test::random rng(424);
  matrix<float> z(30, 3);
  for (float& x : z.data) x = static_cast<float>(rng.normal());
  row_type packed{.25, 0, -.5}, spread{.25, 77, 0, 77, -.5, 77};
  auto const strided = expar::make_strided_view(spread.data(), 3, 2);
  histogram_type one(24), other(24);
  auto const view = [](histogram_type& h) { return expar::make_view(h.data(), 3, 8); };
  auto const bins = expar::score_bins(ctx, strided);
  REQUIRE((bins.lower == -1.5 && bins.upper == 1.25));
  expar::add_quantile_histogram(ctx, sigmoid, z.view(), packed, 1, bins, view(one));
  expar::add_quantile_histogram(ctx, sigmoid, z.view(), strided, 1, bins, view(other));
  REQUIRE(one == other);
  expar::histogram_bias(ctx, view(one), 1, bins, packed);
  expar::histogram_bias(ctx, view(one), 1, bins, strided);
  REQUIRE(spread == row_type{packed[0], 77, packed[1], 77, packed[2], 77});
}
