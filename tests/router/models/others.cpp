// SPDX-License-Identifier: Apache-2.0
#include <expar/router/models/others.hpp>

#include <expar/router/models/softmax.hpp>
#include <expar/router/route.hpp>

#include "support.hpp"

using namespace formula;
namespace models = expar::models;

TEST_CASE("Phi-3.5-MoE makes two choices, each with a softmax of its own", "[router][models]") {
  auto const gate = [](row_type const& z, row_type const& live) {
    double const most = *std::max_element(live.begin(), live.end());
    row_type near = live;
    for (std::size_t e = 0; e < z.size(); ++e)
      if ((most - z[e]) / std::max(std::abs(z[e]), most) > .02) near[e] = -inf;
    std::int32_t const id = top(live, 1)[0];
    return std::pair(id, softmax(near)[at(id)]);
  };
  compare(
      models::phi_3_5_moe(),
      [&](row_type const& z, row_type const&) {
        auto const first = gate(z, z);
        row_type live = z;
        live[at(first.first)] = -inf;
        auto const second = gate(z, live);
        return choice{{first.first, second.first}, {first.second, second.second}};
      },
      false);
}

TEST_CASE("values for choose_tokens and append_shared", "[router][models]") {
  STATIC_REQUIRE(models::expert_choice_flaxformer(8, 4).axis ==
                 expar::expert_choice::softmax::over_experts);
  STATIC_REQUIRE_FALSE(models::expert_choice_flaxformer(8, 4).divide_by_experts);
  STATIC_REQUIRE(models::expert_choice_mesh_tensorflow(8, 4).axis ==
                 expar::expert_choice::softmax::over_tokens);
  STATIC_REQUIRE(models::expert_choice_mesh_tensorflow(8, 4).divide_by_experts);
  STATIC_REQUIRE(models::expert_choice_mesh_tensorflow(8, 4).capacity == 4);
  STATIC_REQUIRE(models::shared_experts_flashinfer(8, 1).kind ==
                 expar::shared_experts::weight::one);
  STATIC_REQUIRE(models::shared_experts_sglang(8, 1, 2.5).kind ==
                 expar::shared_experts::weight::one);
  STATIC_REQUIRE(models::shared_experts_sglang(8, 1, 2.5).scale == 2.5);
}

TEST_CASE("SGLang's shared expert counts once when the output is scaled", "[router][models]") {
  router_test::matrix<double> z(std::vector<row_type>{{0, 0}});
  expar::host_context const ctx;
  auto const weight_behind = [&](auto const& router) {
    expar::routes<double> routes(1, 1), all(1, 2);
    expar::route(ctx, router, z.view(), routes);
    expar::append_shared(ctx, models::shared_experts_sglang(2, 1, 2.5), routes, all);
    return all.weights(0, 1);
  };
  REQUIRE(weight_behind(models::qwen2_moe({2, 1})) == .4);  // not normalized: routed weight 1 / 2
  REQUIRE(weight_behind(models::mixtral({2, 1})) == .4);
}
