// SPDX-License-Identifier: Apache-2.0
#include <expar/router/variable_routes.hpp>

#include <expar/plan/plan.hpp>

#include "../support/adds.hpp"
#include "../support/catch.hpp"
#include "support.hpp"

using Catch::Matchers::WithinAbs;
using router_test::inf;
using router_test::matrix;
using router_test::qnan;
using router_test::row_type;
using router_test::sentence_of;

namespace {

expar::host_context const ctx;

using id_matrix = std::vector<std::vector<std::int32_t>>;

constexpr auto remoe(int experts) {
  return expar::router({experts, experts}, expar::relu_score{}, expar::score_key{},
                       expar::positive_keys{});
}
constexpr auto dynamic_moe(int experts) {
  return expar::router({experts, experts}, expar::softmax_score{}, expar::top_p{.4});
}

template <class W>
void require_routes(expar::variable_routes<W> const& got, id_matrix const& ids,
                    std::vector<row_type> const& weights, double tolerance) {
  REQUIRE(got.offsets.extents[0] == static_cast<expar::index_t>(ids.size()) + 1);
  REQUIRE(got.offsets(0) == 0);
  for (std::size_t t = 0; t < ids.size(); ++t) {
    REQUIRE(got.offsets(t + 1) - got.offsets(t) == static_cast<expar::index_t>(ids[t].size()));
    for (std::size_t j = 0; j < ids[t].size(); ++j) {
      expar::index_t const at = got.offsets(t) + static_cast<expar::index_t>(j);
      REQUIRE(got.ids(at) == ids[t][j]);
      REQUIRE_THAT(static_cast<double>(expar::widen(got.weights(at))),
                   WithinAbs(weights[t][j], tolerance));
    }
  }
}

template <class T>
constexpr double accuracy = std::is_same_v<T, double> ? 1e-12 : 1e-5;

}  // namespace

TEMPLATE_TEST_CASE("ReMoE: as many experts as fire", "[router][cases]", double, float,
                   expar::bfloat16) {
  matrix<TestType> z(std::vector<row_type>{{0.5, -0.25, 0.0, 1.0},
                                           {-0.5, -1.0, -0.25, -0.125},
                                           {2.0, 0.75, 0.25, -0.5},
                                           {0.125, 1.5, -0.5, 0.5}},
                     2);
  expar::variable_routes<TestType> out;
  expar::route_variable(ctx, remoe(4), z.view(), out);
  require_routes(out, {{0, 3}, {}, {0, 1, 2}, {0, 1, 3}},
                 {{.5, 1}, {}, {2, .75, .25}, {.125, 1.5, .5}}, 0);
  REQUIRE(out.most_per_token() == 3);
}

TEMPLATE_TEST_CASE("Dynamic_MoE: the fewest experts whose scores add up to more than p",
                   "[router][cases]", double, float) {
  matrix<TestType> z(std::vector<row_type>{
      {2.0, 1.0, 0.5, -1.0, 0.0}, {5.0, 0.0, 0.5, -1.0, 1.0}, {0.5, 0.4375, 0.25, 0.0, 0.125}});
  expar::variable_routes<TestType> out;
  expar::route_variable(ctx, dynamic_moe(5), z.view(), out);
  require_routes(
      out, {{0}, {0}, {0, 1}},
      {{0.5630212318141845}, {0.9627962672817098}, {0.2492501443759452, 0.23414884153490773}},
      accuracy<TestType>);
}

TEST_CASE("a bias that is minus a threshold, and the best where none is above it", "[router]") {
  matrix<double> z(std::vector<row_type>{{1, -1, 2}, {-3, -2, -4}});
  std::vector<double> const bias{-.6, -.6, -.9};
  expar::router const r({3, 3}, expar::sigmoid_score{}, expar::biased_key{},
                        expar::positive_keys{.or_best = true}, expar::equal_weights{});
  expar::variable_routes<double> out;
  expar::route_variable(ctx, r, z.view(), bias, out);
  require_routes(out, {{0}, {1}}, {{1}, {1}}, 0);
}

