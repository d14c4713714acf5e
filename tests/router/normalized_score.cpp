// SPDX-License-Identifier: Apache-2.0
#include <expar/router/normalized_score.hpp>

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
