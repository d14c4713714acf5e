// SPDX-License-Identifier: Apache-2.0
#include <expar/router/entropy_loss.hpp>

#include "../support/catch.hpp"
#include "cases_data.hpp"
#include "differences.hpp"
#include "support.hpp"

using Catch::Matchers::WithinAbs;
using Catch::Matchers::WithinRel;
using expar::only;
using router_test::inf;
using router_test::mask;
using router_test::matrix;
using router_test::qnan;
using router_test::row_type;
using router_test::sentence_of;

namespace {

expar::host_context const ctx;

template <class T>
constexpr double accuracy = std::is_same_v<T, double> ? 1e-12 : 1e-5;

double by_definition(matrix<double>& z, mask const& valid, double factor) {
  double sum = 0;
  for (expar::index_t t = 0; t < z.rows; ++t)
    for (double p : router_test::reference_router{}.scores(z.row(t)))
      if (p > 0 && valid[static_cast<std::size_t>(t)]) sum -= p * std::log(p);
  return factor * sum;
}

}  // namespace

TEMPLATE_TEST_CASE("entropy of a router and its gradient", "[router][cases]", double, float) {
  using T = TestType;
  cases::matrix const expected{
      {-0.07911109386812723, 0.02694860950938212, 0.033343772378251875, 0.018818711980493216},
      {0.028327605960400095, -0.08373169712803653, 0.026111532501711603, 0.02929255866592478},
      {-0.09433681793084157, 0.035336029529868355, 0.04166980920300608, 0.017330979197967108},
      {0.0032794662871179787, 0.029317646631704518, -0.05776256899859889, 0.0251654560797764}};
  matrix<T> z(cases::logits), dz(4, 4);
  REQUIRE_THAT(expar::entropy_loss(ctx, z.view(), {}), WithinAbs(0.9700935777626517, accuracy<T>));
  expar::entropy_loss_backward(ctx, z.view(), {}, dz.view());
  for (std::size_t t = 0; t < 4; ++t)
    for (std::size_t e = 0; e < 4; ++e)
      REQUIRE_THAT(dz.get(static_cast<int>(t), static_cast<int>(e)),
                   WithinAbs(expected[t][e], accuracy<T>));
}

TEST_CASE("entropy and its gradient agree with the definition", "[router]") {
  router_test::random rng(350);
  for (int round = 0; round < 100; ++round) {
    int const tokens = static_cast<int>(rng.integer(0, 5)),
              experts = static_cast<int>(rng.integer(1, 9));
    matrix<double> z = router_test::random_logits(rng, tokens, experts);
    mask const valid = router_test::random_mask(rng, tokens);
    expar::entropy_loss_options const o{rng.uniform(-2, 2), rng.chance(.5) ? 0 : 30};
    double const factor = o.coefficient / (o.tokens != 0 ? 30 : router_test::valid_tokens(valid));
    auto const loss = [&] { return by_definition(z, valid, factor); };
    REQUIRE_THAT(expar::entropy_loss(ctx, only(valid, z.view()), o), WithinAbs(loss(), 1e-12));
    auto dz = router_test::gradient_of(tokens, experts, [&](auto&& d) {
      expar::entropy_loss_backward(ctx, only(valid, z.view()), o, d);
    });
    router_test::require_gradient(z, dz, 0, loss);
  }
}

TEST_CASE("a token that is sure, or has no logits, has no entropy", "[router]") {
  matrix<double> z(std::vector<row_type>{{inf, 2}, {qnan, -inf}, {800, -800}}), dz(3, 2);
  REQUIRE(expar::entropy_loss(ctx, z.view(), {}) == 0);
  expar::entropy_loss_backward(ctx, z.view(), {}, dz.view());
  REQUIRE(dz.data == std::vector<double>(6, 0));
  matrix<expar::bfloat16> flat(4, 8);
  REQUIRE_THAT(expar::entropy_loss(ctx, flat.view(), {}), WithinRel(std::log(8.), 1e-6));
}

TEST_CASE("the number of threads does not show in entropy", "[router]") {
  router_test::random rng(351);
  matrix<float> z(3333, 17), one(3333, 17), three(3333, 17);
  for (float& x : z.data) x = static_cast<float>(rng.normal());
  expar::host_context const threads(3);
  REQUIRE(expar::entropy_loss(ctx, z.view(), {}) == expar::entropy_loss(threads, z.view(), {}));
  expar::entropy_loss_backward(ctx, z.view(), {}, one.view());
  expar::entropy_loss_backward(threads, z.view(), {}, three.view());
  REQUIRE(one.data == three.data);
}

TEST_CASE("entropy refuses what does not fit", "[router]") {
  matrix<float> z(2, 3), dz(2, 2);
  REQUIRE(sentence_of([&] { (void)expar::entropy_loss(ctx, z.view(), {.tokens = -1}); }) ==
          "expar: entropy_loss: tokens is -1; it is at least 0");
  REQUIRE(sentence_of([&] { (void)expar::entropy_loss(ctx, only(mask{1}, z.view()), {}); }) ==
          "expar: entropy_loss: valid has extent 1 in dimension 0, but the number of tokens is 2");
  REQUIRE(sentence_of([&] { expar::entropy_loss_backward(ctx, z.view(), {}, dz.view()); }) ==
          "expar: entropy_loss_backward: d_logits has extent 2 in dimension 1, but the number of "
          "experts is 3");
}