TEST_CASE("all experts, one, or none of a token", "[router]") {
  matrix<double> z(std::vector<row_type>{{1, 1, 1}, {qnan, -inf, qnan}, {-1, 0, 7}, {3, 2, qnan}});
  expar::variable_routes<double> out;
  expar::route_variable(ctx, remoe(3), z.view(), out);
  require_routes(out, {{0, 1, 2}, {}, {2}, {0, 1}}, {{1, 1, 1}, {}, {7}, {3, 2}}, 0);
  matrix<double> none(0, 3);
  expar::route_variable(ctx, remoe(3), none.view(), out);
  require_routes(out, {}, {}, 0);
  REQUIRE(out.most_per_token() == 0);
}

TEST_CASE("variable routes hold what the router selects, in its order", "[router]") {
  router_test::random rng(81);
  for (int round = 0; round < 100; ++round) {
    int const tokens = static_cast<int>(rng.integer(0, 30));
    int const experts = static_cast<int>(rng.integer(1, 20));
    int const k = static_cast<int>(rng.integer(1, experts));
    matrix<float> z(tokens, experts, 1);
    for (int t = 0; t < tokens; ++t) {
      auto const row = router_test::random_row(rng, experts);
      for (int e = 0; e < experts; ++e) z.set(t, e, row[static_cast<std::size_t>(e)]);
    }
    expar::router const r({experts, k}, expar::softmax_score{}, expar::top_p{rng.uniform(0, 1.2)});
    expar::routes<float> fixed(tokens, k), again(tokens, k);
    expar::route(ctx, r, z.view(), fixed);
    expar::variable_routes<float> variable;
    expar::route_variable(ctx, r, z.view(), variable);
    id_matrix ids;
    std::vector<row_type> weights;
    for (int t = 0; t < tokens; ++t) {
      ids.emplace_back();
      weights.emplace_back();
      for (int j = 0; j < k; ++j)
        if (fixed.ids(t, j) >= 0) {
          ids.back().push_back(fixed.ids(t, j));
          weights.back().push_back(static_cast<double>(fixed.weights(t, j)));
        }
    }
    require_routes(variable, ids, weights, 0);
    expar::to_fixed(ctx, variable, again);
    for (int t = 0; t < tokens; ++t)
      for (int j = 0; j < k; ++j) {
        REQUIRE(again.ids(t, j) == fixed.ids(t, j));
        REQUIRE(again.weights(t, j) == fixed.weights(t, j));
      }
  }
}

TEST_CASE("choices that were taken out leave no gap in variable routes", "[router]") {
  expar::routes<float> fixed(3, 3);
  for (int t = 0; t < 3; ++t)
    for (int j = 0; j < 3; ++j) {
      fixed.ids(t, j) = t == 1 || j == 0 ? -1 : 10 * t + j;
      fixed.weights(t, j) = static_cast<float>(j) + 1;
    }
  expar::variable_routes<expar::half> out;
  expar::to_variable(ctx, fixed, out);
  require_routes(out, {{1, 2}, {}, {21, 22}}, {{2, 3}, {}, {2, 3}}, 0);
}

TEST_CASE("fixed routes of variable ones have a plan", "[router]") {
  matrix<float> z(std::vector<row_type>{{1, 2, -1}, {-1, -1, -1}, {3, -1, 4}});
  expar::variable_routes<float> variable;
  expar::route_variable(ctx, remoe(3), z.view(), variable);
  expar::routes<expar::bfloat16> fixed(3, static_cast<int>(variable.most_per_token()));
  expar::to_fixed(ctx, variable, fixed);
  expar::route_plan const plan = expar::make_plan(ctx, fixed.ids, 3);
  REQUIRE(plan.rows() == 4);
  REQUIRE(plan.row(0, 0) == 0);
  REQUIRE(plan.row(2, 0) == 1);
  REQUIRE(plan.row(0, 1) == 2);
  REQUIRE(plan.row(2, 1) == 3);
  REQUIRE(plan.row(1, 0) == -1);
  REQUIRE(expar::widen(fixed.weights(2, 1)) == 4);
  REQUIRE(expar::widen(fixed.weights(1, 1)) == 0);
}

