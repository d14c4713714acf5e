// SPDX-License-Identifier: Apache-2.0
#include <expar/router/shared_experts.hpp>

#include <expar/plan/plan.hpp>

#include "../support/adds.hpp"
#include "../support/catch.hpp"
#include "support.hpp"

using Catch::Matchers::WithinAbs;
using router_test::matrix;
using router_test::row_type;
using router_test::sentence_of;

namespace {

expar::host_context const ctx;

constexpr auto sum_over_scale = expar::shared_experts::weight::sum_over_scale;

template <class W>
expar::routes<W> random_routes(router_test::random& rng, int tokens, int k, int experts) {
  expar::routes<W> r(tokens, k);
  for (int t = 0; t < tokens; ++t)
    for (int j = 0; j < k; ++j) {
      if (rng.chance(.8)) r.ids(t, j) = static_cast<std::int32_t>(rng.integer(0, experts - 1));
      r.weights(t, j) = expar::narrow<W>(static_cast<expar::accumulator_t<W>>(rng.uniform()));
    }
  return r;
}

}  // namespace

TEMPLATE_TEST_CASE("shared experts are choices behind those of the router", "[router]", double,
                   float, expar::bfloat16) {
  router_test::random rng(131);
  double const precision = std::is_same_v<TestType, expar::bfloat16> ? 1e-2
                           : std::is_same_v<TestType, float>         ? 1e-6
                                                                     : 1e-15;
  for (int round = 0; round < 100; ++round) {
    int const tokens = static_cast<int>(rng.integer(0, 8)), k = static_cast<int>(rng.integer(0, 5));
    expar::shared_experts shared{10, static_cast<int>(rng.integer(0, 3))};
    if (rng.chance(.5)) shared.kind = sum_over_scale;
    if (rng.chance(.7)) shared.scale = rng.uniform(.5, 3);
    auto const from = random_routes<TestType>(rng, tokens, k, 10);
    expar::routes<TestType> to(tokens, k + shared.count);
    expar::append_shared(ctx, shared, from, to);
    for (int t = 0; t < tokens; ++t) {
      double sum = 0;
      for (int j = 0; j < k; ++j) {
        REQUIRE(to.ids(t, j) == from.ids(t, j));
        REQUIRE(expar::widen(to.weights(t, j)) == expar::widen(from.weights(t, j)));
        if (from.ids(t, j) >= 0) sum += static_cast<double>(expar::widen(from.weights(t, j)));
      }
      for (int i = 0; i < shared.count; ++i) {
        REQUIRE(to.ids(t, k + i) == 10 + i);
        REQUIRE_THAT(
            static_cast<double>(expar::widen(to.weights(t, k + i))),
            WithinAbs((shared.kind == sum_over_scale ? sum : 1) / shared.scale, precision * 10));
      }
    }
  }
}

TEST_CASE("sglang and flashinfer agree once the output is scaled", "[router]") {
  expar::routes<double> plain(1, 2), scaled(1, 2), sglang(1, 3), flashinfer(1, 3);
  plain.ids(0, 0) = scaled.ids(0, 0) = 3, plain.ids(0, 1) = scaled.ids(0, 1) = 1;
  plain.weights(0, 0) = .75, plain.weights(0, 1) = .25;
  scaled.weights(0, 0) = 2.5 * .75, scaled.weights(0, 1) = 2.5 * .25;
  expar::append_shared(ctx, {8, 1, sum_over_scale, 2.5}, plain, sglang);
  expar::append_shared(ctx, {8, 1}, scaled, flashinfer);
  for (int j = 0; j < 3; ++j)
    REQUIRE_THAT(2.5 * sglang.weights(0, j), WithinAbs(flashinfer.weights(0, j), 1e-15));
}

