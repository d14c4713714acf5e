// SPDX-License-Identifier: Apache-2.0
// Worked examples of published routers and losses, in double to 1e-12 and in float to 1e-5.
#include "cases_data.hpp"

#include <expar/plan/plan.hpp>
#include <expar/router/limit.hpp>
#include <expar/router/losses.hpp>
#include <expar/router/models.hpp>
#include <expar/router/route.hpp>

#include "../support/catch.hpp"
#include "support.hpp"

using Catch::Matchers::WithinAbs;
using router_test::matrix;

namespace {

expar::host_context const ctx;

template <class T>
constexpr double accuracy = std::is_same_v<T, double> ? 1e-12 : 1e-5;

template <class T, class Router, class Bias>
expar::routes<T> route(Router const& r, cases::matrix const& logits, Bias const& bias) {
  matrix<T> z(logits);
  expar::routes<T> routes(z.rows, r.top_k);
  expar::route(ctx, r, z.view(), bias, routes);
  return routes;
}

template <class T>
void require_ids(expar::routes<T> const& routes, cases::id_matrix const& ids) {
  REQUIRE(routes.ids.extents[0] == static_cast<expar::index_t>(ids.size()));
  for (std::size_t t = 0; t < ids.size(); ++t)
    for (std::size_t j = 0; j < ids[t].size(); ++j) REQUIRE(routes.ids(t, j) == ids[t][j]);
}
template <class T>
void require_matrix(expar::tensor_view<T, 2> got, cases::matrix const& expected,
                    double tolerance = accuracy<T>) {
  for (std::size_t t = 0; t < expected.size(); ++t)
    for (std::size_t j = 0; j < expected[t].size(); ++j)
      REQUIRE_THAT(static_cast<double>(got(t, j)), WithinAbs(expected[t][j], tolerance));
}

/// Where a plan without a limit puts each route among those to its expert.
void require_locations(cases::id_matrix const& ids, cases::id_matrix const& locations) {
  auto const tokens = static_cast<expar::index_t>(ids.size());
  auto const k = static_cast<expar::index_t>(ids[0].size());
  std::vector<std::int32_t> flat;
  for (auto const& row : ids) flat.insert(flat.end(), row.begin(), row.end());
  auto const plan =
      expar::make_plan(ctx, expar::make_view(flat.data(), tokens, k), 4, expar::fixed_capacity{0});
  for (std::size_t t = 0; t < ids.size(); ++t)
    for (std::size_t j = 0; j < ids[t].size(); ++j)
      REQUIRE(plan.locations()(static_cast<expar::index_t>(t), static_cast<expar::index_t>(j)) ==
              locations[t][j]);
}

}  // namespace

TEMPLATE_TEST_CASE("Switch: top 1, losses, and their gradients", "[router][cases]", double, float) {
  using namespace cases::switch_top1;
  using T = TestType;
  auto const routes = route<T>(expar::models::switch_top1(4), cases::logits, expar::no_bias);
  require_ids(routes, ids);
  require_matrix(routes.weights, weights);
  std::vector<std::int32_t> n(4);
  expar::count_choices(ctx, routes.ids, 1, n);
  REQUIRE(n == counts);
  require_locations(ids, locations);
  matrix<T> z(cases::logits), d_balance(4, 4), d_z(4, 4);
  REQUIRE_THAT(expar::load_balance_loss(ctx, z.view(), n, {.choices = 1}),
               WithinAbs(load_balance, accuracy<T>));
  expar::load_balance_loss_backward(ctx, z.view(), n, {.choices = 1}, d_balance.view());
  require_matrix(d_balance.view(), d_load_balance);
  REQUIRE_THAT(expar::z_loss(ctx, z.view()), WithinAbs(z_loss, accuracy<T>));
  expar::z_loss_backward(ctx, z.view(), {}, d_z.view());
  require_matrix(d_z.view(), d_z_loss);
}

TEMPLATE_TEST_CASE("Tutel: top 2 and GShard's loss", "[router][cases]", double, float) {
  using namespace cases::tutel_top2;
  using T = TestType;
  auto const routes = route<T>(expar::models::tutel({4, 2}), logits, expar::no_bias);
  require_ids(routes, ids);
  require_locations(ids, locations);
  require_matrix(routes.weights, weights);
  std::vector<expar::index_t> n(4);
  expar::count_choices(ctx, routes.ids, 1, n);
  matrix<T> z(logits);
  REQUIRE_THAT(expar::load_balance_loss(ctx, z.view(), n, {.choices = 1}),
               WithinAbs(load_balance, accuracy<T>));
}

