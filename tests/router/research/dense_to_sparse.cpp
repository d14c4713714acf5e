// SPDX-License-Identifier: Apache-2.0
#include <expar/router/research/dense_to_sparse.hpp>

#include <expar/router/route.hpp>

#include "../../support/catch.hpp"
#include "../support.hpp"

using router_test::inf;
using router_test::matrix;
using router_test::qnan;
using router_test::row_type;
using router_test::sentence_of;

namespace {

expar::host_context const ctx;

}  // namespace

TEST_CASE("scores above a threshold are counted", "[router]") {
  router_test::random rng(201);
  for (int round = 0; round < 100; ++round) {
    int const tokens = static_cast<int>(rng.integer(0, 9));
    int const experts = static_cast<int>(rng.integer(1, 40));
    double const threshold = rng.uniform(0, .3);
    matrix<double> z(tokens, experts, 1);
    expar::index_t expected = 0;
    for (int t = 0; t < tokens; ++t) {
      double sum = 0;
      for (int e = 0; e < experts; ++e) {
        z.set(t, e, rng.chance(.1) ? qnan : 3 * rng.normal());
        if (!std::isnan(z.get(t, e))) sum += std::exp(z.get(t, e));
      }
      for (int e = 0; e < experts; ++e) expected += std::exp(z.get(t, e)) > threshold * sum;
    }
    REQUIRE(expar::count_above(ctx, z.view(), threshold) == expected);
  }
}

TEST_CASE("scores of tokens that are not valid are not counted", "[router]") {
  matrix<float> z(std::vector<row_type>{{0, 0}, {qnan, 9}, {5, -5}, {0, 0}});
  std::vector<std::uint8_t> const valid{1, 0, 1, 0};
  REQUIRE(expar::count_above(ctx, z.view(), .25) == 6);
  REQUIRE(expar::count_above(ctx, expar::only(valid, z.view()), .25) == 3);
  REQUIRE(sentence_of([&] {
            expar::count_above(ctx, expar::only(std::vector<std::uint8_t>{1}, z.view()), .25);
          }) ==
          "expar: count_above: valid has extent 1 in dimension 0, but the number of tokens is 4");
}

TEST_CASE("a router becomes sparse with its temperature", "[router]") {
  matrix<float> z(std::vector<row_type>{{0, 1, 2, 3}, {3, 0, -inf, 0}, {9, 0, 0, 0}});
  auto const top_k = [&](double temperature, int least) {
    matrix<float> scaled = z;
    for (float& x : scaled.data) x /= static_cast<float>(temperature);
    auto const above = expar::count_above(ctx, scaled.view(), .001);
    return expar::dense_to_sparse_k(least, above, z.rows);
  };
  REQUIRE(top_k(2, 1) == 3);   // 4 + 3 + 4
  REQUIRE(top_k(1, 1) == 2);   // 4 + 3 + 1
  REQUIRE(top_k(.4, 1) == 1);  // 3 + 1 + 1
  REQUIRE(top_k(.4, 2) == 2);
  expar::router const r({4, top_k(1, 1)}, expar::temperature{1}, expar::softmax_score{});
  expar::routes<float> routes(3, r.top_k);
  expar::route(ctx, r, z.view(), routes);
  REQUIRE(routes.ids(0, 1) == 2);
}

TEST_CASE("no token, no mean", "[router]") {
  REQUIRE(expar::dense_to_sparse_k(2, 0, 0) == 2);
  REQUIRE(expar::dense_to_sparse_k(1, 11, 3) == 3);
  REQUIRE(sentence_of([] { (void)expar::dense_to_sparse_k(1, expar::index_t{1} << 40, 1); }) ==
          "expar: dense_to_sparse_k: above is 1099511627776 for 1 tokens; their mean is at most "
          "2147483647");
}

TEST_CASE("the number of threads does not show in a count", "[router]") {
  router_test::random rng(202);
  matrix<expar::bfloat16> z(3000, 17);
  for (int t = 0; t < 3000; ++t)
    for (int e = 0; e < 17; ++e) z.set(t, e, rng.normal());
  expar::host_context const threads(3);
  REQUIRE(expar::count_above(ctx, z.view(), .05) == expar::count_above(threads, z.view(), .05));
  REQUIRE(sentence_of([&] {
            (void)expar::count_above(ctx, expar::make_view<float>(nullptr, 2, 3), .1);
          }) == "expar: count_above: logits has 6 elements but its data is null");
}
