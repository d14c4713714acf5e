// SPDX-License-Identifier: Apache-2.0
#include <expar/router/research/balanced_assignment.hpp>

#include <expar/router/route.hpp>

#include "../../support/catch.hpp"
#include "../support.hpp"

using Catch::Matchers::WithinAbs;
using router_test::inf;
using router_test::matrix;
using router_test::qnan;
using router_test::row_type;
using router_test::sentence_of;

namespace {

expar::host_context const ctx;

/// The largest sum of scores of the tokens from t on, given the places that are left.
double best_sum(std::vector<row_type> const& scores, std::size_t t, std::vector<int>& left) {
  if (t == scores.size()) return 0;
  double best = -inf;
  for (std::size_t e = 0; e < left.size(); ++e) {
    if (left[e] == 0) continue;
    --left[e];
    best = std::max(best, scores[t][e] + best_sum(scores, t + 1, left));
    ++left[e];
  }
  return best;
}

template <class T>
matrix<std::int32_t> assign(matrix<T>& scores, expar::assignment_options const& o = {}) {
  matrix<std::int32_t> ids(scores.rows, 1, 1);
  expar::balanced_assignment(ctx, scores.view(), o, ids.view());
  std::vector<expar::index_t> count(static_cast<std::size_t>(scores.columns), 0);
  for (expar::index_t t = 0; t < scores.rows; ++t)
    ++count.at(static_cast<std::size_t>(ids.at(t, 0)));
  for (auto const n : count) REQUIRE(n * scores.columns == scores.rows);
  return ids;
}

}  // namespace

TEMPLATE_TEST_CASE("BASE: a balanced assignment, and the greedy one", "[router][cases]", double,
                   float) {
  using T = TestType;
  matrix<T> scores(std::vector<row_type>{{2.0, 1.0}, {1.75, 1.5}, {1.5, -0.5}, {0.25, 0.125}});
  auto ids = assign(scores);
  expar::routes<T> balanced(4, 1), greedy(4, 1);
  expar::route(ctx, expar::router({2, 1}, expar::sigmoid_score{}, expar::given_ids{ids.view()}),
               scores.view(), balanced);
  expar::route(ctx, expar::router({2, 1}, expar::sigmoid_score{}), scores.view(), greedy);
  int const expected[] = {0, 1, 0, 1};
  double const alpha[] = {0.8807970779778823, 0.8175744761936437, 0.8175744761936437,
                          0.5312093733737563};
  for (int t = 0; t < 4; ++t) {
    REQUIRE(balanced.ids(t, 0) == expected[t]);
    REQUIRE(greedy.ids(t, 0) == 0);
    REQUIRE_THAT(static_cast<double>(balanced.weights(t, 0)),
                 WithinAbs(alpha[t], std::is_same_v<T, double> ? 1e-12 : 1e-5));
  }
  double value = 0;
  for (int t = 0; t < 4; ++t) value += scores.get(t, ids.at(t, 0));
  REQUIRE(value == 5.125);  // the best there is
}

TEST_CASE("an assignment is at most T epsilon below the best", "[router]") {
  router_test::random rng(181);
  for (int round = 0; round < 300; ++round) {
    int const experts = static_cast<int>(rng.integer(1, 4));
    int const places = static_cast<int>(rng.integer(0, experts < 3 ? 4 : 2));
    std::vector<row_type> scores;
    for (int t = 0; t < experts * places; ++t) {
      scores.emplace_back();
      for (int e = 0; e < experts; ++e)
        scores.back().push_back(round % 3 == 0 ? static_cast<double>(rng.integer(0, 3))
                                               : rng.normal() + (e == 0 ? 3 : 0));
    }
    matrix<double> m(experts * places, experts, 1);
    double low = inf, high = -inf;
    for (expar::index_t t = 0; t < m.rows; ++t)
      for (int e = 0; e < experts; ++e) {
        double const x = scores[static_cast<std::size_t>(t)][static_cast<std::size_t>(e)];
        m.set(t, e, x);
        low = std::min(low, x), high = std::max(high, x);
      }
    expar::assignment_options const o{rng.chance(.5) ? .02 : 1e-6, rng.chance(.5) ? 1e-4 : 1e-9};
    auto ids = assign(m, o);
    double sum = 0;
    for (expar::index_t t = 0; t < m.rows; ++t) sum += m.get(t, ids.at(t, 0));
    std::vector<int> left(static_cast<std::size_t>(experts), places);
    double const epsilon = std::max(o.relative * (high - low), o.least);
    REQUIRE(sum >= best_sum(scores, 0, left) - static_cast<double>(m.rows) * epsilon - 1e-12);
  }
}

