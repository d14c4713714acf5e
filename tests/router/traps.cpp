// SPDX-License-Identifier: Apache-2.0
// What goes wrong in routers elsewhere, and what happens here.
#include <expar/router/models.hpp>
#include <expar/router/route.hpp>

#include "../support/catch.hpp"
#include "support.hpp"

using router_test::inf;
using router_test::matrix;
using router_test::qnan;
using router_test::row_type;
using ids_type = std::vector<std::int32_t>;
namespace models = expar::models;

namespace {

struct token_routes {
  ids_type ids;
  row_type weights;
};

template <class T, class Router>
token_routes route(Router const& r, row_type const& z, row_type const& bias = {}) {
  expar::host_context const ctx;
  matrix<T> logits(std::vector<row_type>{z});
  expar::routes<double> out(1, r.top_k);
  if constexpr (Router::takes_bias)
    expar::route(ctx, r, logits.view(), bias, out);
  else
    expar::route(ctx, r, logits.view(), out);
  return {{out.ids.data, out.ids.data + r.top_k}, {out.weights.data, out.weights.data + r.top_k}};
}

}  // namespace

TEST_CASE("NaN is never the largest", "[router][traps]") {
  REQUIRE(route<double>(models::mixtral({4, 3}), {1, qnan, 3, -inf}).ids == ids_type{2, 0, -1});
  REQUIRE(route<float>(models::gpt_oss({4, 3}), {1, qnan, 3, -inf}).ids == ids_type{2, 0, -1});
  REQUIRE(route<double>(models::glm_4_5({4, 2}), {1, 0, 3, 2}, {0, 0, qnan, -inf}).ids ==
          ids_type{0, 1});
}

TEST_CASE("with fewer finite keys than k no expert comes twice", "[router][traps]") {
  auto const got = route<float>(models::mixtral({4, 3}), {1, -inf, -inf, -inf});
  REQUIRE(got.ids == ids_type{0, -1, -1});
  REQUIRE(got.weights == row_type{1, 0, 0});
}

TEST_CASE("zeros of both signs tie", "[router][traps]") {
  REQUIRE(route<float>(models::mixtral({4, 3}), {-0., 0., -0., 0.}).ids == ids_type{0, 1, 2});
  REQUIRE(route<float>(models::glm_4_5({4, 3}), {-0., 0., -0., 0.}, {0, -0., -0., 0}).ids ==
          ids_type{0, 1, 2});
}

TEST_CASE("logits that bfloat16 cannot tell apart tie", "[router][traps]") {
  row_type const z{1, 1.001, 1.002, 3.001, 3};
  REQUIRE(route<float>(models::gpt_oss({5, 3}), z).ids == ids_type{3, 4, 2});
  auto const got = route<expar::bfloat16>(models::gpt_oss({5, 3}), z);
  REQUIRE(got.ids == ids_type{3, 4, 0});
  REQUIRE(got.weights[0] == got.weights[1]);
}

TEST_CASE("masked groups stay behind negative keys", "[router][traps]") {
  auto const r = models::deepseek_v3({.experts = 4, .top_k = 2, .groups = 2, .top_groups = 1});
  REQUIRE(route<double>(r, {0, 0, 1, 1}, {-9, -9, -8, -8}).ids == ids_type{2, 3});
  REQUIRE(route<double>(models::deepseek_v2({4, 2, 2, 1, 1}), {-800, -900, 0, -950}).ids ==
          ids_type{2, 3});
}

TEST_CASE("a sum of scores that are all 0 gives weights of 0", "[router][traps]") {
  row_type const z(4, -200);  // sigmoid is below the smallest float
  REQUIRE(route<float>(models::glm_4_5({4, 2}), z, row_type(4, 0)).weights == row_type{0, 0});
  REQUIRE(route<float>(models::minimax_m2({4, 2}), z, row_type(4, 0)).weights == row_type{0, 0});
  REQUIRE(route<float>(models::deepseek_v4({4, 2, 1}), z, row_type(4, 0)).weights ==
          row_type{0, 0});
}

TEST_CASE("capped logits tie at the cap", "[router][traps]") {
  auto const got = route<float>(models::grok_2({4, 3}), {1e6, 2e6, -1e6, 3e6});
  REQUIRE(got.ids == ids_type{0, 1, 3});
  REQUIRE(got.weights[0] == got.weights[2]);
}

TEST_CASE("very large and very small logits", "[router][traps]") {
  auto const soft = route<float>(models::mixtral({4, 2}), {-3e38, 3e38, 1e38, 0});
  REQUIRE(soft.ids == ids_type{1, 2});
  REQUIRE(soft.weights == row_type{1, 0});
  auto const root =
      route<float>(models::deepseek_v4({4, 3, 1}), {-3e38, 3e38, -80, 1e38}, row_type(4, 0));
  REQUIRE(root.ids == ids_type{1, 3, 2});
  for (double const w : root.weights) REQUIRE(std::isfinite(w));
  auto const infinite =
      route<float>(models::deepseek_v4({4, 3, 1}), {inf, 0, inf, -inf}, row_type(4, 0));
  REQUIRE(infinite.ids == ids_type{0, 2, 1});
  REQUIRE(infinite.weights[0] == .5);
  REQUIRE(infinite.weights[1] == .5);
  REQUIRE(infinite.weights[2] < 1e-18);
}

TEST_CASE("every expert, in order", "[router][traps]") {
  auto const got = route<double>(models::mixtral({4, 4}), {1, 2, 2, 0});
  REQUIRE(got.ids == ids_type{1, 2, 0, 3});
  double sum = 0;
  for (double const w : got.weights) sum += w;
  REQUIRE_THAT(sum, Catch::Matchers::WithinAbs(1, 1e-15));
}