TEST_CASE("the gradient of routes with shared experts agrees with differences", "[router]") {
  router_test::random rng(132);
  for (int round = 0; round < 50; ++round) {
    int const tokens = static_cast<int>(rng.integer(0, 4)), k = static_cast<int>(rng.integer(1, 4));
    expar::shared_experts shared{10, static_cast<int>(rng.integer(0, 3))};
    if (rng.chance(.5)) shared.kind = sum_over_scale, shared.scale = rng.uniform(.5, 3);
    auto from = random_routes<double>(rng, tokens, k, 10);
    expar::routes<double> to(tokens, k + shared.count);
    matrix<double> d_all(tokens, k + shared.count, 1), dw(tokens, k, 2);
    for (double& x : d_all.data) x = rng.normal();
    expar::append_shared_backward(ctx, shared, from.ids, d_all.view(), dw.view());
    auto const loss = [&] {
      expar::append_shared(ctx, shared, from, to);
      double sum = 0;
      for (int t = 0; t < tokens; ++t)
        for (int j = 0; j < k + shared.count; ++j) sum += d_all.get(t, j) * to.weights(t, j);
      return sum;
    };
    for (int t = 0; t < tokens; ++t)
      for (int j = 0; j < k; ++j) {
        double const at = from.weights(t, j);
        from.weights(t, j) = at + 1e-4;
        double slope = loss();
        from.weights(t, j) = at - 1e-4;
        slope = (slope - loss()) / 2e-4;
        from.weights(t, j) = at;
        REQUIRE_THAT(dw.get(t, j), WithinAbs(slope, 1e-10));
      }
  }
}

TEST_CASE("a plan has the shared experts behind the routed ones", "[router]") {
  expar::routes<float> from(3, 1), to(3, 2);
  from.ids(0, 0) = 1;
  expar::append_shared(ctx, {2, 1}, from, to);
  expar::route_plan const plan = expar::make_plan(ctx, to.ids, 3);
  REQUIRE(plan.kept(1) == 1);
  REQUIRE(plan.kept(2) == 3);
}

TEST_CASE("the number of threads does not show in shared experts", "[router]") {
  router_test::random rng(133);
  auto const from = random_routes<float>(rng, 9000, 8, 10);
  expar::host_context const threads(3);
  expar::routes<float> a(9000, 9), b(9000, 9);
  expar::append_shared(ctx, {10, 1, sum_over_scale, 2.5}, from, a);
  expar::append_shared(threads, {10, 1, sum_over_scale, 2.5}, from, b);
  matrix<float> one(9000, 8), three(9000, 8);
  expar::append_shared_backward(ctx, {10, 1, sum_over_scale, 2.5}, from.ids, a.weights, one.view());
  expar::append_shared_backward(threads, {10, 1, sum_over_scale, 2.5}, from.ids, b.weights,
                                three.view());
  for (int t = 0; t < 9000; ++t) REQUIRE(a.weights(t, 8) == b.weights(t, 8));
  REQUIRE(one.data == three.data);
}

