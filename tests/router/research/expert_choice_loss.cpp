// SPDX-License-Identifier: Apache-2.0
#include <expar/router/research/expert_choice_loss.hpp>

#include "../../support/catch.hpp"
#include "../cases_data.hpp"
#include "../differences.hpp"
#include "../support.hpp"

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

double by_definition(matrix<double>& z, mask const& valid, double coefficient) {
  row_type mean(static_cast<std::size_t>(z.rows), 0);
  for (expar::index_t e = 0; e < z.columns; ++e) {
    double sum = 0;
    auto const weight = [&](expar::index_t t) {
      double const x = z.get(t, e);
      return valid[static_cast<std::size_t>(t)] && x > -inf ? std::exp(x) : 0;
    };
    for (expar::index_t t = 0; t < z.rows; ++t) sum += weight(t);
    for (expar::index_t t = 0; t < z.rows; ++t)
      if (sum > 0)
        mean[static_cast<std::size_t>(t)] += weight(t) / sum / static_cast<double>(z.columns);
  }
  double squares = 0;
  for (double m : mean) squares += m * m;
  return coefficient * router_test::valid_tokens(valid) * squares;
}

}  // namespace

TEMPLATE_TEST_CASE("Mesh TensorFlow: the loss of expert choice", "[router][cases]", double, float) {
  matrix<TestType> z(cases::logits);
  REQUIRE_THAT(expar::expert_choice_loss(ctx, z.view(), {}),
               WithinAbs(1.0718570465715405, accuracy<TestType>));
}

TEST_CASE("the loss of expert choice and its gradient agree with the definition", "[router]") {
  router_test::random rng(370);
  for (int round = 0; round < 100; ++round) {
    int const tokens = static_cast<int>(rng.integer(0, 6)),
              experts = static_cast<int>(rng.integer(1, 6));
    matrix<double> z = router_test::random_logits(rng, tokens, experts);
    mask const valid = router_test::random_mask(rng, tokens);
    auto const loss = [&] { return by_definition(z, valid, .5); };
    REQUIRE_THAT(expar::expert_choice_loss(ctx, only(valid, z.view()), {.coefficient = .5}),
                 WithinAbs(loss(), 1e-12));
    auto dz = router_test::gradient_of(tokens, experts, [&](auto&& d) {
      expar::expert_choice_loss_backward(ctx, only(valid, z.view()), {.coefficient = .5}, d);
    });
    router_test::require_gradient(z, dz, 0, loss);
  }
}

TEST_CASE("the loss of expert choice at its ends", "[router]") {
  matrix<expar::bfloat16> flat(4, 8);
  REQUIRE_THAT(expar::expert_choice_loss(ctx, flat.view(), {.coefficient = 3}),
               WithinRel(3., 1e-14));
  matrix<double> hot(std::vector<row_type>{{900, inf}, {0, 1}, {0, 2}}), dz(3, 2);
  REQUIRE(expar::expert_choice_loss(ctx, hot.view(), {}) == 3);  // one token has all
  matrix<double> none(std::vector<row_type>{{qnan, -inf}, {-inf, qnan}});
  REQUIRE(expar::expert_choice_loss(ctx, none.view(), {}) == 0);
  expar::expert_choice_loss_backward(ctx, expar::make_view(hot.data.data(), 0, 2), {},
                                     expar::make_view(dz.data.data(), 0, 2));
  REQUIRE(dz.data == std::vector<double>(6, 0));
}

TEST_CASE("the number of threads does not show in the loss of expert choice", "[router]") {
  router_test::random rng(371);
  matrix<float> z(3333, 17), one(3333, 17), three(3333, 17);
  for (float& x : z.data) x = static_cast<float>(rng.normal());
  expar::host_context const threads(3);
  REQUIRE(expar::expert_choice_loss(ctx, z.view(), {}) ==
          expar::expert_choice_loss(threads, z.view(), {}));
  expar::expert_choice_loss_backward(ctx, z.view(), {}, one.view());
  expar::expert_choice_loss_backward(threads, z.view(), {}, three.view());
  REQUIRE(one.data == three.data);
}

TEST_CASE("the loss of expert choice refuses what does not fit", "[router]") {
  matrix<float> z(2, 3), dz(2, 2);
  REQUIRE(sentence_of([&] { (void)expar::expert_choice_loss(ctx, only(mask{1}, z.view()), {}); }) ==
          "expar: expert_choice_loss: valid has extent 1 in dimension 0, but the number of tokens "
          "is 2");
  REQUIRE(
      sentence_of([&] { expar::expert_choice_loss_backward(ctx, z.view(), {}, dz.view()); }) ==
      "expar: expert_choice_loss_backward: d_logits has extent 2 in dimension 1, but the number "
      "of experts is 3");
  REQUIRE(sentence_of([&] {
            (void)expar::expert_choice_loss(ctx, expar::make_view<float>(nullptr, 2, 3), {});
          }) == "expar: expert_choice_loss: logits has 6 elements but its data is null");
}