TEMPLATE_TEST_CASE("Mesh TensorFlow: top 2, places, and loss", "[router][cases]", double, float) {
  using namespace cases::mesh_top_two;
  using T = TestType;
  auto const routes = route<T>(expar::models::gshard_top2(4), logits, expar::no_bias);
  require_ids(routes, ids);
  require_matrix(routes.weights, weights);
  require_locations(taken, locations);
  std::vector<int> n(4);
  expar::count_choices(ctx, routes.ids, 1, n);
  matrix<T> z(logits);
  REQUIRE_THAT(expar::load_balance_loss(ctx, z.view(), n, {.choices = 1}),
               WithinAbs(load_balance, accuracy<T>));
}

TEMPLATE_TEST_CASE("Mixtral: renormalized top 2, and both scalings of its loss", "[router][cases]",
                   double, float) {
  using namespace cases::mixtral;
  using T = TestType;
  auto const routes = route<T>(expar::models::mixtral({4, 2}), cases::logits, expar::no_bias);
  require_ids(routes, ids);
  require_matrix(routes.weights, weights);
  std::vector<expar::index_t> n(4);
  expar::count_choices(ctx, routes.ids, 2, n);
  matrix<T> z(cases::logits);
  REQUIRE_THAT(expar::load_balance_loss(ctx, z.view(), n, {.choices = 2}),
               WithinAbs(megatron_loss, accuracy<T>));
  REQUIRE_THAT(expar::load_balance_loss(ctx, z.view(), n, {.coefficient = 2, .choices = 2}),
               WithinAbs(hugging_face_loss, accuracy<T>));
}

TEMPLATE_TEST_CASE("Qwen: with and without renormalization", "[router][cases]", double, float) {
  using namespace cases::qwen;
  using T = TestType;
  auto const plain = route<T>(expar::models::qwen2_moe({8, 4}), logits, expar::no_bias);
  require_ids(plain, ids);
  require_matrix(plain.weights, weights);
  auto const divided = route<T>(expar::models::qwen3_moe({8, 4}), logits, expar::no_bias);
  require_ids(divided, ids);
  require_matrix(divided.weights, renormalized);
}

TEMPLATE_TEST_CASE("Kimi K2: sigmoid, bias, and scale", "[router][cases]", double, float) {
  using namespace cases::kimi_k2;
  using T = TestType;
  auto const routes = route<T>(expar::models::kimi_k2({.experts = 8, .top_k = 4, .scale = scale}),
                               cases::qwen::logits, bias);
  require_ids(routes, ids);
  require_matrix(routes.weights, weights);
}

TEMPLATE_TEST_CASE("DeepSeek-V3: sigmoid, bias, groups, and scale", "[router][cases]", double,
                   float) {
  using namespace cases::deepseek_v3;
  using T = TestType;
  auto const two =
      route<T>(expar::models::deepseek_v3(
                   {.experts = 8, .top_k = 3, .groups = 4, .top_groups = 2, .scale = scale}),
               cases::qwen::logits, bias);
  require_ids(two, ids);
  require_matrix(two.weights, weights);
  expar::group_limited const limit{.groups = 4, .top_groups = 2};
  for (std::size_t t = 0; t < 2; ++t) {
    std::vector<T> keys(cases::qwen::logits[t].begin(), cases::qwen::logits[t].end()), sums(4);
    expar::sigmoid_score{}(static_cast<T const*>(keys.data()), keys.data(), 8);
    for (std::size_t e = 0; e < 8; ++e) {
      REQUIRE_THAT(static_cast<double>(keys[e]), WithinAbs(scores[t][e], accuracy<T>));
      keys[e] += static_cast<T>(bias[e]);
    }
    limit.limit(keys.data(), 8, sums.data());
    for (std::size_t g = 0; g < 4; ++g) {
      REQUIRE_THAT(static_cast<double>(sums[g]), WithinAbs(group_scores[t][g], accuracy<T>));
      bool const is_kept =
          static_cast<int>(g) == groups[t][0] || static_cast<int>(g) == groups[t][1];
      for (std::size_t i = 0; i < 2; ++i) REQUIRE((keys[2 * g + i] > T(-1e30)) == is_kept);
    }
  }
  auto const three =
      route<T>(expar::models::deepseek_v3({.experts = 8, .top_k = 3, .groups = 4, .top_groups = 3}),
               cases::qwen::logits, negative);
  require_ids(three, negative_ids);
  require_matrix(three.weights, negative_weights);
}

TEMPLATE_TEST_CASE("z-loss with padding", "[router][cases]", double, float) {
  using namespace cases::padded_z_loss;
  using T = TestType;
  matrix<T> z(cases::logits), dz(4, 4);
  for (int t = 0; t < 4; ++t)  // of one token, the root of the loss
    REQUIRE_THAT(std::sqrt(expar::z_loss(ctx, expar::make_view(z.view().row(t), 1, 4))),
                 WithinAbs(log_sums[static_cast<std::size_t>(t)], accuracy<T>));
  expar::z_loss_options const options{.coefficient = coefficient};
  REQUIRE_THAT(expar::z_loss(ctx, expar::only(valid, z.view()), options),
               WithinAbs(z_loss, accuracy<T>));
  expar::z_loss_backward(ctx, expar::only(valid, z.view()), options, dz.view());
  require_matrix(dz.view(), d_logits);
}