TEST_CASE("the gradient of variable routes agrees with differences", "[router]") {
  router_test::random rng(82);
  auto const check = [&](auto const& r) {
    for (int round = 0; round < 30; ++round) {
      int const tokens = static_cast<int>(rng.integer(0, 5)), experts = r.experts;
      matrix<double> z(tokens, experts, 1), dz(tokens, experts, 2);
      for (double& x : z.data) x = rng.normal();
      expar::variable_routes<double> out;
      expar::route_variable(ctx, r, z.view(), out);
      row_type dw;
      for (expar::index_t i = 0; i < out.ids.extents[0]; ++i) dw.push_back(rng.normal());
      expar::route_variable_backward(ctx, r, z.view(), out, dw, dz.view());
      expar::variable_routes<double> moved;
      auto const loss = [&] {
        expar::route_variable(ctx, r, z.view(), moved);
        double sum = 0;
        for (std::size_t i = 0; i < dw.size(); ++i) sum += dw[i] * moved.weights(i);
        return sum;
      };
      for (int t = 0; t < tokens; ++t)
        for (int e = 0; e < experts; ++e) {
          double const at = z.get(t, e);
          z.set(t, e, at + 1e-6);
          double slope = loss();
          bool same = moved.ids.extents[0] == out.ids.extents[0];
          z.set(t, e, at - 1e-6);
          slope = (slope - loss()) / 2e-6;
          same = same && moved.ids.extents[0] == out.ids.extents[0];
          z.set(t, e, at);
          if (same) REQUIRE_THAT(dz.get(t, e), WithinAbs(slope, 1e-7));
        }
    }
  };
  check(remoe(6));
  check(dynamic_moe(6));
}

TEST_CASE("the gradient of variable routes in bfloat16", "[router]") {
  using bf16 = expar::bfloat16;
  matrix<bf16> z(std::vector<row_type>{{1, -2, 3}, {-1, 4, -5}}, 1), dz(2, 3, 2);
  expar::variable_routes<bf16> out, dw;
  expar::route_variable(ctx, remoe(3), z.view(), out);
  dw.resize(2, 3);
  for (int i = 0; i < 3; ++i) dw.weights(i) = expar::narrow<bf16>(static_cast<float>(i) + .5f);
  expar::route_variable_backward(ctx, remoe(3), z.view(), out, dw.weights, dz.view());
  REQUIRE(dz.row(0) == row_type{.5, 0, 1.5});
  REQUIRE(dz.row(1) == row_type{0, 2.5, 0});
}

TEST_CASE("an id of -1 among variable routes takes no part in the gradient", "[router]") {
  matrix<double> z(std::vector<row_type>{{1, 2}, {3, 4}}), dz(2, 2);
  expar::variable_routes<double> out;
  expar::route_variable(ctx, remoe(2), z.view(), out);
  out.ids(1) = -1;
  expar::route_variable_backward(ctx, remoe(2), z.view(), out, row_type{1, 2, 3, 4}, dz.view());
  REQUIRE(dz.data == row_type{1, 0, 3, 4});
}

TEST_CASE("the number of threads does not show in variable routes", "[router]") {
  router_test::random rng(83);
  matrix<float> z(3000, 17), one(3000, 17), three(3000, 17);
  for (float& x : z.data) x = static_cast<float>(rng.normal());
  expar::host_context const threads(3);
  expar::variable_routes<float> a, b;
  expar::route_variable(ctx, remoe(17), z.view(), a);
  expar::route_variable(threads, remoe(17), z.view(), b);
  auto const list = [](auto const& v) { return std::vector(v.data, v.data + v.extents[0]); };
  REQUIRE(list(a.offsets) == list(b.offsets));
  REQUIRE(list(a.ids) == list(b.ids));
  REQUIRE(list(a.weights) == list(b.weights));
  expar::route_variable_backward(ctx, remoe(17), z.view(), a, a.weights, one.view());
  expar::route_variable_backward(threads, remoe(17), z.view(), b, b.weights, three.view());
  REQUIRE(one.data == three.data);
  expar::routes<float> c(3000, 17), d(3000, 17);
  expar::to_fixed(ctx, a, c);
  expar::to_fixed(threads, b, d);
  for (int t = 0; t < 3000; ++t)
    for (int j = 0; j < 17; ++j)
      REQUIRE((c.ids(t, j) == d.ids(t, j) && c.weights(t, j) == d.weights(t, j)));
}

