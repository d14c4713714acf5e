// SPDX-License-Identifier: Apache-2.0
#include <expar/router/weight.hpp>

#include "weight_support.hpp"

using namespace weight_test;
using expar::renormalize;
using expar::scale;

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

TEST_CASE("gradients of weights agree with differences", "[router]") {
  compare_with_differences(scale{2.5});
  compare_with_differences(renormalize{});
  compare_with_differences(renormalize{.epsilon = .3});
  compare_with_differences(renormalize{.epsilon = .9, .kind = renormalize::guard::at_least});
  compare_with_differences(renormalize{.single = false});
  compare_with_differences(renormalize{1e-20}, scale{2.5});
  compare_with_differences(scale{.5}, renormalize{.epsilon = .1}, scale{3}, renormalize{});
  compare_with_differences(expar::offset{.25}, renormalize{});
  compare_with_differences(scale{2}, expar::on_input{});
}

TEST_CASE("values of weight policies are checked", "[router]") {
  auto const sentence = [](auto const& step) {
    expar::detail::argument_table a("route");
    return router_test::sentence_of([&] { step.validate(a, 8, 2, 1); });
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
          "expar: route: factors has extent 5 in dimension 0, but the number of experts is 8");
}

TEST_CASE("an offset is added to the weights of experts", "[router]") {
  REQUIRE(weigh({4, -1}, {1, 0}, expar::offset{.5}) == row_type{1.5, 0});
}