TEMPLATE_TEST_CASE("MiniMax-M2: sigmoid and bias, divided by the sum alone", "[router][cases]",
                   double, float) {
  using namespace cases::minimax_m2;
  auto const routes =
      route<TestType>(expar::models::minimax_m2({8, 2}), cases::qwen::logits, cases::kimi_k2::bias);
  require_ids(routes, ids);
  require_matrix(routes.weights, weights);
}

TEMPLATE_TEST_CASE("gpt-oss: the bias of the linear map is in the logits", "[router][cases]",
                   double, float) {
  using namespace cases::gpt_oss;
  cases::matrix logits = cases::qwen::logits;
  for (auto& row : logits)
    for (std::size_t e = 0; e < 8; ++e) row[e] += bias[e];
  auto const routes = route<TestType>(expar::models::gpt_oss({8, 4}), logits, expar::no_bias);
  require_ids(routes, ids);
  require_matrix(routes.weights, weights);
}

TEMPLATE_TEST_CASE("Llama 4: weights on what experts get", "[router][cases]", double, float) {
  using namespace cases::llama_4;
  auto const r = expar::models::llama_4({4, 1});
  auto const routes = route<TestType>(r, cases::logits, expar::no_bias);
  require_ids(routes, ids);
  require_matrix(routes.weights, weights);
  REQUIRE(r.site == expar::weight_site::input);
  for (std::size_t t = 0; t < 4; ++t) {
    double const x = 2 * static_cast<double>(routes.weights(t, 0));
    REQUIRE_THAT(x / (1 + std::exp(-x)), WithinAbs(outputs[t], accuracy<TestType>));
    REQUIRE_THAT(2 / (1 + std::exp(-2.)) * x / 2,
                 WithinAbs(weighed_outputs[t], accuracy<TestType>));
  }
}

TEMPLATE_TEST_CASE("DeepSeek-V4: experts of a table", "[router][cases]", double, float) {
  using namespace cases::hash_routing;
  std::vector<std::int32_t> flat, names{1, 2};
  for (auto const& row : table) flat.insert(flat.end(), row.begin(), row.end());
  expar::table_ids const experts_of{expar::make_view(flat.data(), 3, 2),
                                    expar::make_view(names.data(), 2)};
  auto const routes = route<TestType>(expar::models::deepseek_v4_hash({8, 2, 1.5}, experts_of),
                                      cases::qwen::logits, expar::no_bias);
  require_ids(routes, ids);
  require_matrix(routes.weights, weights);
}

TEMPLATE_TEST_CASE("MoE++: no weight for the zero expert", "[router][cases]", double, float) {
  using namespace cases::moe_plus_plus;
  auto const routes =
      route<TestType>(expar::models::moe_plus_plus({6, 2}, {5, 6}), logits, expar::no_bias);
  require_ids(routes, ids);
  require_matrix(routes.weights, weights);
}

TEMPLATE_TEST_CASE("Grok: capped logits", "[router][cases]", double, float) {
  using namespace cases::grok;
  auto const routes = route<TestType>(expar::models::grok_2({4, 2}), logits, expar::no_bias);
  require_ids(routes, ids);
  require_matrix(routes.weights, weights);
  for (std::size_t t = 0; t < 2; ++t)
    for (std::size_t e = 0; e < 4; ++e)
      REQUIRE_THAT(expar::soft_cap{30}.of(logits[t][e], 0), WithinAbs(capped[t][e], 1e-12));
}

TEMPLATE_TEST_CASE("Pangu Pro: an expert of every group", "[router][cases]", double, float) {
  using namespace cases::pangu_pro;
  auto const routes =
      route<TestType>(expar::models::pangu_pro({8, 4}, 4), cases::qwen::logits, expar::no_bias);
  require_ids(routes, ids);
  require_matrix(routes.weights, weights);
}

TEMPLATE_TEST_CASE("Dynamic_MoE: as many as exceed p", "[router][cases]", double, float) {
  using namespace cases::top_p;
  auto const routes = route<TestType>(expar::models::top_p_moe(5), logits, expar::no_bias);
  for (std::size_t t = 0; t < 3; ++t)
    for (std::size_t j = 0; j < 5; ++j) REQUIRE(routes.ids(t, j) == (j < 2 ? ids[t][j] : -1));
  require_matrix(routes.weights, weights);
}

