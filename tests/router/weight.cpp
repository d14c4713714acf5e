// SPDX-License-Identifier: Apache-2.0
#include <expar/router/weight.hpp>

#include <expar/router/router.hpp>

#include "../support/catch.hpp"
#include "support.hpp"

using Catch::Matchers::WithinAbs;
using expar::renormalize;
using expar::scale;
using router_test::row_type;
using ids_type = std::vector<std::int32_t>;

namespace {

/// A router of these weight policies, for k choices.
template <class... Steps>
auto chain_of(std::size_t k, Steps... steps) {
  return expar::router({64, static_cast<int>(k)}, expar::logit_score{}, steps...);
}
template <class... Steps>
row_type weigh(ids_type const& ids, row_type w, Steps... steps) {
  chain_of(w.size(), steps...).weigh(ids.data(), w.data());
  return w;
}

template <class... Steps>
void compare_with_differences(Steps... steps) {
  router_test::random rng(4);
  for (int round = 0; round < 200; ++round) {
    int const k = static_cast<int>(rng.integer(1, 8));
    ids_type ids;
    row_type in, d;
    for (int j = 0; j < k; ++j) {
      ids.push_back(rng.chance(.2) ? -1 : j);
      in.push_back(ids.back() < 0 ? 0 : rng.uniform(.05, 1));
      d.push_back(rng.normal());
    }
    auto const loss = [&](row_type const& at) {
      row_type const w = weigh(ids, at, steps...);
      return std::inner_product(w.begin(), w.end(), d.begin(), 0.);
    };
    auto const chain = chain_of(in.size(), steps...);
    row_type values((sizeof...(steps) + 1) * in.size()), got = d;
    std::copy(in.begin(), in.end(), values.begin());
    for (std::size_t j = 0; j < got.size(); ++j)
      if (ids[j] < 0) got[j] = 0;
    chain.weigh_vjp(ids.data(), values.data(), got.data());
    for (std::size_t j = 0; j < in.size(); ++j) {
      row_type up = in, down = in;
      up[j] += 1e-6, down[j] -= 1e-6;
      double const expected = ids[j] < 0 ? 0 : (loss(up) - loss(down)) / 2e-6;
      REQUIRE_THAT(got[j], WithinAbs(expected, 1e-7));
    }
  }
}

}  // namespace

TEST_CASE("renormalize divides by the sum", "[router]") {
  renormalize const plain{}, added{.epsilon = .5},
      guarded{.epsilon = 1, .kind = renormalize::guard::at_least}, not_one{.single = false};
  REQUIRE(weigh({0, 1}, {.25, .25}, plain) == row_type{.5, .5});
  REQUIRE(weigh({3}, {.25}, plain) == row_type{1});
  REQUIRE(weigh({3, 1, -1}, {.5, .25, 0}, plain) == row_type{.5 / .75, .25 / .75, 0});
  REQUIRE(weigh({0, 1}, {.25, .25}, added) == row_type{.25, .25});
  REQUIRE(weigh({0, 1}, {.25, .25}, guarded) == row_type{.25, .25});
  REQUIRE(weigh({0, 1}, {2, 2}, guarded) == row_type{.5, .5});
  REQUIRE(weigh({3}, {.25}, not_one) == row_type{.25});
  REQUIRE(weigh({3, 4}, {.25, .25}, not_one) == row_type{.5, .5});
}

TEST_CASE("a sum of 0 gives weights of 0", "[router]") {
  REQUIRE(weigh({-1, -1}, {0, 0}, renormalize{}) == row_type{0, 0});
  REQUIRE(weigh({4, 5}, {0, 0}, renormalize{}) == row_type{0, 0});
  REQUIRE(weigh({4, 5}, {0, 0}, expar::normalize{}) == row_type{0, 0});
  REQUIRE(weigh({4, 5}, {0, 0}, expar::normalize{2}) == row_type{0, 0});
  REQUIRE(weigh({-1, -1}, {0, 0}, expar::softmax_weights{}) == row_type{0, 0});
  ids_type const ids{4, 5};
  auto const d_of = [&](auto step) {
    row_type values{0, 0, 0, 0}, d{1, 2};
    chain_of(2, step).weigh_vjp(ids.data(), values.data(), d.data());
    return d;
  };
  REQUIRE(d_of(renormalize{}) == row_type{0, 0});
  REQUIRE(d_of(expar::normalize{}) == row_type{0, 0});
  REQUIRE(d_of(expar::normalize{2}) == row_type{0, 0});
}

TEST_CASE("steps run in the order in which they are written", "[router]") {
  ids_type const ids{0, 1};
  row_type const w{1, 3};
  REQUIRE(weigh(ids, w, renormalize{}, scale{2}) == row_type{.5, 1.5});
  REQUIRE(weigh(ids, w, scale{2}, renormalize{}) == row_type{.25, .75});
  REQUIRE(weigh(ids, w) == w);
  STATIC_REQUIRE(decltype(chain_of(2, scale{2}, renormalize{}))::weight_count == 2);
}

