// SPDX-License-Identifier: Apache-2.0
#include <expar/router/z_loss.hpp>

#include <array>

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

double by_definition(matrix<double>& z, mask const& valid, double coefficient, double tokens) {
  double sum = 0;
  for (expar::index_t t = 0; t < z.rows; ++t) {
    double exps = 0;
    for (double x : z.row(t))
      if (!std::isnan(x)) exps += std::exp(x);
    if (valid[static_cast<std::size_t>(t)] && exps > 0) sum += std::log(exps) * std::log(exps);
  }
  return coefficient * sum / tokens;
}

}  // namespace

TEST_CASE("the z-loss and its gradient agree with the definition", "[router]") {
  router_test::random rng(15);
  for (int round = 0; round < 100; ++round) {
    int const tokens = static_cast<int>(rng.integer(0, round < 90 ? 5 : 200));
    int const experts = static_cast<int>(rng.integer(1, 9));
    matrix<double> z(tokens, experts, 1);
    mask valid;
    for (int t = 0; t < tokens; ++t) {
      row_type const row = router_test::random_row(rng, experts);
      for (int e = 0; e < experts; ++e) {
        double const x = row[static_cast<std::size_t>(e)];
        z.set(t, e, x == inf ? 2 : x);
      }
      valid.push_back(rng.chance(.8));
    }
    expar::z_loss_options const o{rng.uniform(.1, 2), rng.chance(.5) ? 0 : 300};
    double const n =
        o.tokens != 0
            ? 300
            : std::max(1., static_cast<double>(std::count(valid.begin(), valid.end(), 1)));
    REQUIRE_THAT(expar::z_loss(ctx, only(valid, z.view()), o),
                 WithinAbs(by_definition(z, valid, o.coefficient, n), 1e-11));
    auto dz = router_test::gradient_of(tokens, experts, [&](auto&& d) {
      expar::z_loss_backward(ctx, only(valid, z.view()), o, d);
    });
    for (expar::index_t t = 0; t < z.rows; ++t)
      for (expar::index_t e = 0; e < z.columns; ++e) {
        double const at = z.get(t, e);
        auto const loss = [&](double x) {
          z.set(t, e, x);
          return by_definition(z, valid, o.coefficient, n);
        };
        double const slope = (loss(at + 1e-5) - loss(at - 1e-5)) / 2e-5;
        loss(at);
        REQUIRE_THAT(dz.get(t, e), WithinAbs(slope, 1e-7));
      }
  }
}

TEST_CASE("a mask of bool will do", "[router]") {
  matrix<float> z(std::vector<row_type>{{1, 2}, {3, 4}});
  std::array<bool, 2> const valid{false, true};
  REQUIRE(expar::z_loss(ctx, only(valid, z.view())) ==
          expar::z_loss(ctx, expar::make_view(z.view().row(1), 1, 2)));
}

TEST_CASE("masked logits are not in the z-loss", "[router]") {
  matrix<double> z(std::vector<row_type>{{qnan, 2, -inf}, {qnan, -inf, -inf}}), dz(2, 3);
  REQUIRE(expar::z_loss(ctx, z.view()) == 2);
  expar::z_loss_backward(ctx, z.view(), {}, dz.view());
  REQUIRE(dz.data == std::vector<double>{0, 2, 0, 0, 0, 0});
}

TEST_CASE("the z-loss of +inf is infinite", "[router]") {
  matrix<double> z(std::vector<row_type>{{inf, 2}}), dz(1, 2);
  REQUIRE(expar::z_loss(ctx, z.view()) == inf);
  expar::z_loss_backward(ctx, z.view(), {}, dz.view());
  REQUIRE(dz.data == std::vector<double>{inf, 0});
}

TEST_CASE("parts of ranks add up to the z-loss", "[router]") {
  matrix<double> all(std::vector<row_type>{{1, 2, 0}, {0, 1, 3}, {2, 2, 1}});
  auto const part = [&](int first, int tokens) {
    return expar::z_loss(ctx, expar::make_view(all.view().row(first), tokens, 3), {.tokens = 3});
  };
  REQUIRE_THAT(part(0, 1) + part(1, 0) + part(1, 2),
               WithinRel(expar::z_loss(ctx, all.view()), 1e-14));
}

TEST_CASE("the number of threads does not show in the z-loss", "[router]") {
  router_test::random rng(16);
  matrix<float> z(3333, 17), one(3333, 17), four(3333, 17);
  for (float& x : z.data) x = static_cast<float>(rng.normal());
  expar::host_context const threads(4);
  REQUIRE(expar::z_loss(ctx, z.view()) == expar::z_loss(threads, z.view()));
  expar::z_loss_backward(ctx, z.view(), {}, one.view());
  expar::z_loss_backward(threads, z.view(), {}, four.view());
  REQUIRE(one.data == four.data);
}

TEST_CASE("the z-loss refuses what does not fit", "[router]") {
  matrix<float> z(std::vector<row_type>{{1, 2, 3}, {3, 2, 1}}), dz(2, 3);
  mask const valid{1};
  auto const loss = [&](auto const&... arguments) {
    return sentence_of([&] { (void)expar::z_loss(ctx, arguments...); });
  };
  auto const backward = [&](auto const&... arguments) {
    return sentence_of([&] { expar::z_loss_backward(ctx, arguments...); });
  };
  expar::z_loss_options const plain, negative{.tokens = -1};
  REQUIRE(loss(z.view(), negative) == "expar: z_loss: tokens is -1; it is at least 0");
  REQUIRE(loss(expar::make_view<float>(nullptr, 2, 3)) ==
          "expar: z_loss: logits has 6 elements but its data is null");
  REQUIRE(loss(expar::make_view(z.data.data(), 0, expar::index_t{1} << 31)) ==
          "expar: z_loss: logits has 2147483648 experts; at most 2147483647 are possible");
  REQUIRE(loss(only(valid, z.view()), plain) ==
          "expar: z_loss: valid has extent 1 in dimension 0, but the number of tokens is 2");
  REQUIRE(backward(z.view(), negative, dz.view()) ==
          "expar: z_loss_backward: tokens is -1; it is at least 0");
  REQUIRE(backward(expar::make_view<float>(nullptr, 2, 3), plain, dz.view()) ==
          "expar: z_loss_backward: logits has 6 elements but its data is null");
  REQUIRE(backward(only(valid, z.view()), plain, dz.view()) ==
          "expar: z_loss_backward: valid has extent 1 in dimension 0, but the number of tokens is "
          "2");
  REQUIRE(backward(z.view(), plain, expar::make_view(dz.data.data(), 1, 3)) ==
          "expar: z_loss_backward: d_logits has extent 1 in dimension 0, but the number of tokens "
          "is 2");
  REQUIRE(backward(z.view(), plain, expar::make_view(dz.data.data(), 2, 2)) ==
          "expar: z_loss_backward: d_logits has extent 2 in dimension 1, but the number of experts "
          "is 3");
  REQUIRE(backward(z.view(), plain, expar::make_view<float>(nullptr, 2, 3)) ==
          "expar: z_loss_backward: d_logits has 6 elements but its data is null");
}
