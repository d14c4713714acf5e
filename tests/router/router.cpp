// SPDX-License-Identifier: Apache-2.0
#include <expar/router/router.hpp>

#include <array>
#include <type_traits>

#include "../support/catch.hpp"
#include "support.hpp"

using Catch::Matchers::WithinAbs;
using Catch::Matchers::WithinRel;
using router_test::inf;
using router_test::qnan;
using router_test::row_type;
using ids_type = std::vector<std::int32_t>;

namespace {

struct token_routes {
  ids_type ids;
  row_type weights;
};

template <class Router>
token_routes forward(Router const& r, row_type const& z, row_type const& bias = {}) {
  auto const k = static_cast<std::size_t>(r.top_k);
  token_routes out{ids_type(k, 77), row_type(k, 77)};
  row_type scratch(static_cast<std::size_t>(r.forward_scratch()) + 1, 77);
  r.forward(z.data(), bias.empty() ? nullptr : bias.data(), scratch.data(), out.ids.data(),
            out.weights.data());
  REQUIRE(scratch.back() == 77);
  return out;
}

template <class Router>
row_type vjp(Router const& r, row_type const& z, ids_type const& ids, row_type const& dw) {
  row_type dz(z.size(), 77), scratch(static_cast<std::size_t>(r.vjp_scratch()) + 1, 77);
  r.vjp(z.data(), ids.data(), dw.data(), scratch.data(), dz.data());
  REQUIRE(scratch.back() == 77);
  return dz;
}

/// A policy of the user's own: all scores alike, so that each choice weighs the same.
struct unit_score {
  template <class A>
  void operator()(A const* z, A* s, int experts) const {
    for (int e = 0; e < experts; ++e) s[e] = expar::detail::masked(z[e]) ? A(0) : A(1);
  }
  template <class A>
  void vjp(A const*, A const*, A const*, A* dz, int experts) const {
    for (int e = 0; e < experts; ++e) dz[e] = 0;
  }
};
struct logit_key {
  static constexpr bool takes_bias = false;
  template <class A>
  void operator()(A const* z, A const*, A const*, A* keys, int experts) const {
    for (int e = 0; e < experts; ++e) keys[e] = z[e];
  }
};

}  // namespace

TEST_CASE("a router is a composition that enters kernels", "[router]") {
  constexpr expar::router r({.experts = 4, .top_k = 2}, expar::sigmoid_score{}, expar::biased_key{},
                            expar::renormalize{1e-20}, expar::scale{2.5});
  STATIC_REQUIRE(std::is_trivially_copyable_v<decltype(r)>);
  STATIC_REQUIRE(r.experts == 4);
  STATIC_REQUIRE(r.takes_bias);
  auto const got = forward(r, {1, -.5, .25, 2}, {0, .1, .2, -.3});
  REQUIRE(got.ids == ids_type{2, 0});
  REQUIRE_THAT(got.weights[0], WithinAbs(1.086764, 1e-6));
  REQUIRE_THAT(got.weights[1], WithinAbs(1.413236, 1e-6));
}

TEST_CASE("a router takes policies of the user's own", "[router]") {
  expar::router const r({.experts = 5, .top_k = 3}, unit_score{}, logit_key{},
                        expar::renormalize{});
  auto const got = forward(r, {-7, -3, qnan, -1, -inf});
  REQUIRE(got.ids == ids_type{3, 1, 0});
  REQUIRE(got.weights == row_type(3, 1. / 3));
}

TEST_CASE("routes of a token agree with the definition", "[router]") {
  router_test::random rng(5);
  for (int round = 0; round < 1500; ++round) {
    int const experts = static_cast<int>(rng.integer(1, 70));
    int const k = rng.chance(.2) ? experts : static_cast<int>(rng.integer(1, experts));
    row_type const z = router_test::random_row(rng, experts);
    row_type bias;
    for (int e = 0; e < experts; ++e)
      bias.push_back(rng.chance(.05) ? -inf : rng.chance(.05) ? qnan : rng.normal() / 4);
    CAPTURE(round, experts, k);
    auto const check = [&](auto const& r, router_test::reference_router const& reference) {
      auto const got = forward(r, z, r.takes_bias ? bias : row_type{});
      REQUIRE(got.ids == reference.ids(z, bias, k));
      row_type const w = reference.weights(z, got.ids);
      for (std::size_t j = 0; j < w.size(); ++j)
        REQUIRE_THAT(got.weights[j], WithinAbs(w[j], 1e-13));
    };
    using reference = router_test::reference_router;
    expar::router_shape const shape{experts, k};
    check(expar::router(shape, expar::softmax_score{}, expar::score_key{}), reference{});
    check(expar::router(shape, expar::softmax_score{}, expar::score_key{}, expar::renormalize{}),
          reference{.norm = reference::add});
    check(expar::router(
              shape, expar::softmax_score{}, expar::biased_key{},
              expar::renormalize{.epsilon = .2, .kind = expar::renormalize::guard::at_least}),
          reference{.biased = true, .norm = reference::at_least, .epsilon = .2});
    check(expar::router(shape, expar::sigmoid_score{}, expar::score_key{}, expar::scale{3}),
          reference{.sigmoid = true, .factor = 3});
    check(expar::router(shape, expar::sigmoid_score{}, expar::biased_key{},
                        expar::renormalize{1e-20}, expar::scale{2.5}),
          reference{.sigmoid = true,
                    .biased = true,
                    .norm = reference::add,
                    .epsilon = 1e-20,
                    .factor = 2.5});
  }
}

