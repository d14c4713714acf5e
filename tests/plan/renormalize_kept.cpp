// SPDX-License-Identifier: Apache-2.0
#include <expar/plan/renormalize_kept.hpp>

#include <expar/plan/capacity.hpp>
#include <expar/plan/drop.hpp>
#include <expar/router/route.hpp>

#include "../support/catch.hpp"
#include "support.hpp"

using namespace drop_test;
using Catch::Matchers::WithinAbs;
using expar::renormalize;
using router_test::sentence_of;

namespace {

expar::host_context const ctx;

constexpr renormalize at_least_epsilon{2.220446049250313e-16, renormalize::guard::at_least};

/// By definition, of one token.
router_test::row_type renormalized(std::vector<std::int32_t> const& kept,
                                   router_test::row_type const& w, renormalize const& rule) {
  double sum = 0;
  for (std::size_t j = 0; j < w.size(); ++j) sum += kept[j] < 0 ? 0 : w[j];
  double const divisor =
      rule.kind == renormalize::guard::add ? sum + rule.epsilon : std::max(sum, rule.epsilon);
  router_test::row_type out;
  for (std::size_t j = 0; j < w.size(); ++j)
    out.push_back(kept[j] < 0 || divisor == 0 ? 0 : w[j] / divisor);
  return out;
}

router_test::row_type softmax(router_test::row_type const& z) {
  router_test::row_type p;
  double sum = 0;
  for (double x : z) p.push_back(std::exp(x)), sum += p.back();
  for (double& x : p) x /= sum;
  return p;
}

}  // namespace

TEST_CASE("kept weights are divided by their sum, with the adjoint", "[plan]") {
  drop_test::random rng(71);
  renormalize const rules[] = {{0, renormalize::guard::add},
                               {1e-9, renormalize::guard::add},
                               {.5, renormalize::guard::add},
                               at_least_epsilon,
                               {.8, renormalize::guard::at_least}};
  for (int round = 0; round < 200; ++round) {
    problem const p(rng, 12);
    renormalize const& rule = rules[rng.integer(0, 4)];
    id_matrix kept(p.ids, at(p.k));
    auto weights = matrix_of<double>(p.values, p.k, 1);
    for (double& w : weights.data) w += rng.uniform(0, .01);
    matrix<double> out(p.tokens, p.k, 2), d_out(p.tokens, p.k, 1), d_weights(p.tokens, p.k, 3);
    for (double& d : d_out.data) d = rng.uniform(-1, 1);
    for (double& d : d_weights.data) d = 77;
    expar::renormalize_kept(ctx, kept.view(), weights.view(), rule, out.view());
    expar::renormalize_kept_backward(ctx, kept.view(), weights.view(), rule, d_out.view(),
                                     d_weights.view());
    for (std::int64_t t = 0; t < p.tokens; ++t) {
      auto const& ids = p.ids[at(t)];
      auto w = weights.row(t);
      auto const expected = renormalized(ids, w, rule);
      for (int j = 0; j < p.k; ++j) {
        REQUIRE_THAT(out.get(t, j), WithinAbs(expected[at(j)], 1e-15));
        double const here = w[at(j)];
        auto const value = [&](double x) {
          w[at(j)] = x;
          auto const y = renormalized(ids, w, rule);
          double sum = 0;
          for (int i = 0; i < p.k; ++i) sum += y[at(i)] * d_out.get(t, i);
          return sum;
        };
        double const slope = (value(here + 1e-6) - value(here - 1e-6)) / 2e-6;
        w[at(j)] = here;
        REQUIRE_THAT(d_weights.get(t, j), WithinAbs(slope, 1e-8));
        if (ids[at(j)] < 0) REQUIRE(d_weights.get(t, j) == 0);
      }
    }
    expar::renormalize_kept(ctx, kept.view(), weights.view(), rule, weights.view());
    for (std::int64_t t = 0; t < p.tokens; ++t) REQUIRE(weights.row(t) == out.row(t));
  }
}