TEST_CASE("shared experts refuse what does not fit", "[router]") {
  expar::routes<float> from(2, 2), to(2, 3), wide(2, 4);
  auto const append = [&](expar::shared_experts const& shared, auto const& in, auto& out) {
    return sentence_of([&] { expar::append_shared(ctx, shared, in, out); });
  };
  REQUIRE(append({0, 1}, from, to) == "expar: append_shared: experts is 0; it is at least 1");
  REQUIRE(append({4, -1}, from, to) ==
          "expar: append_shared: count is -1; it is at least 0, and the last id a 32-bit number");
  for (auto const kind : {sum_over_scale, expar::shared_experts::weight::one})
    REQUIRE(append({4, 1, kind, 0}, from, to) ==
            "expar: append_shared: scale is 0; weights are divided by it");
  REQUIRE(append({4, 1}, from, wide) ==
          "expar: append_shared: out ids has extent 4 in dimension 1, but the number of all "
          "choices is 3");
  expar::routes_view const uneven{to.ids, wide.weights};
  REQUIRE(append({4, 1}, from, uneven) ==
          "expar: append_shared: out weights has extent 4 in dimension 1, but the number of all "
          "choices is 3");
  REQUIRE(append({4, 0}, from, from) ==
          "expar: append_shared: out ids overlaps ids in memory; the operation cannot work in "
          "place");
  REQUIRE(sentence_of([&] {
            expar::append_shared_backward(ctx, {4, 1}, from.ids, wide.weights, from.weights);
          }) ==
          "expar: append_shared_backward: d_all has extent 4 in dimension 1, but the number of all "
          "choices is 3");
  double const nan = router_test::qnan;
  REQUIRE(append({4, 1, sum_over_scale, nan}, from, to) ==
          "expar: append_shared: scale is nan; weights are divided by it");
  // An id of a shared expert, and one of none.
  to.ids(0, 0) = 77;
  from.ids(1, 0) = 4;
  REQUIRE(append({4, 1}, from, to) ==
          "expar: append_shared: ids(1, 0) is 4; an expert id is -1 (no expert) or 0 to 3");
  from.ids(1, 0) = -2;
  REQUIRE(append({4, 1}, from, to) ==
          "expar: append_shared: ids(1, 0) is -2; an expert id is -1 (no expert) or 0 to 3");
  REQUIRE(to.ids(0, 0) == 77);
  auto const back = [&](auto const& ids, auto const& d_all) {
    return sentence_of([&] {
      expar::append_shared_backward(ctx, {4, 1}, ids, d_all, from.weights);
    });
  };
  REQUIRE(back(from.ids, to.weights) ==
          "expar: append_shared_backward: ids(1, 0) is -2; an expert id is -1 (no expert) or 0 to "
          "3");
  to.ids(0, 0) = -1;
  REQUIRE(back(to.ids, wide.weights) ==
          "expar: append_shared_backward: d_weights has extent 2 in dimension 1, but the number of "
          "choices in ids is 3");
}

TEST_CASE("shared experts behind ids of any signed integer type", "[router]") {
  router_test::random rng(134);
  auto const from = random_routes<float>(rng, 30, 3, 10);
  expar::shared_experts const shared{10, 2, sum_over_scale, 2};
  router_test::wide_routes wide(30, 3), wide_out(30, 5);
  for (int t = 0; t < 30; ++t)
    for (int j = 0; j < 3; ++j) {
      wide.ids(t, j) = from.ids(t, j);
      wide.weights(t, j) = from.weights(t, j);
    }
  expar::routes<float> out(30, 5);
  expar::append_shared(ctx, shared, from, out);
  expar::append_shared(ctx, shared, wide, wide_out);
  REQUIRE(wide_out.same_as(out));
  expar::routes<float> one(30, 3), other(30, 3);
  expar::append_shared_backward(ctx, shared, from.ids, out.weights, one.weights);
  expar::append_shared_backward(ctx, shared, wide.ids, out.weights, other.weights);
  for (int t = 0; t < 30; ++t)
    for (int j = 0; j < 3; ++j) REQUIRE(one.weights(t, j) == other.weights(t, j));
  matrix<std::int8_t> small(30, 5);
  REQUIRE(sentence_of([&] {
            struct {
              expar::tensor_view<std::int8_t, 2> ids;
              expar::tensor_view<float, 2> weights;
            } const to{small.view(), out.weights};
            expar::append_shared(ctx, expar::shared_experts{128, 2}, from, to);
          }) == "expar: append_shared: out ids of 8 bits cannot name 130 experts");
}

TEST_CASE("the gradient of routes with shared experts is added where the caller says so",
          "[router]") {
  router_test::random rng(135);
  auto const from = random_routes<float>(rng, 30, 3, 10);
  matrix<float> d_all(30, 5);
  for (float& x : d_all.data) x = static_cast<float>(rng.normal());
  expar_test::require_adds<float>(30, 3, [&](auto&& to) {
    expar::append_shared_backward(ctx, {10, 2, sum_over_scale, 2}, from.ids, d_all.view(), to);
  });
}
