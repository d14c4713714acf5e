// SPDX-License-Identifier: Apache-2.0
#include <expar/router/research/diverse_loss.hpp>

#include "../../support/catch.hpp"
#include "../differences.hpp"
#include "../support.hpp"

using Catch::Matchers::WithinAbs;
using router_test::mask;
using router_test::matrix;
using router_test::row_type;
using router_test::sentence_of;

namespace {

expar::host_context const ctx;

double by_definition(matrix<double>& w, mask const& there, expar::diverse_loss_options const& o) {
  double sum = 0, lengths = 0;
  auto const dot = [&](expar::index_t r, expar::index_t s) {
    double product = 0;
    for (expar::index_t i = 0; i < w.columns; ++i) product += w.get(r, i) * w.get(s, i);
    return product;
  };
  auto const length = [&](expar::index_t r) { return std::max(std::sqrt(dot(r, r)), o.epsilon); };
  for (expar::index_t r = 0; r < w.rows; ++r) {
    lengths += std::sqrt(dot(r, r));
    for (expar::index_t s = 0; s < w.rows; ++s) {
      if (!there[static_cast<std::size_t>(r)] || !there[static_cast<std::size_t>(s)]) continue;
      double const off = dot(r, s) / (length(r) * length(s)) - (r == s ? 1 : 0);
      sum += off * off;
    }
  }
  return w.rows > 0 ? o.diverse * std::sqrt(sum) + o.simple * lengths / static_cast<double>(w.rows)
                    : 0;
}

}  // namespace

TEST_CASE("the loss of diverse and simple gates agrees with the definition", "[router]") {
  router_test::random rng(390);
  for (int round = 0; round < 100; ++round) {
    int const experts = static_cast<int>(rng.integer(0, 5)),
              width = static_cast<int>(rng.integer(2, 5));
    matrix<double> w(experts, width, 1);
    for (double& x : w.data) x = rng.normal();
    mask const there = router_test::random_mask(rng, experts);
    expar::diverse_loss_options const o{rng.uniform(.1, 2), rng.uniform(.1, 2), 1e-12};
    auto const loss = [&] { return by_definition(w, there, o); };
    REQUIRE_THAT(expar::diverse_loss(ctx, w.view(), there, o), WithinAbs(loss(), 1e-7));
    if (std::count(there.begin(), there.end(), 1) < 2) continue;  // the norm of rounding errors
    auto dw = router_test::gradient_of(experts, width, [&](auto&& d) {
      expar::diverse_loss_backward(ctx, w.view(), there, o, d);
    });
    router_test::require_gradient(w, dw, 0, loss, 1e-5);
  }
}

TEST_CASE("orthogonal rows are diverse, and rows of zeros simple", "[router]") {
  matrix<float> w(std::vector<row_type>{{3, 0}, {0, 1}}), dw(2, 2);
  REQUIRE(expar::diverse_loss(ctx, w.view(), mask{1, 1}, {}) == 2);
  expar::diverse_loss_backward(ctx, w.view(), mask{1, 1}, {}, dw.view());
  REQUIRE(dw.data == std::vector<float>{.5, 0, 0, .5});
  matrix<expar::bfloat16> zero(2, 2), d_zero(2, 2);
  REQUIRE(expar::diverse_loss(ctx, zero.view(), mask{0, 0}, {}) == 0);
  expar::diverse_loss_backward(ctx, zero.view(), mask{0, 0}, {}, d_zero.view());
  for (int i = 0; i < 4; ++i) REQUIRE(d_zero.get(i / 2, i % 2) == 0);
}

TEST_CASE("the number of threads does not show in the loss of diverse gates", "[router]") {
  router_test::random rng(391);
  matrix<float> w(96, 64), one(96, 64), three(96, 64);
  for (float& x : w.data) x = static_cast<float>(rng.normal());
  mask const there = router_test::random_mask(rng, 96);
  expar::host_context const threads(3);
  REQUIRE(expar::diverse_loss(ctx, w.view(), there, {}) ==
          expar::diverse_loss(threads, w.view(), there, {}));
  expar::diverse_loss_backward(ctx, w.view(), there, {}, one.view());
  expar::diverse_loss_backward(threads, w.view(), there, {}, three.view());
  REQUIRE(one.data == three.data);
}

TEST_CASE("the loss of diverse gates refuses what does not fit", "[router]") {
  matrix<float> w(2, 3), dw(2, 2);
  REQUIRE(sentence_of([&] { (void)expar::diverse_loss(ctx, w.view(), mask{1}, {}); }) ==
          "expar: diverse_loss: there has extent 1 in dimension 0, but the number of experts is 2");
  REQUIRE(sentence_of([&] {
            (void)expar::diverse_loss(ctx, w.view(), mask{1, 1}, {.epsilon = 0});
          }) == "expar: diverse_loss: epsilon is 0; it is greater than 0");
  REQUIRE(sentence_of([&] {
            expar::diverse_loss_backward(ctx, w.view(), mask{1, 1}, {}, dw.view());
          }) ==
          "expar: diverse_loss_backward: d_weights has extent 2 in dimension 1, but the width of a "
          "row is 3");
}