TEMPLATE_TEST_CASE("two experts, before any route is dropped", "[router][cases]", double, float) {
  using namespace cases::top_two;
  using T = TestType;
  namespace models = expar::models;
  auto const holds = [](auto const& routes, double tolerance) {
    require_ids(routes, ids);
    require_matrix(routes.weights, weights, tolerance);
  };
  require_locations(ids, locations);
  matrix<T> z(cases::logits);
  std::vector<int> n(4);
  auto const deepspeed = route<T>(models::gshard_top2(4), cases::logits, expar::no_bias);
  expar::count_choices(ctx, deepspeed.ids, 1, n);
  REQUIRE_THAT(expar::load_balance_loss(ctx, z.view(), n, {.choices = 1}),
               WithinAbs(1.4336739639094407, accuracy<T>));
  holds(route<T>(models::fastmoe_gshard(4), cases::logits, expar::no_bias), accuracy<T>);
  holds(route<T>(models::nllb_moe(4), cases::logits, expar::no_bias), accuracy<T>);
  holds(route<T>(models::megatron_post_softmax({4, 2}), cases::logits, expar::no_bias),
        accuracy<T>);
  holds(route<T>(models::gshard_top2(4), cases::logits, expar::no_bias), 2e-9 + accuracy<T>);
}

TEST_CASE("the six-token example of Tutel", "[router][cases]") {
  cases::matrix logits{{.50, .30, .15, .05}, {.40, .35, .20, .05}, {.60, .10, .25, .05},
                       {.10, .70, .15, .05}, {.45, .05, .30, .20}, {.55, .25, .05, .15}};
  cases::matrix const scores = logits;
  for (auto& row : logits)
    for (double& s : row) s = std::log(s);
  matrix<double> z(logits);

  auto const one = route<double>(expar::models::tutel({4, 1}), logits, expar::no_bias);
  require_ids(one, {{0}, {0}, {0}, {1}, {0}, {0}});
  require_matrix(one.weights, {{.5}, {.4}, {.6}, {.7}, {.45}, {.55}}, 1e-14);
  auto const two = route<double>(expar::models::tutel({4, 2}), logits, expar::no_bias);
  require_ids(two, {{0, 1}, {0, 1}, {0, 2}, {1, 2}, {0, 2}, {0, 1}});
  require_matrix(two.weights,
                 {{.625, .375},
                  {.533333, .466667},
                  {.705882, .294118},
                  {.823529, .176471},
                  {.6, .4},
                  {.6875, .3125}},
                 1e-6);

  std::vector<expar::index_t> first(4), both(4);
  expar::count_choices(ctx, two.ids, 1, first);
  expar::count_choices(ctx, two.ids, 2, both);
  REQUIRE(first == std::vector<expar::index_t>{5, 1, 0, 0});
  REQUIRE(both == std::vector<expar::index_t>{5, 4, 3, 0});
  REQUIRE_THAT(expar::load_balance_loss(ctx, z.view(), first, {.choices = 1}),
               WithinAbs(1.6388889, 1e-7));
  REQUIRE_THAT(expar::load_balance_loss(ctx, z.view(), both, {.choices = 2}),
               WithinAbs(1.2944444, 1e-7));

  REQUIRE_THAT(expar::z_loss(ctx, z.view()), WithinAbs(0, 1e-15));
  for (double& x : z.data) x *= 2;
  REQUIRE_THAT(expar::z_loss(ctx, z.view()), WithinAbs(.9116232, 1e-7));
}

TEST_CASE("sigmoid scores with a bias", "[router][cases]") {
  cases::matrix const logits{{1, -.5, .25, 2}, {0, .5, -1, 1.5}, {2, 1, 0, -1}};
  std::vector<double> const bias{0, .1, .2, -.3};
  auto const routes =
      route<double>(expar::models::glm_4_5({.experts = 4, .top_k = 2, .scale = 2.5}), logits, bias);
  require_ids(routes, {{2, 0}, {1, 3}, {0, 1}});
  require_matrix(routes.weights, {{1.086764, 1.413236}, {1.080633, 1.419367}, {1.366123, 1.133877}},
                 1e-6);
}

TEMPLATE_TEST_CASE("ties go to the lower id, and -inf to nobody", "[router][cases]", double,
                   float) {
  double const none = -std::numeric_limits<double>::infinity();
  cases::matrix const logits{{1, 2, 2, 2}, {.5, .5, .5, .5}, {none, 1, none, .5}};
  auto const two = route<TestType>(expar::models::mixtral({4, 2}), logits, expar::no_bias);
  require_ids(two, {{1, 2}, {0, 1}, {1, 3}});
  require_matrix(two.weights, {{.5, .5}, {.5, .5}, {0.6224593312018546, 0.37754066879814546}});
  auto const all = route<TestType>(expar::models::mixtral({4, 4}), logits, expar::no_bias);
  require_ids(all, {{1, 2, 3, 0}, {0, 1, 2, 3}, {1, 3, -1, -1}});
}
