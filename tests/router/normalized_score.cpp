// SPDX-License-Identifier: Apache-2.0
#include <expar/router/normalized_score.hpp>

#include <expar/router/load_balance_loss.hpp>
#include <expar/router/route.hpp>
#include <expar/router/router.hpp>
#include <expar/router/routes.hpp>

#include "../support/catch.hpp"
#include "support.hpp"

using Catch::Matchers::WithinAbs;
using router_test::inf;
using router_test::qnan;
using router_test::row_type;

static_assert(expar::score_policy<expar::normalized_score<expar::sigmoid_score>>);

namespace {

double raw(expar::sigmoid_score, double z) {
  return 1 / (1 + std::exp(-z));
}
double raw(expar::sqrt_softplus_score, double z) {
  return std::sqrt(std::log1p(std::exp(z)));
}
double raw(expar::relu_score, double z) {
  return std::max(z, 0.);
}

template <class Score>
row_type reference(row_type const& z, double epsilon) {
  row_type q(z.size(), 0);
  double sum = epsilon;
  for (std::size_t e = 0; e < z.size(); ++e)
    if (z[e] > -inf) sum += q[e] = raw(Score{}, z[e]);
  for (double& x : q) x = sum > 0 ? x / sum : 0;
  return q;
}

template <class Score>
void agrees(router_test::random& rng, double epsilon) {
  int const n = static_cast<int>(rng.integer(1, 40));
  row_type z, dq, q(static_cast<std::size_t>(n)), dz;
  for (int e = 0; e < n; ++e) {
    z.push_back(rng.chance(.1) ? -inf : rng.chance(.1) ? qnan : rng.uniform(-4, 4));
    dq.push_back(rng.normal());
  }
  expar::normalized_score const score{Score{}, epsilon};
  score(z.data(), q.data(), n);
  row_type const expected = reference<Score>(z, epsilon);
  for (std::size_t e = 0; e < q.size(); ++e) REQUIRE_THAT(q[e], WithinAbs(expected[e], 1e-14));
  dz = dq;
  score.vjp(z.data(), q.data(), dz.data(), dz.data(), n);
  auto const loss = [&] {
    row_type const at = reference<Score>(z, epsilon);
    double sum = 0;
    for (std::size_t e = 0; e < at.size(); ++e) sum += at[e] * dq[e];
    return sum;
  };
  for (std::size_t e = 0; e < z.size(); ++e) {
    if (!(z[e] > -inf)) continue;
    double const at = z[e];
    z[e] = at + 1e-5;
    double const above = loss();
    z[e] = at - 1e-5;
    double const below = loss();
    z[e] = at;
    REQUIRE_THAT(dz[e], WithinAbs((above - below) / 2e-5, 1e-8));
  }
}

}  // namespace

TEMPLATE_TEST_CASE("normalized scores and their gradients agree with the definition", "[router]",
                   expar::sigmoid_score, expar::sqrt_softplus_score, expar::relu_score) {
  router_test::random rng(301);
  for (int round = 0; round < 100; ++round)
    agrees<TestType>(rng, rng.chance(.5) ? 1e-20 : rng.uniform(0, 1));
}

TEST_CASE("normalized scores that are all 0 stay 0", "[router]") {
  expar::normalized_score const score{expar::relu_score{}, 0};
  row_type const z{-1, -2, qnan}, dq{1, 2, 3};
  row_type q(3), dz(3);
  score(z.data(), q.data(), 3);
  REQUIRE(q == row_type{0, 0, 0});
  score.vjp(z.data(), q.data(), dq.data(), dz.data(), 3);
  REQUIRE(dz == row_type{0, 0, 0});
}

