// SPDX-License-Identifier: Apache-2.0
#include <expar/router/score.hpp>

#include "../support/catch.hpp"
#include "support.hpp"

using Catch::Matchers::WithinAbs;
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

/// dL/dz for L = sum of ds * s, by central differences; 0 for what is masked or infinite.
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

TEST_CASE("gradients of scores agree with differences", "[router]") {
  compare_with_differences<expar::softmax_score>();
  compare_with_differences<expar::sigmoid_score>();
}

TEST_CASE("masked logits have score 0", "[router]") {
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
