// SPDX-License-Identifier: Apache-2.0
#include <expar/router/top_k.hpp>

#include "../support/catch.hpp"
#include "support.hpp"

using router_test::inf;
using router_test::qnan;
using ids_type = std::vector<std::int32_t>;

namespace {

template <class A>
ids_type select(std::vector<A> const& keys, int k) {
  ids_type ids(static_cast<std::size_t>(k), 77);
  std::vector<A> best(static_cast<std::size_t>(k));
  int const found =
      expar::select_top_k(keys.data(), static_cast<int>(keys.size()), k, ids.data(), best.data());
  REQUIRE(found == std::count_if(ids.begin(), ids.end(), [](auto e) { return e >= 0; }));
  return ids;
}

template <class A>
ids_type by_sorting(std::vector<A> const& keys, int k) {
  ids_type order;
  for (std::size_t e = 0; e < keys.size(); ++e)
    if (keys[e] > -std::numeric_limits<A>::infinity()) order.push_back(static_cast<int>(e));
  std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) {
    return keys[static_cast<std::size_t>(a)] > keys[static_cast<std::size_t>(b)];
  });
  order.resize(static_cast<std::size_t>(k), -1);
  return order;
}

}  // namespace

TEMPLATE_TEST_CASE("the k largest keys agree with a stable sort", "[router]", float, double) {
  router_test::random rng(3);
  for (int round = 0; round < 2000; ++round) {
    int const experts = static_cast<int>(rng.integer(1, 140));
    int const k = rng.chance(.2) ? experts : static_cast<int>(rng.integer(1, experts));
    std::vector<TestType> keys;
    for (double x : router_test::random_row(rng, experts)) keys.push_back(static_cast<TestType>(x));
    CAPTURE(experts, k);
    REQUIRE(select(keys, k) == by_sorting(keys, k));
  }
}

TEST_CASE("equal keys are taken by ascending id", "[router]") {
  REQUIRE(select<float>({1, 2, 2, 2}, 2) == ids_type{1, 2});
  REQUIRE(select<float>({1, 2, 2, 2}, 4) == ids_type{1, 2, 3, 0});
  REQUIRE(select<float>({0, 0, 0, 0}, 3) == ids_type{0, 1, 2});
  REQUIRE(select<float>({-0.f, 0.f, -0.f, 0.f}, 3) == ids_type{0, 1, 2});
}

TEST_CASE("NaN and -inf are never selected, +inf is first", "[router]") {
  REQUIRE(select<double>({1, -inf, -inf, -inf}, 3) == ids_type{0, -1, -1});
  REQUIRE(select<double>({qnan, 1, qnan, inf}, 4) == ids_type{3, 1, -1, -1});
  REQUIRE(select<double>({qnan}, 1) == ids_type{-1});
  REQUIRE(select<double>({-inf, -1e308}, 2) == ids_type{1, -1});
}