TEST_CASE("the gradient of a token agrees with differences", "[router]") {
  router_test::random rng(6);
  for (int round = 0; round < 300; ++round) {
    int const experts = static_cast<int>(rng.integer(1, 12));
    int const k = rng.chance(.3) ? experts : static_cast<int>(rng.integer(1, experts));
    row_type z = router_test::random_row(rng, experts), dw;
    for (double& x : z)
      if (x == inf) x = 1;
    for (int j = 0; j < k; ++j) dw.push_back(rng.normal());
    row_type const bias(z.size(), 0);
    CAPTURE(round, experts, k);
    auto const check = [&](auto const& r, router_test::reference_router const& reference) {
      ids_type ids = reference.ids(z, bias, k);
      if (rng.chance(.3)) ids[0] = -1;  // a route that the caller has taken out
      auto const loss = [&](row_type const& at) {
        row_type const w = reference.weights(at, ids);
        return std::inner_product(w.begin(), w.end(), dw.begin(), 0.);
      };
      row_type const dz = vjp(r, z, ids, dw);
      for (std::size_t e = 0; e < z.size(); ++e) {
        row_type up = z, down = z;
        up[e] += 1e-5, down[e] -= 1e-5;
        REQUIRE_THAT(dz[e], WithinAbs((loss(up) - loss(down)) / 2e-5, 1e-7));
        if (reference.masked(z[e])) REQUIRE(dz[e] == 0);
      }
    };
    using reference = router_test::reference_router;
    expar::router_shape const shape{experts, k};
    check(expar::router(shape, expar::softmax_score{}, expar::score_key{}, expar::scale{16}),
          reference{.factor = 16});
    check(expar::router(shape, expar::softmax_score{}, expar::score_key{}, expar::renormalize{}),
          reference{.norm = reference::add});
    check(expar::router(
              shape, expar::softmax_score{}, expar::score_key{},
              expar::renormalize{.epsilon = .4, .kind = expar::renormalize::guard::at_least}),
          reference{.norm = reference::at_least, .epsilon = .4});
    check(expar::router(shape, expar::sigmoid_score{}, expar::biased_key{},
                        expar::renormalize{.epsilon = .01}, expar::scale{2.5}),
          reference{.sigmoid = true,
                    .biased = true,
                    .norm = reference::add,
                    .epsilon = .01,
                    .factor = 2.5});
  }
}

TEST_CASE("a row where everything is masked has no routes", "[router]") {
  expar::router const r({.experts = 3, .top_k = 2}, expar::softmax_score{}, expar::score_key{},
                        expar::renormalize{});
  auto const got = forward(r, {qnan, -inf, qnan});
  REQUIRE(got.ids == ids_type{-1, -1});
  REQUIRE(got.weights == row_type{0, 0});
  REQUIRE(vjp(r, {qnan, -inf, qnan}, got.ids, {1, 2}) == row_type{0, 0, 0});
}

TEST_CASE("+inf is selected first and its gradient is finite", "[router]") {
  expar::router const r({.experts = 4, .top_k = 2}, expar::softmax_score{}, expar::score_key{},
                        expar::renormalize{});
  auto const got = forward(r, {1, inf, 2, qnan});
  REQUIRE(got.ids == ids_type{1, 2});  // both others have score 0, and are told apart by logits
  REQUIRE(got.weights == row_type{1, 0});
  for (double d : vjp(r, {1, inf, 2, qnan}, got.ids, {1, 2})) REQUIRE(std::isfinite(d));
}

TEST_CASE("gradients of an expert that a token names twice add up", "[router]") {
  expar::router const r({.experts = 2, .top_k = 2}, expar::sigmoid_score{}, expar::score_key{});
  REQUIRE(vjp(r, {0, 0}, {1, 1}, {1, 2}) == row_type{0, .75});
}

TEST_CASE("the bias changes neither weights nor gradients", "[router]") {
  expar::router const r({.experts = 3, .top_k = 3}, expar::sigmoid_score{}, expar::biased_key{});
  row_type const z{.5, 1, 1.5};
  auto const plain = forward(r, z), biased = forward(r, z, {10, 0, -10});
  REQUIRE(plain.ids == ids_type{2, 1, 0});
  REQUIRE(biased.ids == ids_type{0, 1, 2});
  REQUIRE(biased.weights == row_type{plain.weights[2], plain.weights[1], plain.weights[0]});
}