TEST_CASE("scores that are not finite count as the smallest", "[router]") {
  matrix<float> special(std::vector<row_type>{{qnan, 1}, {5, 6}, {inf, -inf}, {2, -1}});
  matrix<float> finite(std::vector<row_type>{{-1, 1}, {5, 6}, {-1, -1}, {2, -1}});
  REQUIRE(assign(special).data == assign(finite).data);
  matrix<expar::bfloat16> none(std::vector<row_type>{{qnan, inf}, {-inf, qnan}});
  auto ids = assign(none);
  REQUIRE(ids.at(0, 0) == 0);
  REQUIRE(ids.at(1, 0) == 1);
}

TEST_CASE("one hot expert, equal scores, and large ones", "[router]") {
  matrix<float> hot(64, 8), flat(64, 8), large(64, 8);
  for (int t = 0; t < 64; ++t)
    for (int e = 0; e < 8; ++e) {
      hot.set(t, e, e == 3 ? 100 + t : t % 7);
      flat.set(t, e, 1);
      large.set(t, e, 1e30 * ((t * 37 + e * 11) % 5));
    }
  auto ids = assign(hot);
  int late = 0;  // those who lose the least without the hot expert are elsewhere
  for (int t = 0; t < 64; ++t) late += ids.at(t, 0) == 3 && t >= 50;
  REQUIRE(late >= 6);
  assign(flat);
  assign(large);
  router_test::random rng(182);
  matrix<float> many(2048, 16);
  for (float& x : many.data) x = static_cast<float>(rng.normal());
  expar::host_context const threads(3);
  auto one = assign(many);
  matrix<std::int32_t> three(2048, 1, 1);
  expar::balanced_assignment(threads, many.view(), {}, three.view());
  REQUIRE(one.data == three.data);
}

TEST_CASE("an assignment refuses what does not fit", "[router]") {
  matrix<double> scores(4, 2), odd(3, 2);
  matrix<std::int32_t> ids(4, 1), few(3, 1), wide(4, 2);
  auto const make = [&](auto& from, expar::assignment_options const& o, auto& to) {
    return sentence_of([&] { expar::balanced_assignment(ctx, from.view(), o, to.view()); });
  };
  REQUIRE(make(odd, {}, few) ==
          "expar: balanced_assignment: scores has 3 tokens, which is no multiple of its 2 experts");
  REQUIRE(make(scores, {}, few) ==
          "expar: balanced_assignment: ids has extent 3 in dimension 0, but the number of tokens "
          "is 4");
  REQUIRE(make(scores, {}, wide) ==
          "expar: balanced_assignment: ids has extent 2 in dimension 1, but the number of choices "
          "is 1");
  REQUIRE(make(scores, {.relative = 0}, ids) ==
          "expar: balanced_assignment: relative is 0; it lies between 1e-9 and 1");
  REQUIRE(make(scores, {.least = 0}, ids) ==
          "expar: balanced_assignment: least is 0; it is above 0");
  scores.set(0, 0, 1e308), scores.set(1, 1, -1e308);
  REQUIRE(make(scores, {}, ids) ==
          "expar: balanced_assignment: the range of the scores is inf; it is finite");
}

TEST_CASE("an assignment has ids of any signed integer type", "[router]") {
  router_test::random rng(183);
  matrix<float> scores(12, 3);
  for (float& x : scores.data) x = static_cast<float>(rng.normal());
  auto ids = assign(scores);
  matrix<std::int64_t> wide(12, 1, 2);
  expar::balanced_assignment(ctx, scores.view(), {}, wide.view());
  for (int t = 0; t < 12; ++t) REQUIRE(wide.at(t, 0) == ids.at(t, 0));
}