TEST_CASE("the gradient reaches the logits through dropping", "[plan]") {
  drop_test::random rng(72);
  for (int round = 0; round < 40; ++round) {
    int const experts = 5, k = 3;
    std::int64_t const tokens = 6;
    matrix<double> logits(tokens, experts), c(tokens, k), d_weights(tokens, k),
        d_logits(tokens, experts);
    for (double& z : logits.data) z = rng.uniform(-2, 2);
    for (double& x : c.data) x = rng.uniform(-1, 1);
    expar::router const r({.experts = experts, .top_k = k}, expar::softmax_score{});
    expar::routes<double> routes(tokens, k);
    expar::route(ctx, r, logits.view(), routes);
    id_matrix kept(tokens, k);
    counts dropped(at(experts));
    expar::drop_to_capacity(ctx, routes.ids, experts, 2, expar::by_value{routes.weights},
                            kept.view(), dropped);
    expar::renormalize_kept_backward(ctx, kept.view(), routes.weights, at_least_epsilon, c.view(),
                                     d_weights.view());
    expar::route_backward(ctx, r, logits.view(), routes, d_weights.view(), d_logits.view());
    for (std::int64_t t = 0; t < tokens; ++t) {
      auto const ids = kept.rows()[at(t)];
      auto z = logits.row(t);
      auto const loss = [&] {
        auto const p = softmax(z);
        router_test::row_type w;
        for (int j = 0; j < k; ++j) w.push_back(p[at(routes.ids(t, j))]);
        auto const y = renormalized(ids, w, at_least_epsilon);
        double sum = 0;
        for (int j = 0; j < k; ++j) sum += y[at(j)] * c.get(t, j);
        return sum;
      };
      for (int e = 0; e < experts; ++e) {
        double const here = z[at(e)];
        z[at(e)] = here + 1e-6;
        double const above = loss();
        z[at(e)] = here - 1e-6;
        double const slope = (above - loss()) / 2e-6;
        z[at(e)] = here;
        REQUIRE_THAT(d_logits.get(t, e), WithinAbs(slope, 1e-8));
      }
      // A route that is left alone has weight 1, whatever the logits are.
      if (std::count_if(ids.begin(), ids.end(), [](auto e) { return e >= 0; }) <= 1)
        for (int e = 0; e < experts; ++e) REQUIRE(std::abs(d_logits.get(t, e)) < 1e-15);
    }
  }
}

TEMPLATE_TEST_CASE("DeepSpeed renormalizes after dropping", "[plan]", double, float) {
  double const tolerance = sizeof(TestType) == 8 ? 1e-12 : 1e-5;
  matrix<TestType> logits(std::vector<router_test::row_type>{{2.0, 1.0, 0.5, -1.0},
                                                             {1.5, 2.5, 0.0, 0.25},
                                                             {3.0, 0.75, 1.25, -0.5},
                                                             {1.75, 0.875, 2.25, 0.125}});
  expar::routes<TestType> routes(4, 2);
  expar::route(ctx, expar::router({.experts = 4, .top_k = 2}, expar::softmax_score{}),
               logits.view(), routes);
  auto const capacity = expar::capacities::deepspeed(4, 4, 2, 1, 1);
  CHECK(capacity == 2);
  id_matrix kept(4, 2);
  counts dropped(4);
  expar::drop_to_capacity(ctx, routes.ids, 4, capacity, expar::by_choice{}, kept.view(), dropped);
  CHECK(kept.rows() == id_rows{{0, 1}, {1, -1}, {0, 2}, {2, -1}});
  expar::renormalize_kept(ctx, kept.view(), routes.weights, at_least_epsilon, routes.weights);
  double const weights[4][2] = {{0.7310585786300049, 0.2689414213699951},
                                {1, 0},
                                {0.8519528019683106, 0.14804719803168948},
                                {1, 0}};
  for (int t = 0; t < 4; ++t)
    for (int j = 0; j < 2; ++j)
      CHECK_THAT(static_cast<double>(routes.weights(t, j)), WithinAbs(weights[t][j], tolerance));
}

