// SPDX-License-Identifier: Apache-2.0
#include <expar/router/weight.hpp>

#include "../support/catch.hpp"
#include "support.hpp"

using Catch::Matchers::WithinAbs;
using expar::renormalize;
using expar::scale;
using router_test::row_type;
using ids_type = std::vector<std::int32_t>;

namespace {

template <class... Steps>
row_type weigh(expar::weight_chain<Steps...> const& chain, ids_type const& ids, row_type w) {
  chain(ids.data(), w.data(), static_cast<int>(w.size()));
  return w;
}

template <class... Steps>
void compare_with_differences(Steps... steps) {
  expar::weight_chain const chain(steps...);
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
      row_type const w = weigh(chain, ids, at);
      return std::inner_product(w.begin(), w.end(), d.begin(), 0.);
    };
    row_type values(static_cast<std::size_t>((chain.length + 1) * k)), got = d;
    std::copy(in.begin(), in.end(), values.begin());
    for (std::size_t j = 0; j < got.size(); ++j)
      if (ids[j] < 0) got[j] = 0;
    chain.vjp(ids.data(), values.data(), got.data(), k);
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
  expar::weight_chain const plain(renormalize{});
  REQUIRE(weigh(plain, {0, 1}, {.25, .25}) == row_type{.5, .5});
  REQUIRE(weigh(plain, {3}, {.25}) == row_type{1});
  REQUIRE(weigh(plain, {3, 1, -1}, {.5, .25, 0}) == row_type{.5 / .75, .25 / .75, 0});
  expar::weight_chain const added(renormalize{.epsilon = .5});
  REQUIRE(weigh(added, {0, 1}, {.25, .25}) == row_type{.25, .25});
  expar::weight_chain const guarded(
      renormalize{.epsilon = 1, .kind = renormalize::guard::at_least});
  REQUIRE(weigh(guarded, {0, 1}, {.25, .25}) == row_type{.25, .25});
  REQUIRE(weigh(guarded, {0, 1}, {2, 2}) == row_type{.5, .5});
  expar::weight_chain const not_one(renormalize{.single = false});
  REQUIRE(weigh(not_one, {3}, {.25}) == row_type{.25});
  REQUIRE(weigh(not_one, {3, 4}, {.25, .25}) == row_type{.5, .5});
}

TEST_CASE("a sum of 0 gives weights of 0", "[router]") {
  expar::weight_chain const plain(renormalize{});
  REQUIRE(weigh(plain, {-1, -1}, {0, 0}) == row_type{0, 0});
  REQUIRE(weigh(plain, {4, 5}, {0, 0}) == row_type{0, 0});
  row_type values{0, 0, 0, 0}, d{1, 2};
  ids_type const ids{4, 5};
  plain.vjp(ids.data(), values.data(), d.data(), 2);
  REQUIRE(d == row_type{0, 0});
}

TEST_CASE("steps run in the order in which they are written", "[router]") {
  ids_type const ids{0, 1};
  row_type const w{1, 3};
  REQUIRE(weigh(expar::weight_chain(renormalize{}, scale{2}), ids, w) == row_type{.5, 1.5});
  REQUIRE(weigh(expar::weight_chain(scale{2}, renormalize{}), ids, w) == row_type{.25, .75});
  REQUIRE(weigh(expar::weight_chain<>(), ids, w) == w);
  STATIC_REQUIRE(decltype(expar::weight_chain(scale{2}, renormalize{}))::length == 2);
}

TEST_CASE("gradients of weights agree with differences", "[router]") {
  compare_with_differences(scale{2.5});
  compare_with_differences(renormalize{});
  compare_with_differences(renormalize{.epsilon = .3});
  compare_with_differences(renormalize{.epsilon = .9, .kind = renormalize::guard::at_least});
  compare_with_differences(renormalize{.single = false});
  compare_with_differences(renormalize{1e-20}, scale{2.5});
  compare_with_differences(scale{.5}, renormalize{.epsilon = .1}, scale{3}, renormalize{});
}
