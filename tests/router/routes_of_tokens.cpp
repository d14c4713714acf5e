// SPDX-License-Identifier: Apache-2.0
#include <expar/router/routes_of_tokens.hpp>

#include <expar/plan/plan.hpp>

#include "../support/adds.hpp"
#include "../support/catch.hpp"
#include "support.hpp"

using router_test::matrix;
using router_test::row_type;
using router_test::sentence_of;

namespace {

expar::host_context const ctx;

/// Any choice of experts, without repeats in a row, some slots empty.
expar::routes<float> random_choice(router_test::random& rng, int experts, int capacity,
                                   int tokens) {
  expar::routes<float> chosen(experts, capacity);
  for (int e = 0; e < experts; ++e) {
    std::vector<std::int32_t> ids(static_cast<std::size_t>(tokens));
    std::iota(ids.begin(), ids.end(), 0);
    for (int c = 0; c < capacity && !ids.empty(); ++c) {
      auto const at = rng.integer(0, static_cast<std::int64_t>(ids.size()) - 1);
      if (rng.chance(.8)) {
        chosen.ids(e, c) = ids[static_cast<std::size_t>(at)];
        chosen.weights(e, c) = static_cast<float>(rng.integer(1, 64)) / 64;
      }
      ids.erase(ids.begin() + at);
    }
  }
  return chosen;
}

}  // namespace

TEST_CASE("tokens have the routes to the experts that chose them", "[router]") {
  router_test::random rng(111);
  for (int round = 0; round < 200; ++round) {
    int const experts = static_cast<int>(rng.integer(1, 6));
    int const capacity = static_cast<int>(rng.integer(1, 6));
    int const tokens = static_cast<int>(rng.integer(0, 8));
    auto const chosen = random_choice(rng, experts, capacity, tokens);
    expar::variable_routes<expar::bfloat16> routes;
    expar::routes_of_tokens(ctx, chosen, tokens, routes);
    expar::index_t at = 0;
    for (int t = 0; t < tokens; ++t) {
      REQUIRE(routes.offsets(t) == at);
      for (int e = 0; e < experts; ++e)
        for (int c = 0; c < capacity; ++c)
          if (chosen.ids(e, c) == t) {
            REQUIRE(routes.ids(at) == e);
            REQUIRE(expar::widen(routes.weights(at++)) == chosen.weights(e, c));
          }
    }
    REQUIRE(routes.offsets(tokens) == at);
    REQUIRE(routes.ids.extents[0] == at);

    std::vector<float> dw;
    for (expar::index_t i = 0; i < at; ++i) dw.push_back(static_cast<float>(i) + 1);
    matrix<float> dg(experts, capacity, 1);
    expar::gates_of_experts(ctx, chosen, routes, dw, dg.view());
    for (int e = 0; e < experts; ++e)
      for (int c = 0; c < capacity; ++c) {
        float expected = 0;
        for (int t = 0; t < tokens; ++t)
          for (expar::index_t i = routes.offsets(t); i < routes.offsets(t + 1); ++i)
            if (t == chosen.ids(e, c) && routes.ids(i) == e)
              expected = dw[static_cast<std::size_t>(i)];
        REQUIRE(dg.at(e, c) == expected);
      }
  }
}

TEST_CASE("what experts choose has a plan", "[router]") {
  expar::routes<float> chosen(2, 2);
  chosen.ids(0, 0) = 2, chosen.ids(0, 1) = 0, chosen.ids(1, 0) = 2;
  expar::variable_routes<float> variable;
  expar::routes_of_tokens(ctx, chosen, 3, variable);
  expar::routes<float> fixed(3, 2);
  expar::to_fixed(ctx, variable, fixed);
  expar::route_plan const plan = expar::make_plan(ctx, fixed.ids, 2);
  REQUIRE(plan.kept(0) == 2);
  REQUIRE(plan.kept(1) == 1);
  REQUIRE(plan.row(2, 1) == 2);
}

TEST_CASE("routes of tokens refuse what does not fit", "[router]") {
  expar::routes<float> chosen(2, 2), other(2, 3);
  expar::variable_routes<float> routes;
  chosen.ids(0, 0) = 2, chosen.ids(1, 1) = 0;
  auto const make = [&](auto const& from, int tokens) {
    return sentence_of([&] { expar::routes_of_tokens(ctx, from, tokens, routes); });
  };
  REQUIRE(make(chosen, -1) == "expar: routes_of_tokens: tokens is -1; it is at least 0");
  REQUIRE(make(chosen, 2) ==
          "expar: routes_of_tokens: ids(0, 0) is 2; a token id is -1 (no token) or 0 to 1");
  REQUIRE(make(expar::routes_view{chosen.ids, other.weights}, 3) ==
          "expar: routes_of_tokens: weights has extent 3 in dimension 1, but the capacity in ids "
          "is 2");
  REQUIRE(make(chosen, 3) == "nothing was thrown");
  matrix<float> dg(2, 2);
  auto const gates = [&](row_type const& dw, auto const& to) {
    return sentence_of([&] { expar::gates_of_experts(ctx, chosen, routes, dw, to); });
  };
  REQUIRE(gates({1}, dg.view()) ==
          "expar: gates_of_experts: d_weights has extent 1 in dimension 0, but the number of "
          "routes is 2");
  REQUIRE(gates({1, 2}, other.weights) ==
          "expar: gates_of_experts: d_gates has extent 3 in dimension 1, but the capacity in ids "
          "is 2");
  chosen.ids(0, 0) = 1;
  REQUIRE(gates({1, 2}, dg.view()) ==
          "expar: gates_of_experts: token 1 has no route to expert 0, which chose it");
  chosen.ids(0, 0) = 0;
  REQUIRE(gates({1, 2}, dg.view()) ==
          "expar: gates_of_experts: token 0 has no route to expert 0, which chose it");
  std::vector<float> shared{1, 2, 3, 4};
  REQUIRE(sentence_of([&] {
            expar::gates_of_experts(ctx, chosen, routes, expar::make_view(shared.data(), 2),
                                    expar::make_view(shared.data(), 2, 2));
          }) ==
          "expar: gates_of_experts: d_gates overlaps d_weights in memory; the operation cannot "
          "work in place");
}

TEST_CASE("tokens have the routes of ids of any signed integer type, and gates add up",
          "[router]") {
  router_test::random rng(112);
  auto const chosen = random_choice(rng, 4, 5, 8);
  router_test::wide_routes wide(4, 5);
  for (int e = 0; e < 4; ++e)
    for (int c = 0; c < 5; ++c) {
      wide.ids(e, c) = chosen.ids(e, c);
      wide.weights(e, c) = chosen.weights(e, c);
    }
  expar::variable_routes<float> routes, of_wide;
  expar::routes_of_tokens(ctx, chosen, 8, routes);
  expar::routes_of_tokens(ctx, wide, 8, of_wide);
  REQUIRE(routes.ids.extents[0] == of_wide.ids.extents[0]);
  std::vector<float> dw;
  for (expar::index_t i = 0; i < routes.ids.extents[0]; ++i) {
    REQUIRE((routes.ids(i) == of_wide.ids(i) && routes.weights(i) == of_wide.weights(i)));
    dw.push_back(static_cast<float>(rng.integer(-64, 64)) / 64), dw.push_back(99);
  }
  auto const every_other = expar::make_strided_view(dw.data(), routes.ids.extents[0], 2);
  expar_test::require_adds<float>(
      4, 5, [&](auto&& to) { expar::gates_of_experts(ctx, wide, routes, every_other, to); });
}