TEMPLATE_TEST_CASE("NLLB renormalizes before or after dropping", "[plan]", double, float) {
  double const tolerance = sizeof(TestType) == 8 ? 1e-12 : 1e-5;
  matrix<TestType> logits(std::vector<router_test::row_type>{{2.0, 1.0, 0.5, -1.0},
                                                             {1.5, 2.5, 0.0, 0.25},
                                                             {3.0, 0.75, 1.25, -0.5},
                                                             {1.75, 0.875, 2.25, 0.125}});
  expar::routes<TestType> plain(4, 2), before(4, 2);
  expar::route(ctx, expar::router({.experts = 4, .top_k = 2}, expar::softmax_score{}),
               logits.view(), plain);
  expar::route(ctx,
               expar::router({.experts = 4, .top_k = 2}, expar::softmax_score{}, at_least_epsilon),
               logits.view(), before);
  id_matrix kept(4, 2);
  counts dropped(4);
  expar::drop_to_capacity(ctx, plain.ids, 4, 1, expar::by_choice{}, kept.view(), dropped);
  CHECK(kept.rows() == id_rows{{0, -1}, {1, -1}, {-1, -1}, {2, -1}});
  expar::renormalize_kept(ctx, kept.view(), plain.weights, at_least_epsilon, plain.weights);
  double const first_before[] = {0.7310585786300049, 0.7310585786300048, 0, 0.6224593312018546};
  double const first_after[] = {1, 1, 0, 1};
  for (int t = 0; t < 4; ++t) {
    CHECK_THAT(static_cast<double>(plain.weights(t, 0)), WithinAbs(first_after[t], tolerance));
    CHECK(plain.weights(t, 1) == 0);
    if (kept.rows()[at(t)][0] >= 0)
      CHECK_THAT(static_cast<double>(before.weights(t, 0)), WithinAbs(first_before[t], tolerance));
  }
}

TEST_CASE("renormalizing kept weights: element types, and none", "[plan]") {
  id_matrix kept(id_rows{{1, -1, 0}, {-1, -1, -1}});
  matrix<expar::bfloat16> weights(std::vector<router_test::row_type>{{.5, .25, .5}, {1, 1, 1}}),
      d_weights(2, 3);
  matrix<float> out(2, 3);
  matrix<double> d_out(std::vector<router_test::row_type>{{1, 5, 0}, {1, 1, 1}});
  expar::renormalize_kept(ctx, kept.view(), weights.view(), {}, out.view());
  CHECK(out.data == std::vector<float>{.5f, 0, .5f, 0, 0, 0});
  expar::renormalize_kept_backward(ctx, kept.view(), weights.view(), {}, d_out.view(),
                                   d_weights.view());
  CHECK(d_weights.row(0) == router_test::row_type{.5, 0, -.5});
  CHECK(d_weights.row(1) == router_test::row_type{0, 0, 0});
  // A weight or a gradient of NaN does not matter where the route was dropped.
  matrix<float> w(std::vector<router_test::row_type>{{.5, router_test::qnan, 1.5}, {1, 1, 1}});
  expar::renormalize_kept(ctx, kept.view(), w.view(), {}, out.view());
  CHECK(out.data == std::vector<float>{.25f, 0, .75f, 0, 0, 0});
  d_out.set(0, 1, router_test::qnan), d_out.set(1, 0, router_test::qnan);
  expar::renormalize_kept_backward(ctx, kept.view(), w.view(), {}, d_out.view(), out.view());
  CHECK(out.data == std::vector<float>{.375f, 0, -.125f, 0, 0, 0});
  id_matrix none(0, 3);
  matrix<float> empty(0, 3);
  expar::renormalize_kept(ctx, none.view(), empty.view(), {}, empty.view());
  expar::renormalize_kept_backward(ctx, none.view(), empty.view(), {}, empty.view(), empty.view());
}