TEMPLATE_TEST_CASE("normalized scores of +inf are the limit", "[router]", double, float) {
  using T = TestType;
  T const most = std::numeric_limits<T>::max(), infinite = std::numeric_limits<T>::infinity();
  auto const of = [](auto const& score, std::vector<T> z) {
    std::vector<T> q(z.size()), dq(z.size(), 1);
    score(static_cast<T const*>(z.data()), q.data(), static_cast<int>(z.size()));
    dq[0] = 3;
    score.vjp(static_cast<T const*>(z.data()), static_cast<T const*>(q.data()),
              static_cast<T const*>(dq.data()), dq.data(), static_cast<int>(z.size()));
    for (T x : dq) REQUIRE(x == 0);
    return q;
  };
  expar::normalized_score const relu{expar::relu_score{}, 1e-20};
  REQUIRE(of(relu, {1, infinite, 2}) == std::vector<T>{0, 1, 0});
  REQUIRE(of(relu, {infinite, -infinite, infinite}) == std::vector<T>{.5, 0, .5});
  REQUIRE(of(relu, {most, most / 2, most, most / 2}) ==
          std::vector<T>{1 / T(3), 1 / T(6), 1 / T(3), 1 / T(6)});
  expar::normalized_score const sigmoid{expar::sigmoid_score{}, 0};
  std::vector<T> q(2);
  std::vector<T> const z{infinite, 0};
  sigmoid(z.data(), q.data(), 2);
  REQUIRE_THAT(static_cast<double>(q[0]), WithinAbs(2 / 3., 1e-7));
  expar::normalized_score const root{expar::sqrt_softplus_score{}, 0};
  root(z.data(), q.data(), 2);
  REQUIRE_THAT(static_cast<double>(q[0]), WithinAbs(1, 1e-7));
}

TEST_CASE("normalized scores of float agree with those of double", "[router]") {
  router_test::random rng(302);
  expar::normalized_score const score{expar::sigmoid_score{}, 1e-20};
  for (int round = 0; round < 100; ++round) {
    int const n = static_cast<int>(rng.integer(1, 40));
    std::vector<float> z, q(static_cast<std::size_t>(n)), dq, dz(q);
    for (int e = 0; e < n; ++e) {
      z.push_back(static_cast<float>(rng.chance(.1) ? -inf : rng.uniform(-4, 4)));
      dq.push_back(static_cast<float>(rng.normal()));
    }
    row_type const wide_z(z.begin(), z.end()), wide_dq(dq.begin(), dq.end());
    row_type wide_q(q.size()), wide_dz(q.size());
    score(static_cast<float const*>(z.data()), q.data(), n);
    score(wide_z.data(), wide_q.data(), n);
    score.vjp(static_cast<float const*>(z.data()), static_cast<float const*>(q.data()),
              static_cast<float const*>(dq.data()), dz.data(), n);
    score.vjp(wide_z.data(), static_cast<double const*>(wide_q.data()), wide_dq.data(),
              wide_dz.data(), n);
    for (std::size_t e = 0; e < q.size(); ++e) {
      REQUIRE_THAT(static_cast<double>(q[e]), WithinAbs(wide_q[e], 1e-5));
      REQUIRE_THAT(static_cast<double>(dz[e]), WithinAbs(wide_dz[e], 1e-5));
    }
  }
}

TEST_CASE("a normalized score refuses an epsilon that does not fit", "[router]") {
  expar::host_context const ctx;
  router_test::matrix<float> z(2, 3);
  std::vector<int> const counts(3);
  for (double epsilon : {-1., inf, qnan}) {
    expar::normalized_score const score{expar::sigmoid_score{}, epsilon};
    std::string const number = epsilon < 0 ? "-1" : epsilon > 0 ? "inf" : "nan";
    std::string const after = ": epsilon is " + number + "; it is at least 0 and finite";
    REQUIRE(router_test::sentence_of([&] {
              (void)expar::load_balance_loss(ctx, score, z.view(), counts, {.choices = 1});
            }) == "expar: load_balance_loss" + after);
    expar::routes<float> routes(2, 2);
    REQUIRE(router_test::sentence_of([&] {
              expar::route(ctx, expar::router({3, 2}, score), z.view(), routes);
            }) == "expar: route" + after);
  }
}
