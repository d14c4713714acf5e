// SPDX-License-Identifier: Apache-2.0
#include <expar/router/score.hpp>

#include "../support/catch.hpp"
#include "support.hpp"

using Catch::Matchers::WithinAbs;
using Catch::Matchers::WithinRel;
using router_test::inf;
using router_test::qnan;
using router_test::row_type;

namespace {

template <class Score, class A = double>
std::vector<A> scores(std::vector<A> const& z) {
  std::vector<A> s(z.size(), A(77));
  Score{}(z.data(), s.data(), static_cast<int>(z.size()));
  return s;
}

template <class Score>
void compare_with_reference(bool sigmoid) {
  router_test::random rng(1);
  router_test::reference_router const reference{.sigmoid = sigmoid};
  for (int round = 0; round < 300; ++round) {
    row_type const z = router_test::random_row(rng, static_cast<int>(rng.integer(1, 70)));
    row_type const expected = reference.scores(z), got = scores<Score>(z);
    for (std::size_t e = 0; e < z.size(); ++e) REQUIRE_THAT(got[e], WithinAbs(expected[e], 1e-14));
  }
}

template <class Score, class Of>
void compare_each(Of of) {
  router_test::random rng(1);
  for (int round = 0; round < 300; ++round) {
    row_type const z = router_test::random_row(rng, static_cast<int>(rng.integer(1, 70)));
    row_type const got = scores<Score>(z);
    for (std::size_t e = 0; e < z.size(); ++e) {
      double const expected = z[e] > -inf ? of(z[e]) : 0;
      if (expected == inf)
        REQUIRE(got[e] == inf);
      else
        REQUIRE_THAT(got[e], WithinRel(expected, 1e-14) || WithinAbs(expected, 1e-14));
    }
  }
}

/// dL/dz for L = sum of ds * s, by central differences, where z is not masked.
template <class Score>
void compare_with_differences() {
  router_test::random rng(2);
  for (int round = 0; round < 100; ++round) {
    row_type z = router_test::random_row(rng, static_cast<int>(rng.integer(1, 12))), ds;
    for (double& x : z)
      if (x == inf) x = 3;
    for (std::size_t e = 0; e < z.size(); ++e) ds.push_back(rng.normal());
    int const experts = static_cast<int>(z.size());
    row_type const s = scores<Score>(z);
    row_type dz(z.size());
    Score{}.vjp(z.data(), s.data(), ds.data(), dz.data(), experts);
    auto const loss = [&](row_type const& at) {
      row_type const v = scores<Score>(at);
      return std::inner_product(v.begin(), v.end(), ds.begin(), 0.);
    };
    for (std::size_t e = 0; e < z.size(); ++e) {
      if (!(z[e] > -inf)) continue;
      row_type up = z, down = z;
      up[e] += 1e-5, down[e] -= 1e-5;
      REQUIRE_THAT(dz[e], WithinAbs((loss(up) - loss(down)) / 2e-5, 1e-8));
    }
    row_type in_place = ds;
    Score{}.vjp(z.data(), s.data(), in_place.data(), in_place.data(), experts);
    REQUIRE(in_place == dz);
  }
}

}  // namespace

TEST_CASE("softmax and sigmoid follow their formulas", "[router]") {
  compare_with_reference<expar::softmax_score>(false);
  compare_with_reference<expar::sigmoid_score>(true);
}

TEST_CASE("scores of each expert for itself follow their formulas", "[router]") {
  compare_each<expar::logit_score>([](double z) { return z; });
  compare_each<expar::relu_score>([](double z) { return std::max(z, 0.); });
  compare_each<expar::sqrt_softplus_score>([](double z) {
    if (z == inf) z = std::numeric_limits<double>::max();
    return std::sqrt(z > 30 ? z : std::log1p(std::exp(z)));
  });
}

TEST_CASE("the square root of softplus holds for very large and very small logits", "[router]") {
  expar::sqrt_softplus_score const s;
  for (double z : {-700., -104., -60., -17.5, -1e-9, 0., 1e-9, 20., 21., 700., 1e300}) {
    CAPTURE(z);
    double const expected = std::sqrt(z > 30 ? z : std::log1p(std::exp(z)));
    REQUIRE_THAT(s.term(z, 0.), WithinRel(expected, 1e-14));
    double const slope = expected == 0 ? 0 : 1 / (1 + std::exp(-z)) / (2 * expected);
    REQUIRE_THAT(s.slope(s.term(z, 0.), 1., 0.), WithinRel(slope, 1e-13));
  }
  for (float z : {-87.f, -60.f, -17.5f, -1e-6f, 0.f, 20.f, 88.f, 3e38f}) {
    CAPTURE(z);
    double const x = z, expected = std::sqrt(x > 30 ? x : std::log1p(std::exp(x)));
    REQUIRE_THAT(static_cast<double>(s.term(z, 0.f)), WithinRel(expected, 4e-7));
    REQUIRE_THAT(static_cast<double>(s.slope(s.term(z, 0.f), 1.f, 0.f)),
                 WithinRel(1 / (1 + std::exp(-x)) / (2 * expected), 2e-6));
  }
  REQUIRE(s.term(-120.f, 0.f) == 0);
  REQUIRE(s.slope(0.f, 1.f, 0.f) == 0);
}

TEST_CASE("gradients of scores agree with differences", "[router]") {
  compare_with_differences<expar::logit_score>();
  compare_with_differences<expar::sqrt_softplus_score>();
  compare_with_differences<expar::softmax_score>();
  compare_with_differences<expar::sigmoid_score>();
}

TEST_CASE("relu passes gradients where it fires", "[router]") {
  row_type const s = scores<expar::relu_score>({-1, 0, 2, qnan}), ds{1, 2, 3, 4};
  row_type dz(4);
  expar::relu_score{}.vjp(s.data(), s.data(), ds.data(), dz.data(), 4);
  REQUIRE(s == row_type{0, 0, 2, 0});
  REQUIRE(dz == row_type{0, 0, 3, 0});
}

TEST_CASE("masked logits have score 0", "[router]") {
  REQUIRE(scores<expar::logit_score>({qnan, 2, -inf}) == row_type{0, 2, 0});
  REQUIRE(scores<expar::sqrt_softplus_score>({qnan, -inf}) == row_type{0, 0});
  REQUIRE(scores<expar::softmax_score>({qnan, 2, -inf}) == row_type{0, 1, 0});
  REQUIRE(scores<expar::sigmoid_score>({qnan, 0, -inf}) == row_type{0, .5, 0});
  REQUIRE(scores<expar::softmax_score>({qnan, -inf, qnan}) == row_type{0, 0, 0});
  REQUIRE(scores<expar::sigmoid_score>({-inf}) == row_type{0});
}

TEST_CASE("a logit of +inf is the limit of a large one", "[router]") {
  REQUIRE(scores<expar::softmax_score>({1, inf, 2}) == row_type{0, 1, 0});
  REQUIRE(scores<expar::softmax_score>({inf, 3, inf, qnan}) == row_type{.5, 0, .5, 0});
  REQUIRE(scores<expar::sigmoid_score>({inf, 0}) == row_type{1, .5});
}

TEST_CASE("scores of huge logits are finite", "[router]") {
  float const most = 3e38f;
  auto const p = scores<expar::softmax_score, float>({most, -most, 0});
  REQUIRE(p == std::vector<float>{1, 0, 0});
  REQUIRE(scores<expar::sigmoid_score, float>({most, -most, 0}) == std::vector<float>{1, 0, .5f});
}