TEST_CASE("the number of threads does not show in kept weights", "[plan]") {
  drop_test::random rng(73);
  id_matrix kept(5000, 4);
  matrix<float> weights(5000, 4), d(5000, 4), a(5000, 4), b(5000, 4);
  for (auto& e : kept.data) e = static_cast<std::int32_t>(rng.integer(-1, 7));
  for (float& w : weights.data) w = static_cast<float>(rng.uniform());
  for (float& x : d.data) x = static_cast<float>(rng.normal());
  expar::host_context const three(3);
  expar::renormalize_kept(ctx, kept.view(), weights.view(), {}, a.view());
  expar::renormalize_kept(three, kept.view(), weights.view(), {}, b.view());
  CHECK(a.data == b.data);
  expar::renormalize_kept_backward(ctx, kept.view(), weights.view(), {}, d.view(), a.view());
  expar::renormalize_kept_backward(three, kept.view(), weights.view(), {}, d.view(), b.view());
  CHECK(a.data == b.data);
}

TEST_CASE("renormalizing kept weights refuses what does not fit", "[plan]") {
  id_matrix kept(id_rows{{0, 1}, {1, 2}});
  matrix<float> m(2, 2);
  using expar::make_view;
  auto const good = m.view(), one_row = make_view(m.data.data(), 1, 2),
             one_column = make_view(m.data.data(), 2, 1), null = make_view<float>(nullptr, 2, 2),
             overlapping = make_view(m.data.data(), 2, 2, 1);
  auto const forward = [&](auto const& ids, auto const& w, auto const& out) {
    return sentence_of([&] { expar::renormalize_kept(ctx, ids, w, renormalize{}, out); });
  };
  auto const backward = [&](auto const& ids, auto const& w, auto const& d, auto const& dw) {
    return sentence_of(
        [&] { expar::renormalize_kept_backward(ctx, ids, w, renormalize{}, d, dw); });
  };
  auto const no_ids = make_view<std::int32_t>(nullptr, 2, 2);
  std::string const f = "expar: renormalize_kept: ", b = "expar: renormalize_kept_backward: ";
  std::string const of_rows = " has extent 1 in dimension 0, but the number of tokens is 2",
                    of_columns =
                        " has extent 1 in dimension 1, but the number of choices per token is 2",
                    of_null = " has 4 elements but its data is null",
                    of_overlap =
                        " has rows of 2 elements only 1 elements apart; rows that are written must "
                        "not overlap";
  CHECK(forward(no_ids, good, good) == f + "kept" + of_null);
  CHECK(forward(kept.view(), null, good) == f + "weights" + of_null);
  CHECK(forward(kept.view(), one_row, good) == f + "weights" + of_rows);
  CHECK(forward(kept.view(), one_column, good) == f + "weights" + of_columns);
  CHECK(forward(kept.view(), good, one_row) == f + "out" + of_rows);
  CHECK(forward(kept.view(), good, overlapping) == f + "out" + of_overlap);
  CHECK(backward(no_ids, good, good, good) == b + "kept" + of_null);
  CHECK(backward(kept.view(), one_row, good, good) == b + "weights" + of_rows);
  CHECK(backward(kept.view(), good, one_column, good) == b + "d_out" + of_columns);
  CHECK(backward(kept.view(), good, good, one_row) == b + "d_weights" + of_rows);
  CHECK(backward(kept.view(), good, good, overlapping) == b + "d_weights" + of_overlap);
  matrix<float> more(3, 2);
  auto const x = make_view(more.data.data(), 2, 2), later = make_view(more.data.data() + 2, 2, 2);
  std::string const beside = " in memory; it is that very tensor, or apart from it";
  CHECK(forward(kept.view(), x, later) == f + "out overlaps weights" + beside);
  CHECK(backward(kept.view(), x, good, later) == b + "d_weights overlaps weights" + beside);
  CHECK(backward(kept.view(), good, x, later) == b + "d_weights overlaps d_out" + beside);
  auto const ids = make_view(reinterpret_cast<std::int32_t*>(more.data.data()), 2, 2);
  std::string const never = " overlaps kept in memory; the operation cannot work in place";
  CHECK(forward(ids, good, later) == f + "out" + never);
  CHECK(backward(ids, good, good, later) == b + "d_weights" + never);
}
