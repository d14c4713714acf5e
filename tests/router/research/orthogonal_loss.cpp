// SPDX-License-Identifier: Apache-2.0
#include <expar/router/research/orthogonal_loss.hpp>

#include "../../support/catch.hpp"
#include "../differences.hpp"
#include "../support.hpp"

using Catch::Matchers::WithinAbs;
using router_test::matrix;
using router_test::row_type;
using router_test::sentence_of;

namespace {

expar::host_context const ctx;

double by_definition(matrix<double>& w, expar::orthogonal_loss_options const& o) {
  double sum = 0, pairs = 0;
  expar::index_t const size = w.rows / o.groups;
  for (expar::index_t r = 0; r < w.rows; ++r)
    for (expar::index_t s = 0; s < w.rows; ++s) {
      if (r / size != s / size) continue;
      double product = 0, rr = 0, ss = 0;
      for (expar::index_t i = 0; i < w.columns; ++i) {
        product += w.get(r, i) * w.get(s, i);
        rr += w.get(r, i) * w.get(r, i);
        ss += w.get(s, i) * w.get(s, i);
      }
      product /= std::max(std::sqrt(rr), o.epsilon) * std::max(std::sqrt(ss), o.epsilon);
      double const off = product - (r == s ? 1 : 0);
      sum += off * off;
      ++pairs;
    }
  return pairs > 0 ? o.coefficient * sum / pairs : 0;
}

}  // namespace

TEST_CASE("rows at 45 degrees", "[router]") {
  matrix<float> w(std::vector<row_type>{{1, 0, 0, 0}, {1, 1, 0, 0}});
  REQUIRE_THAT(expar::orthogonal_loss(ctx, w.view(), {}), WithinAbs(.25, 1e-7));
  REQUIRE_THAT(expar::orthogonal_loss(ctx, w.view(), {.groups = 2}), WithinAbs(0, 1e-7));
}

TEST_CASE("the orthogonal loss and its gradient agree with the definition", "[router]") {
  router_test::random rng(380);
  for (int round = 0; round < 100; ++round) {
    int const groups = static_cast<int>(rng.integer(1, 3));
    int const experts = groups * static_cast<int>(rng.integer(0, 3)),
              width = static_cast<int>(rng.integer(1, 5));
    matrix<double> w(experts, width, 1);
    for (double& x : w.data) x = rng.normal();
    if (experts > 0 && rng.chance(.3))
      for (int i = 0; i < width; ++i) w.set(0, i, w.get(0, i) / 20);
    expar::orthogonal_loss_options const o{rng.uniform(.1, 2), rng.chance(.5) ? 1e-12 : .5, groups};
    auto const loss = [&] { return by_definition(w, o); };
    REQUIRE_THAT(expar::orthogonal_loss(ctx, w.view(), o), WithinAbs(loss(), 1e-12));
    auto dw = router_test::gradient_of(
        experts, width, [&](auto&& d) { expar::orthogonal_loss_backward(ctx, w.view(), o, d); });
    router_test::require_gradient(w, dw, 0, loss, 1e-5);
  }
}

TEST_CASE("a row of zeros has no direction", "[router]") {
  matrix<double> w(2, 3), dw(2, 3);
  w.set(1, 0, 2);
  REQUIRE(expar::orthogonal_loss(ctx, w.view(), {}) == .25);
  expar::orthogonal_loss_backward(ctx, w.view(), {}, dw.view());
  for (double x : dw.data) REQUIRE(std::isfinite(x));
  matrix<expar::bfloat16> narrow(std::vector<row_type>{{1, 0}, {0, 1}});
  REQUIRE(expar::orthogonal_loss(ctx, narrow.view(), {}) == 0);
}

TEST_CASE("the number of threads does not show in the orthogonal loss", "[router]") {
  router_test::random rng(381);
  matrix<float> w(96, 64), one(96, 64), three(96, 64);
  for (float& x : w.data) x = static_cast<float>(rng.normal());
  expar::host_context const threads(3);
  REQUIRE(expar::orthogonal_loss(ctx, w.view(), {}) ==
          expar::orthogonal_loss(threads, w.view(), {}));
  expar::orthogonal_loss_backward(ctx, w.view(), {}, one.view());
  expar::orthogonal_loss_backward(threads, w.view(), {}, three.view());
  REQUIRE(one.data == three.data);
}

TEST_CASE("the orthogonal loss refuses what does not fit", "[router]") {
  matrix<float> w(4, 3), dw(4, 2);
  REQUIRE(sentence_of([&] { (void)expar::orthogonal_loss(ctx, w.view(), {.epsilon = 0}); }) ==
          "expar: orthogonal_loss: epsilon is 0; it is greater than 0");
  REQUIRE(sentence_of([&] { (void)expar::orthogonal_loss(ctx, w.view(), {.groups = 3}); }) ==
          "expar: orthogonal_loss: groups is 3; it is at least 1 and divides the 4 experts");
  REQUIRE(
      sentence_of([&] { expar::orthogonal_loss_backward(ctx, w.view(), {}, dw.view()); }) ==
      "expar: orthogonal_loss_backward: d_weights has extent 2 in dimension 1, but the width of "
      "a row is 3");
}