TEST_CASE("variable routes are reused, moved, and start empty", "[router]") {
  expar::variable_routes<float> a;
  REQUIRE(a.offsets.extents[0] == 0);
  REQUIRE(a.most_per_token() == 0);
  a.resize(5, 9);
  auto const* const at = a.ids.data;
  REQUIRE((a.ids(8) == -1 && a.weights(8) == 0 && a.offsets(5) == 0));
  a.resize(2, 3);
  REQUIRE(a.ids.data == at);
  expar::variable_routes<float> b(std::move(a));
  REQUIRE(a.ids.extents[0] == 0);
  REQUIRE(b.ids.extents[0] == 3);
  a = std::move(b);
  REQUIRE(a.ids.data == at);
}

TEST_CASE("variable routes refuse what does not fit", "[router]") {
  expar::variable_routes<float> v;
  REQUIRE(sentence_of([&] { v.resize(-1, 0); }) ==
          "expar: variable_routes: tokens is -1; it is at least 0");
  REQUIRE(sentence_of([&] { v.resize(0, -1); }) ==
          "expar: variable_routes: count is -1; it is at least 0");
  matrix<float> z(std::vector<row_type>{{1, 2, 3}, {3, -2, 1}}), dz(2, 3);
  expar::routes<float> fixed(2, 3), narrow(2, 2), longer(3, 3);
  auto const fix = [&](auto& to) { return sentence_of([&] { expar::to_fixed(ctx, v, to); }); };
  v = expar::variable_routes<float>();
  REQUIRE(fix(fixed) ==
          "expar: to_fixed: offsets has no entries; there is one for each token, and one more");
  expar::route_variable(ctx, remoe(3), z.view(), v);
  narrow.ids(0, 0) = 77;
  REQUIRE(fix(narrow) == "expar: to_fixed: token 0 has 3 routes, but only 2 fit");
  REQUIRE(narrow.ids(0, 0) == 77);
  REQUIRE(fix(longer) ==
          "expar: to_fixed: ids has extent 3 in dimension 0, but the number of tokens is 2");
  expar::routes_view const uneven{fixed.ids, narrow.weights};
  REQUIRE(fix(uneven) ==
          "expar: to_fixed: weights has extent 2 in dimension 1, but the number of choices in ids "
          "is 3");
  REQUIRE(sentence_of([&] { expar::to_variable(ctx, uneven, v); }) ==
          "expar: to_variable: weights has extent 2 in dimension 1, but the number of choices in "
          "ids is 3");
  auto const backward = [&](auto const& dw, auto const& d) {
    return sentence_of([&] { expar::route_variable_backward(ctx, remoe(3), z.view(), v, dw, d); });
  };
  REQUIRE(backward(row_type{1, 2}, dz.view()) ==
          "expar: route_variable_backward: d_weights has extent 2 in dimension 0, but the number "
          "of routes is 5");
  REQUIRE(backward(row_type{1, 2, 3, 4, 5}, expar::make_view(dz.data.data(), 1, 3)) ==
          "expar: route_variable_backward: d_logits has extent 1 in dimension 0, but the number of "
          "tokens is 2");
  v.offsets(1) = 6;
  REQUIRE(fix(fixed) == "expar: to_fixed: offsets(2) is 5, less than the offset before, 6");
  v.offsets(1) = 3, v.offsets(2) = 4;
  REQUIRE(fix(fixed) == "expar: to_fixed: offsets(2) is 4, but there are 5 routes");
  v.offsets(0) = 1;
  REQUIRE(fix(fixed) == "expar: to_fixed: offsets(0) is 1; the first offset is 0");
  expar::router const r({3, 2}, expar::relu_score{}, expar::positive_keys{});
  REQUIRE(
      sentence_of([&] { expar::route_variable(ctx, r, z.view(), v); }) ==
      "expar: route_variable: top_k is 2, but any number of the 3 experts may have a positive key");
  v.resize(2, 3);
  v.offsets(1) = 1, v.offsets(2) = 3, v.ids(0) = 0, v.ids(1) = -1, v.ids(2) = -7;
  REQUIRE(fix(fixed) ==
          "expar: to_fixed: variable ids(2) is -7; an expert id is -1 (no expert) or at least 0");
  v.ids(2) = 1;
  REQUIRE(fix(fixed) == "nothing was thrown");
  v.offsets(1) = 2, v.ids(1) = 2;
  std::string const in_place = " in memory; the operation cannot work in place";
  expar::routes_view const over_ids{expar::make_view(v.ids.data, 2, 2), narrow.weights},
      over_weights{narrow.ids, expar::make_view(v.weights.data, 2, 2)};
  REQUIRE(fix(over_ids) == "expar: to_fixed: ids overlaps variable ids" + in_place);
  REQUIRE(fix(over_weights) == "expar: to_fixed: weights overlaps variable weights" + in_place);
  expar::routes_view const negative{
      expar::tensor_view<std::int32_t, 2>{fixed.ids.data, {2, -1}, {3, 1}},
      expar::tensor_view<float, 2>{nullptr, {2, -1}, {3, 1}}};
  REQUIRE(sentence_of([&] { expar::to_variable(ctx, negative, v); }) ==
          "expar: to_variable: ids has extent -1 in dimension 1; an extent is at least 0");
  fixed.ids(1, 2) = -5;
  REQUIRE(sentence_of([&] { expar::to_variable(ctx, fixed, v); }) ==
          "expar: to_variable: ids(1, 2) is -5; an expert id is -1 (no expert) or 0 to 2147483646");
}

