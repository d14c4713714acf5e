// SPDX-License-Identifier: Apache-2.0
#include <expar/router/models/sigmoid.hpp>

#include "support.hpp"

using namespace formula;
namespace models = expar::models;

namespace {

/// Selected by s + bias, weighted by scale * s / (sum + epsilon).
template <class Score>
rule biased(int k, double epsilon, double scale, Score score) {
  return [=](row_type const& z, row_type const& bias) {
    row_type const s = score(z);
    ids_type const ids = top(keys(z, s, bias), k);
    return choice{ids, times(over_sum(gather(s, ids), epsilon), scale)};
  };
}

}  // namespace

TEST_CASE("sigmoid, bias, sum: GLM-4.5 and its kin", "[router][models]") {
  compare(models::glm_4_5(), biased(8, 1e-20, 2.5, sigmoid));
  compare(models::kimi_k2(), biased(8, 1e-20, 2.827, sigmoid));
  compare(models::moonlight(), biased(6, 1e-20, 2.446, sigmoid));
  compare(models::dots_llm1(), biased(6, 1e-20, 2.5, sigmoid));
  compare(models::nemotron_3({512, 22, 5}), biased(22, 1e-20, 5, sigmoid));
  compare(models::biased_sigmoid({96, 4, 1.25}), biased(4, 1e-20, 1.25, sigmoid));
}

TEST_CASE("sigmoid, bias, sum of other epsilons", "[router][models]") {
  compare(models::minimax_m2(), biased(8, 0, 1, sigmoid));
  compare(models::afmoe({128, 8, 2.826}), biased(8, 1e-20, 2.826, sigmoid));
  compare(models::lfm2_moe({32, 4, 1}), biased(4, 1e-6, 1, sigmoid));
  compare(models::klear(), biased(8, 0, 1, sigmoid));
}

TEST_CASE("AfMoE's epsilon shows where all scores are small", "[router][models]") {
  router_test::matrix<float> z(std::vector<row_type>{{-50, -50}});
  std::vector<float> const bias(2);
  expar::routes<float> routes(1, 2);
  expar::route(expar::host_context{}, models::afmoe({2, 2}), z.view(), bias, routes);
  for (int j = 0; j < 2; ++j)
    REQUIRE_THAT(routes.weights(0, j), Catch::Matchers::WithinAbs(.0185719, 1e-6));
}

TEST_CASE("Kolibri 1 selects by logits and a bias", "[router][models]") {
  compare(models::kolibri_1(), [](row_type const& z, row_type const& bias) {
    ids_type const ids = top(keys(z, z, bias), 6);
    return choice{ids, over_sum(gather(sigmoid(z), ids))};
  });
}

TEST_CASE("DeepSeek-V3 takes groups by the sum of two", "[router][models]") {
  auto const by = [](int groups, int top_groups, int k, double scale) {
    return [=](row_type const& z, row_type const& bias) {
      row_type const s = sigmoid(z);
      ids_type const ids = top(in_groups(keys(z, s, bias), groups, top_groups, 2), k);
      return choice{ids, times(over_sum(gather(s, ids), 1e-20), scale)};
    };
  };
  compare(models::deepseek_v3(), by(8, 4, 8, 2.5));
  compare(models::deepseek_v3({24, 5, 4, 3, 1}), by(4, 3, 5, 1));
  compare(models::deepseek_v3({24, 5, 1, 1, 1}), by(1, 1, 5, 1));
}

TEST_CASE("A.X K2 leaves experts outside of the best groups a key of 0", "[router][models]") {
  auto const by = [](int groups, int top_groups, int k) {
    return [=](row_type const& z, row_type const& bias) {
      row_type const s = sigmoid(z);
      ids_type const ids = top(in_groups(keys(z, s, bias), groups, top_groups, 2, 0), k);
      return choice{ids, times(over_sum(gather(s, ids), 1e-20), 2.5)};
    };
  };
  compare(models::a_x_k2({24, 6, 4, 2, 2.5}), by(4, 2, 6));
  compare(models::a_x_k2({24, 16, 4, 2, 2.5}), by(4, 2, 16));  // more than two groups have
  router_test::matrix<float> z(std::vector<row_type>{{2, 1, 0, 0}});
  std::vector<float> const bias(4, -2);
  expar::routes<float> routes(1, 2);
  expar::route(expar::host_context{}, models::a_x_k2({4, 2, 2, 1}), z.view(), bias, routes);
  REQUIRE(routes.ids(0, 0) == 2);
  REQUIRE(routes.ids(0, 1) == 3);
  REQUIRE(routes.weights(0, 0) == .5);
}

TEST_CASE("DeepSeek-V4 has square roots of softplus", "[router][models]") {
  compare(models::deepseek_v4(), biased(6, 1e-20, 1.5, sqrt_softplus));
  std::vector<std::int32_t> const table{0, 3, 2, 5, 7, 1}, name{2};
  expar::table_ids const experts_of{expar::make_view(table.data(), 3, 2),
                                    expar::make_view(name.data(), 1)};
  compare(
      models::deepseek_v4_hash({8, 2, 1.5}, experts_of),
      [](row_type const& z, row_type const&) {
        ids_type const ids = named(z, {7, 1});
        return choice{ids, times(over_sum(gather(sqrt_softplus(z), ids), 1e-20), 1.5)};
      },
      false);
}

TEST_CASE("Laguna caps, and scores by one of two functions", "[router][models]") {
  auto const capped = [](auto score) {
    return [=](row_type z) {
      for (double& x : z)
        if (!masked(x)) x = 4 * std::tanh(x / 4);
      return score(z);
    };
  };
  compare(models::laguna({16, 4, 2}, 4), biased(4, 0, 2, capped(sigmoid)));
  compare(models::laguna({16, 4, 2}, 4, expar::sqrt_softplus_score{}),
          biased(4, 0, 2, capped(sqrt_softplus)));
  compare(models::laguna({16, 4, 2}, 0), biased(4, 0, 2, sigmoid));
  compare(models::laguna(), biased(8, 0, 1, sigmoid));
}