TEST_CASE("weights are normalized by norms, and by softmax and sigmoid", "[router]") {
  REQUIRE(weigh({0, 1}, {1, -3}, expar::normalize{}) == row_type{.25, -.75});
  row_type const cubic = weigh({0, 1}, {1, 2}, expar::normalize{3});
  REQUIRE_THAT(cubic[0], WithinAbs(1 / std::cbrt(9.), 1e-14));
  REQUIRE_THAT(cubic[1], WithinAbs(2 / std::cbrt(9.), 1e-14));
  for (double const unit : {1e-200, 1., 1e200}) {  // the squares of two are no numbers
    row_type const far = weigh({0, 1}, {3 * unit, 4 * unit}, expar::normalize{2});
    REQUIRE_THAT(far[0], WithinAbs(.6, 1e-15));
    REQUIRE_THAT(far[1], WithinAbs(.8, 1e-15));
  }
  row_type const soft = weigh({4, -1, 7}, {1, 0, 3}, expar::softmax_weights{});
  double const e = std::exp(2.);
  REQUIRE_THAT(soft[0], WithinAbs(1 / (1 + e), 1e-15));
  REQUIRE(soft[1] == 0);
  REQUIRE_THAT(soft[2], WithinAbs(e / (1 + e), 1e-15));
  row_type const half = weigh({4, -1}, {0, 0}, expar::sigmoid_weights{});
  REQUIRE(half == row_type{.5, 0});
  double const inf = router_test::inf;
  REQUIRE(weigh({4, 5}, {inf, 3}, expar::softmax_weights{}) == row_type{1, 0});
  REQUIRE(weigh({4, 5}, {-inf, 3}, expar::softmax_weights{}) == row_type{0, 1});
}

TEST_CASE("weights know their expert", "[router]") {
  std::vector<float> const factors{1, 2, 4, 8};
  expar::expert_scale const by{expar::make_view(factors.data(), 4)};
  REQUIRE(weigh({3, -1, 1}, {1, 0, .5}, by) == row_type{8, 0, 1});
  REQUIRE(weigh({3, 2, -1, 1}, {1, 2, 0, 3}, expar::zero_weights_of{2, 3}) == row_type{1, 0, 0, 3});
  REQUIRE(weigh({3, 2, -1, 1}, {1, 2, 0, 3}, expar::equal_weights{}) ==
          row_type{1. / 3, 1. / 3, 0, 1. / 3});
  REQUIRE(weigh({-1, -1}, {0, 0}, expar::equal_weights{}) == row_type{0, 0});
  REQUIRE(weigh({3, -1}, {.5, 0}, expar::on_input{}) == row_type{.5, 0});
}

TEST_CASE("the mask of equal weights passes gradients straight through, if asked", "[router]") {
  ids_type const ids{3, -1, 0};
  auto const d_of = [&](bool through) {
    row_type values{1, 0, 1, 0, 0, 0}, d{1, 0, 3};
    chain_of(3, expar::equal_weights{through}).weigh_vjp(ids.data(), values.data(), d.data());
    return d;
  };
  REQUIRE(d_of(false) == row_type{0, 0, 0});
  REQUIRE(d_of(true) == row_type{.5, 0, 1.5});
}

TEST_CASE("gradients of weights agree with differences", "[router]") {
  std::vector<double> const factors{1, .5, 4, 2, 3, -1, 2, 1};
  expar::expert_scale const by{expar::make_view(factors.data(), 8)};
  compare_with_differences(scale{2.5});
  compare_with_differences(renormalize{});
  compare_with_differences(renormalize{.epsilon = .3});
  compare_with_differences(renormalize{.epsilon = .9, .kind = renormalize::guard::at_least});
  compare_with_differences(renormalize{.single = false});
  compare_with_differences(renormalize{1e-20}, scale{2.5});
  compare_with_differences(scale{.5}, renormalize{.epsilon = .1}, scale{3}, renormalize{});
  compare_with_differences(expar::normalize{}, scale{2});
  compare_with_differences(expar::normalize{2});
  compare_with_differences(expar::normalize{3});
  compare_with_differences(expar::normalize{1.5}, expar::offset{.25}, renormalize{});
  compare_with_differences(expar::softmax_weights{});
  compare_with_differences(expar::sigmoid_weights{}, renormalize{});
  compare_with_differences(renormalize{}, by);
  compare_with_differences(expar::zero_weights_of{1, 3}, renormalize{});
  compare_with_differences(scale{2}, expar::on_input{});
}

TEST_CASE("values of weight policies are checked", "[router]") {
  auto const sentence = [](auto const& step) {
    return router_test::sentence_of([&] { step.check("route", 8, 2, 1); });
  };
  REQUIRE(sentence(renormalize{-1}) == "expar: route: epsilon is -1; it is at least 0 and finite");
  REQUIRE(sentence(renormalize{router_test::qnan}).find("expar: route: epsilon is ") == 0);
  REQUIRE(sentence(scale{router_test::inf}) == "expar: route: scale is inf; it is finite");
  REQUIRE(sentence(expar::offset{router_test::inf}) == "expar: route: offset is inf; it is finite");
  REQUIRE(sentence(expar::normalize{.5}) == "expar: route: p is 0.5; it is at least 1 and finite");
  REQUIRE(sentence(expar::zero_weights_of{7, 9}) ==
          "expar: route: zero experts 7 to 9 are no range of the 8 experts");
  std::vector<float> const factors(5);
  REQUIRE(sentence(expar::expert_scale{expar::make_view(factors.data(), 5)}) ==
          "expar: route: factors has 5 entries, but there are 8 experts");
}

TEST_CASE("an offset is added to the weights of experts", "[router]") {
  REQUIRE(weigh({4, -1}, {1, 0}, expar::offset{.5}) == row_type{1.5, 0});
}