TEST_CASE("variable routes of any types, whose numbers do not follow one another", "[router]") {
  router_test::random rng(84);
  matrix<float> z(40, 6), one(40, 6);
  for (float& x : z.data) x = static_cast<float>(rng.normal());
  expar::variable_routes<float> v, again;
  expar::route_variable(ctx, remoe(6), z.view(), v);
  auto const n = static_cast<std::size_t>(v.ids.extents[0]);
  std::vector<std::uint32_t> offsets(3 * 41);
  std::vector<std::int64_t> ids(2 * n);
  std::vector<float> weights(3 * n);
  for (std::size_t t = 0; t <= 40; ++t) offsets[3 * t] = static_cast<std::uint32_t>(v.offsets(t));
  for (std::size_t i = 0; i < n; ++i) ids[2 * i] = v.ids(i), weights[3 * i] = v.weights(i);
  struct {
    expar::tensor_view<std::uint32_t, 1> offsets;
    expar::tensor_view<std::int64_t, 1> ids;
    expar::tensor_view<float, 1> weights;
  } const strided{expar::make_strided_view(offsets.data(), 41, 3),
                  expar::make_strided_view(ids.data(), v.ids.extents[0], 2),
                  expar::make_strided_view(weights.data(), v.ids.extents[0], 3)};
  expar::routes<float> fixed(40, 6);
  router_test::wide_routes wide(40, 6);
  expar::to_fixed(ctx, v, fixed);
  expar::to_fixed(ctx, strided, wide);
  REQUIRE(wide.same_as(fixed));
  expar::to_variable(ctx, wide, again);
  for (expar::index_t i = 0; i < v.ids.extents[0]; ++i)
    REQUIRE((again.ids(i) == v.ids(i) && again.weights(i) == v.weights(i)));
  expar::route_variable_backward(ctx, remoe(6), z.view(), v, v.weights, one.view());
  expar_test::require_adds<float>(40, 6, [&](auto&& to) {
    expar::route_variable_backward(ctx, remoe(6), z.view(), strided, strided.weights, to);
  });
  matrix<float> other(40, 6);
  expar::route_variable_backward(ctx, remoe(6), z.view(), strided, strided.weights, other.view());
  REQUIRE(other.data == one.data);
}
