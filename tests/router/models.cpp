// SPDX-License-Identifier: Apache-2.0
#include <expar/router/models.hpp>

#include <expar/router/route.hpp>

#include "../support/catch.hpp"
#include "support.hpp"

using Catch::Matchers::WithinAbs;
using router_test::matrix;
using router_test::row_type;
using reference = router_test::reference_router;

namespace {

expar::host_context const ctx;

template <class Router>
void compare(Router const& r, reference const& by) {
  router_test::random rng(17);
  for (int round = 0; round < 50; ++round) {
    row_type const z = router_test::random_row(rng, r.experts);
    row_type bias;
    for (int e = 0; e < r.experts; ++e) bias.push_back(rng.normal() / 4);
    matrix<double> logits(std::vector<row_type>{z});
    expar::routes<double> routes(1, r.top_k);
    if constexpr (Router::takes_bias)
      expar::route(ctx, r, logits.view(), bias, routes);
    else
      expar::route(ctx, r, logits.view(), routes);
    std::vector<std::int32_t> const ids(routes.ids.data, routes.ids.data + r.top_k);
    REQUIRE(ids == by.ids(z, bias, r.top_k));
    row_type const w = by.weights(z, ids);
    for (int j = 0; j < r.top_k; ++j)
      REQUIRE_THAT(routes.weights(0, j), WithinAbs(w[static_cast<std::size_t>(j)], 1e-13));
  }
}

}  // namespace

TEST_CASE("published routers follow their formulas", "[router]") {
  namespace models = expar::models;
  compare(models::mixtral({.experts = 8, .top_k = 2}), {.norm = reference::add});
  compare(models::switch_top1(16), {});
  compare(models::gshard_top2(16), {.norm = reference::add, .epsilon = 1e-9});
  compare(models::qwen2_moe({.experts = 60, .top_k = 4}), {});
  compare(models::qwen3_moe({.experts = 128, .top_k = 8}), {.norm = reference::add});
  compare(models::tutel({.experts = 8, .top_k = 2}),
          {.norm = reference::at_least, .epsilon = 0x1p-23});
  compare(models::tutel({.experts = 8, .top_k = 1}), {});
  reference const biased{
      .sigmoid = true, .biased = true, .norm = reference::add, .epsilon = 1e-20, .factor = 2.5};
  compare(models::glm_4_5({.experts = 160, .top_k = 8, .scale = 2.5}), biased);
  compare(
      models::kimi_k2(),
      {.sigmoid = true, .biased = true, .norm = reference::add, .epsilon = 1e-20, .factor = 2.827});
}
