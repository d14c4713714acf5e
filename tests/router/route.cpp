// SPDX-License-Identifier: Apache-2.0
#include <expar/router/route.hpp>

#include <expar/router/models.hpp>
#include <expar/router/noise.hpp>

#include <cstring>
#include <memory_resource>

#include "../support/adds.hpp"
#include "../support/catch.hpp"
#include "support.hpp"

using Catch::Matchers::WithinAbs;
using router_test::inf;
using router_test::matrix;
using router_test::qnan;
using router_test::row_type;
using router_test::sentence_of;

namespace {

expar::host_context const ctx;

using reference = router_test::reference_router;

constexpr auto mixtral(int experts, int k) {
  return expar::router({experts, k}, expar::softmax_score{}, expar::score_key{},
                       expar::renormalize{});
}
constexpr auto biased(int experts, int k) {
  return expar::router({experts, k}, expar::sigmoid_score{}, expar::biased_key{},
                       expar::renormalize{1e-20}, expar::scale{2.5});
}
reference const mixtral_reference{.norm = reference::add};
reference const biased_reference{
    .sigmoid = true, .biased = true, .norm = reference::add, .epsilon = 1e-20, .factor = 2.5};

/// Half a unit in the last place, and what float loses on the way.
template <class T>
constexpr double precision = 1e-6;
template <>
inline constexpr double precision<double> = 1e-13;
template <>
inline constexpr double precision<expar::half> = 1e-3;
template <>
inline constexpr double precision<expar::bfloat16> = 1e-2;
template <>
inline constexpr double precision<router_test::fixed16> = 6e-4;

template <class T>
matrix<T> random_logits(router_test::random& rng, int tokens, int experts, int gap) {
  matrix<T> z(tokens, experts, gap);
  for (int t = 0; t < tokens; ++t) {
    row_type const row = router_test::random_row(rng, experts);
    for (int e = 0; e < experts; ++e) z.set(t, e, row[static_cast<std::size_t>(e)]);
  }
  return z;
}

/// Equal, but for keys that only rounding to float has made equal, or has swapped.
void require_same_ids(reference const& by, row_type const& z, row_type const& bias,
                      std::vector<std::int32_t> const& got, double slack) {
  auto const expected = by.ids(z, bias, static_cast<int>(got.size()));
  row_type const keys = by.keys(z, bias);
  auto const key = [&](std::int32_t e) { return keys[static_cast<std::size_t>(e)]; };
  for (std::size_t j = 0; j < got.size(); ++j) {
    if (got[j] == expected[j]) continue;
    REQUIRE(got[j] >= 0);
    REQUIRE(expected[j] >= 0);
    REQUIRE(key(got[j]) != key(expected[j]));
    REQUIRE_THAT(key(got[j]), WithinAbs(key(expected[j]), slack));
  }
}

template <class Logit, class Weight>
void compare_with_reference(std::uint64_t seed, int rounds) {
  router_test::random rng(seed);
  for (int round = 0; round < rounds; ++round) {
    int const tokens = static_cast<int>(rng.integer(0, 40));
    int const experts = static_cast<int>(rng.integer(1, 70));
    int const k = rng.chance(.15) ? experts : static_cast<int>(rng.integer(1, experts));
    auto z = random_logits<Logit>(rng, tokens, experts, static_cast<int>(rng.integer(0, 3)));
    row_type bias;
    for (int e = 0; e < experts; ++e) bias.push_back(rng.uniform(-.3, .3));
    CAPTURE(round, tokens, experts, k);
    auto const check = [&](auto const& r, reference const& by) {
      expar::routes<Weight> routes(tokens, k);
      if constexpr (std::remove_reference_t<decltype(r)>::takes_bias)
        expar::route(ctx, r, z.view(), bias, routes);
      else
        expar::route(ctx, r, z.view(), routes);
      for (int t = 0; t < tokens; ++t) {
        std::vector<std::int32_t> const got(routes.ids.row(t), routes.ids.row(t) + k);
        require_same_ids(by, z.row(t), bias, got, std::is_same_v<Logit, double> ? 1e-14 : 1e-6);
        row_type const w = by.weights(z.row(t), got);
        for (int j = 0; j < k; ++j) {
          double const x = static_cast<double>(expar::widen(routes.weights(t, j)));
          double const expected = w[static_cast<std::size_t>(j)];
          double const accuracy =
              std::max(precision<Weight>, precision<expar::accumulator_t<Logit>>);
          REQUIRE_THAT(x, WithinAbs(expected, accuracy * (1 + expected)));
        }
      }
    };
    check(mixtral(experts, k), mixtral_reference);
    check(biased(experts, k), biased_reference);
  }
}

/// route_backward against differences of the reference, the ids taken as constants.
template <class Logit>
void compare_gradients(std::uint64_t seed, double accuracy) {
  router_test::random rng(seed);
  for (int round = 0; round < 40; ++round) {
    int const tokens = static_cast<int>(rng.integer(0, 6));
    int const experts = static_cast<int>(rng.integer(1, 12));
    int const k = rng.chance(.2) ? experts : static_cast<int>(rng.integer(1, experts));
    auto z = random_logits<Logit>(rng, tokens, experts, 2);
    for (int t = 0; t < tokens; ++t)
      for (int e = 0; e < experts; ++e)
        if (z.get(t, e) == inf) z.set(t, e, 1);
    matrix<Logit> dw(tokens, k, 1);
    for (int t = 0; t < tokens; ++t)
      for (int j = 0; j < k; ++j) dw.set(t, j, static_cast<double>(rng.integer(-8, 8)) / 4);
    auto const check = [&](auto const& r, reference const& by) {
      expar::routes<double> routes(tokens, k);
      expar::route(ctx, r, z.view(), expar::no_bias, routes);
      matrix<double> dz(tokens, experts, 3);
      for (double& x : dz.data) x = 77;
      expar::route_backward(ctx, r, z.view(), routes, dw.view(), dz.view());
      for (int t = 0; t < tokens; ++t) {
        std::vector<std::int32_t> const ids(routes.ids.row(t), routes.ids.row(t) + k);
        row_type const row = z.row(t), d = dw.row(t);
        auto const loss = [&](row_type const& at) {
          row_type const w = by.weights(at, ids);
          return std::inner_product(w.begin(), w.end(), d.begin(), 0.);
        };
        for (int e = 0; e < experts; ++e) {
          row_type up = row, down = row;
          up[static_cast<std::size_t>(e)] += 1e-5, down[static_cast<std::size_t>(e)] -= 1e-5;
          REQUIRE_THAT(dz.get(t, e), WithinAbs((loss(up) - loss(down)) / 2e-5, accuracy));
        }
        for (int e = experts; e < experts + 3; ++e) REQUIRE(dz.at(t, e) == 77);
      }
    };
    check(mixtral(experts, k), mixtral_reference);
    check(biased(experts, k), biased_reference);
  }
}

}  // namespace

TEST_CASE("routes agree with the definition for every element type", "[router]") {
  compare_with_reference<double, double>(1, 150);
  compare_with_reference<float, float>(2, 150);
  compare_with_reference<expar::bfloat16, expar::bfloat16>(3, 150);
  compare_with_reference<expar::half, float>(4, 80);
  compare_with_reference<float, expar::half>(5, 80);
  compare_with_reference<float, double>(6, 40);
  compare_with_reference<double, expar::bfloat16>(7, 40);
  compare_with_reference<router_test::fixed16, router_test::fixed16>(8, 80);
}

TEST_CASE("gradients agree with differences for every element type", "[router]") {
  compare_gradients<double>(1, 1e-7);
  compare_gradients<float>(2, 2e-5);
  compare_gradients<expar::bfloat16>(3, 2e-5);
  compare_gradients<router_test::fixed16>(4, 2e-5);
}

TEST_CASE("the number of threads does not show in routes", "[router]") {
  router_test::random rng(9);
  auto z = random_logits<float>(rng, 3000, 40, 1);
  std::vector<float> bias;
  for (int e = 0; e < 40; ++e) bias.push_back(static_cast<float>(rng.normal()));
  auto const r = biased(40, 7);
  matrix<float> dw(3000, 7);
  for (float& x : dw.data) x = static_cast<float>(rng.normal());
  expar::routes one(3000, 7), four(3000, 7);
  matrix<float> d_one(3000, 40), d_four(3000, 40);
  expar::host_context const threads(4);
  expar::route(ctx, r, z.view(), bias, one);
  expar::route(threads, r, z.view(), bias, four);
  expar::route_backward(ctx, r, z.view(), one, dw.view(), d_one.view());
  expar::route_backward(threads, r, z.view(), one, dw.view(), d_four.view());
  auto const same = [](auto const& a, auto const& b) {
    return std::memcmp(a.data, b.data, static_cast<std::size_t>(a.size()) * sizeof *a.data) == 0;
  };
  REQUIRE(same(one.ids, four.ids));
  REQUIRE(same(one.weights, four.weights));
  REQUIRE(same(d_one.view(), d_four.view()));
}

TEST_CASE("gaps between rows of routes and logits are left alone", "[router]") {
  matrix<float> z(std::vector<row_type>{{1, 2, 3}, {3, 2, 1}}, 2);
  matrix<float> w(2, 2, 3);
  std::vector<std::int32_t> ids(14, 77);
  for (float& x : w.data) x = 77;
  expar::routes_view const routes{expar::make_view(ids.data(), 2, 2, 7), w.view()};
  expar::route(ctx, mixtral(3, 2), z.view(), routes);
  REQUIRE(ids == std::vector<std::int32_t>{2, 1, 77, 77, 77, 77, 77, 0, 1, 77, 77, 77, 77, 77});
  for (int t = 0; t < 2; ++t)
    for (int j = 2; j < 5; ++j) REQUIRE(w.at(t, j) == 77);
}

TEST_CASE("scores that float cannot tell apart are told apart by their logits", "[router]") {
  matrix<float> z(std::vector<row_type>{{-200, -150, 0, -201}});
  expar::routes routes(1, 3);
  expar::route(ctx, mixtral(4, 3), z.view(), routes);
  REQUIRE(routes.ids(0, 0) == 2);
  REQUIRE(routes.ids(0, 1) == 1);
  REQUIRE(routes.ids(0, 2) == 0);
}

TEST_CASE("no tokens are no work", "[router]") {
  expar::routes routes(0, 2);
  expar::tensor_view<float, 2> none{nullptr, {0, 4}, {4, 1}};
  expar::route(ctx, mixtral(4, 2), none, routes);
  expar::route_backward(ctx, mixtral(4, 2), none, routes, routes.weights, none);
}

TEST_CASE("no bias is a bias of zeros", "[router]") {
  matrix<float> z(std::vector<row_type>{{1, 2, 3}, {3, 2, 1}});
  std::vector<float> const zeros(3, 0.f);
  expar::routes a(2, 2), b(2, 2);
  expar::route(ctx, biased(3, 2), z.view(), zeros, a);
  expar::route(ctx, biased(3, 2), z.view(), expar::no_bias, b);
  for (int t = 0; t < 2; ++t)
    for (int j = 0; j < 2; ++j) {
      REQUIRE(a.ids(t, j) == b.ids(t, j));
      REQUIRE(a.weights(t, j) == b.weights(t, j));
    }
}

TEST_CASE("routing takes its memory from the context and gives it back", "[router]") {
  struct counting : std::pmr::memory_resource {
    std::size_t held = 0;
    int calls = 0;
    void* do_allocate(std::size_t bytes, std::size_t alignment) override {
      held += bytes, ++calls;
      return std::pmr::new_delete_resource()->allocate(bytes, alignment);
    }
    void do_deallocate(void* p, std::size_t bytes, std::size_t alignment) override {
      held -= bytes;
      std::pmr::new_delete_resource()->deallocate(p, bytes, alignment);
    }
    bool do_is_equal(memory_resource const& other) const noexcept override {
      return this == &other;
    }
  } memory;
  expar::host_context const own(1, &memory);
  matrix<float> z(std::vector<row_type>{{1, 2, 3}});
  std::vector<float> const bias(3, 0.f);
  expar::routes routes(1, 2);
  auto* const before = std::pmr::set_default_resource(std::pmr::null_memory_resource());
  expar::route(own, biased(3, 2), z.view(), bias, routes);
  expar::route_backward(own, biased(3, 2), z.view(), routes, routes.weights, z.view());
  std::pmr::set_default_resource(before);
  REQUIRE(memory.calls == 0);
  std::vector<expar::half> const other_bias(3, expar::half{0});
  expar::route(own, biased(3, 2), z.view(), other_bias, routes);  // widened in memory
  REQUIRE(memory.calls == 1);
  matrix<float> wide(1, 50000);  // more than the stack is asked for
  expar::route(own, mixtral(50000, 2), wide.view(), routes);
  REQUIRE(memory.calls == 2);
  REQUIRE(memory.held == 0);
}

TEST_CASE("routing refuses what does not fit", "[router]") {
  matrix<float> z(std::vector<row_type>{{1, 2, 3, 4}, {5, 6, 7, 8}});
  expar::routes good(2, 2);
  std::vector<float> bias(4);
  auto const route = [&](auto const& r, auto const& logits, auto const& b, auto&& routes) {
    return sentence_of([&] { expar::route(ctx, r, logits, b, routes); });
  };
  auto const none = expar::no_bias;
  REQUIRE(route(mixtral(4, 0), z.view(), none, good) ==
          "expar: route: top_k is 0; it is at least 1");
  REQUIRE(route(mixtral(4, 5), z.view(), none, good) ==
          "expar: route: top_k is 5, but there are only 4 experts");
  REQUIRE(route(mixtral(5, 2), z.view(), none, good) ==
          "expar: route: logits has extent 4 in dimension 1, but the router's number of experts "
          "is 5");
  REQUIRE(route(mixtral(4, 2), expar::make_view<float>(nullptr, 2, 4), none, good) ==
          "expar: route: logits has 8 elements but its data is null");
  auto const grouped = [&](int groups, int top_groups, int best_of) {
    expar::router const r({4, 2}, expar::sigmoid_score{}, expar::biased_key{},
                          expar::group_limited{groups, top_groups, best_of});
    return route(r, z.view(), none, good);
  };
  REQUIRE(grouped(2, 1, 2) == "nothing was thrown");
  REQUIRE(grouped(3, 1, 1) == "expar: route: groups is 3; it divides the 4 experts");
  REQUIRE(grouped(0, 1, 1) == "expar: route: groups is 0; it divides the 4 experts");
  REQUIRE(grouped(2, 3, 1) ==
          "expar: route: top_groups is 3; it is at least 1 and at most the 2 groups");
  REQUIRE(grouped(2, 0, 1) ==
          "expar: route: top_groups is 0; it is at least 1 and at most the 2 groups");
  REQUIRE(grouped(4, 1, 2) ==
          "expar: route: best_of is 2; it is at least 1 and at most the 1 experts of a group");
  expar::routes shorter(1, 2), wider(2, 3);
  REQUIRE(route(mixtral(4, 2), z.view(), none, shorter) ==
          "expar: route: ids has extent 1 in dimension 0, but the number of tokens is 2");
  REQUIRE(route(mixtral(4, 2), z.view(), none, wider) ==
          "expar: route: ids has extent 3 in dimension 1, but top_k is 2");
  REQUIRE(route(mixtral(4, 2), z.view(), none, expar::routes_view{good.ids, shorter.weights}) ==
          "expar: route: weights has extent 1 in dimension 0, but the number of tokens is 2");
  REQUIRE(route(mixtral(4, 2), z.view(), none, expar::routes_view{good.ids, wider.weights}) ==
          "expar: route: weights has extent 3 in dimension 1, but top_k is 2");
  REQUIRE(route(mixtral(4, 2), z.view(), none,
                expar::routes_view{expar::make_view(good.ids.data, 2, 2, 1), good.weights}) ==
          "expar: route: ids has rows of 2 elements only 1 elements apart; rows that are written "
          "must not overlap");
  bias.pop_back();
  REQUIRE(route(biased(4, 2), z.view(), bias, good) ==
          "expar: route: bias has extent 3 in dimension 0, but the router's number of experts is "
          "4");
  REQUIRE(route(biased(4, 2), z.view(), expar::make_view<float>(nullptr, 4), good) ==
          "expar: route: bias has 4 elements but its data is null");
}

TEST_CASE("the adjoint of routing refuses what does not fit", "[router]") {
  matrix<float> z(std::vector<row_type>{{1, 2, 3, 4}, {5, 6, 7, 8}}), dz(2, 4);
  expar::routes good(2, 2), shorter(1, 2), wider(2, 3);
  auto const backward = [&](auto const& r, auto const& logits, auto const& routes, auto const& dw,
                            auto const& d) {
    return sentence_of([&] { expar::route_backward(ctx, r, logits, routes, dw, d); });
  };
  auto const r = mixtral(4, 2);
  REQUIRE(backward(mixtral(4, 0), z.view(), good, good.weights, dz.view()) ==
          "expar: route_backward: top_k is 0; it is at least 1");
  REQUIRE(backward(mixtral(4, 5), z.view(), good, good.weights, dz.view()) ==
          "expar: route_backward: top_k is 5, but there are only 4 experts");
  REQUIRE(backward(mixtral(3, 2), z.view(), good, good.weights, dz.view()) ==
          "expar: route_backward: logits has extent 4 in dimension 1, but the router's number of "
          "experts is 3");
  REQUIRE(backward(r, z.view(), shorter, good.weights, dz.view()) ==
          "expar: route_backward: ids has extent 1 in dimension 0, but the number of tokens is 2");
  REQUIRE(backward(r, z.view(), wider, good.weights, dz.view()) ==
          "expar: route_backward: ids has extent 3 in dimension 1, but top_k is 2");
  REQUIRE(backward(r, z.view(), good, shorter.weights, dz.view()) ==
          "expar: route_backward: d_weights has extent 1 in dimension 0, but the number of tokens "
          "is 2");
  REQUIRE(backward(r, z.view(), good, wider.weights, dz.view()) ==
          "expar: route_backward: d_weights has extent 3 in dimension 1, but top_k is 2");
  REQUIRE(backward(r, z.view(), good, good.weights, expar::make_view(dz.data.data(), 1, 4)) ==
          "expar: route_backward: d_logits has extent 1 in dimension 0, but the number of tokens "
          "is 2");
  REQUIRE(backward(r, z.view(), good, good.weights, expar::make_view(dz.data.data(), 2, 3)) ==
          "expar: route_backward: d_logits has extent 3 in dimension 1, but the router's number of "
          "experts is 4");
  REQUIRE(backward(r, z.view(), good, good.weights, expar::make_view<float>(nullptr, 2, 4)) ==
          "expar: route_backward: d_logits has 8 elements but its data is null");
  dz.set(0, 0, 77);
  good.ids(1, 1) = 4;
  REQUIRE(backward(r, z.view(), good, good.weights, dz.view()) ==
          "expar: route_backward: ids(1, 1) is 4; an expert id is -1 (no expert) or 0 to 3");
  good.ids(1, 0) = -2;
  REQUIRE(backward(r, z.view(), good, good.weights, dz.view()) ==
          "expar: route_backward: ids(1, 0) is -2; an expert id is -1 (no expert) or 0 to 3");
  REQUIRE(dz.get(0, 0) == 77);
}

TEST_CASE("routing refuses memory that would be read after it is written", "[router]") {
  std::vector<float> memory(64);
  auto const logits = expar::make_view(memory.data(), 4, 8);
  auto const shifted = expar::make_view(memory.data() + 8, 4, 8);
  std::vector<std::int32_t> ids(8);
  expar::routes_view<float> const on_logits{expar::make_view(ids.data(), 4, 2),
                                            expar::make_view(memory.data(), 4, 2)};
  REQUIRE(router_test::sentence_of([&] { expar::route(ctx, mixtral(8, 2), logits, on_logits); }) ==
          "expar: route: weights overlaps logits in memory; the operation cannot work in place");
  expar::routes<float> routes(4, 2);
  REQUIRE(router_test::sentence_of([&] {
            expar::route_backward(ctx, mixtral(8, 2), logits, routes, routes.weights, shifted);
          }).find("expar: route_backward: d_logits overlaps logits") == 0);
  expar::route_backward(ctx, mixtral(8, 2), logits, routes, routes.weights, logits);
}

TEST_CASE("routing asks policies whether their values and tensors fit", "[router]") {
  matrix<float> z(4, 8);
  expar::routes<float> routes(4, 2);
  std::vector<float> few(8);
  expar::given_numbers const one_token{expar::make_view(few.data(), 1, 8)};
  auto const sentence = [&](auto const& r) {
    return router_test::sentence_of([&] { expar::route(ctx, r, z.view(), routes); });
  };
  namespace models = expar::models;
  std::string const wrong =
      "expar: route: given numbers has extent 1 in dimension 0, but the number of tokens is 4";
  REQUIRE(sentence(models::fairscale_top2(8, expar::add_noise{1, one_token})) == wrong);
  REQUIRE(sentence(expar::router({8, 2}, expar::softmax_score{},
                                 expar::perturbed_key{expar::add_noise{1, one_token}})) == wrong);
  REQUIRE(sentence(models::phi_3_5_moe(8, .01, one_token, one_token, one_token)) == wrong);
  std::vector<std::int32_t> const classes{0, 0, 0, 9}, bounds{0, 8};
  expar::experts_of_class const modality{expar::make_view(classes.data(), 4),
                                         expar::make_view(bounds.data(), 2)};
  expar::router const by_class({8, 2}, modality, expar::softmax_score{});
  REQUIRE(sentence(by_class) ==
          "expar: route: classes(3) is 9; a class is -1 (all experts) or 0 to 0");
  matrix<float> dz(4, 8);
  REQUIRE(router_test::sentence_of([&] {
            expar::route_backward(ctx, by_class, z.view(), routes, routes.weights, dz.view());
          }) == "expar: route_backward: classes(3) is 9; a class is -1 (all experts) or 0 to 0");
}

TEST_CASE("routes have ids of any signed integer type, and gradients that are added", "[router]") {
  router_test::random rng(901);
  matrix<float> z(40, 8), dw(40, 2), one(40, 8), other(40, 8);
  for (auto* m : {&z, &dw})
    for (float& x : m->data) x = static_cast<float>(rng.normal());
  expar::routes<float> routes(40, 2);
  router_test::wide_routes wide(40, 2);
  auto const router = mixtral(8, 2);
  expar::route(ctx, router, z.view(), routes);
  expar::route(ctx, router, z.view(), wide);
  REQUIRE(wide.same_as(routes));
  expar::route_backward(ctx, router, z.view(), routes, dw.view(), one.view());
  expar::route_backward(ctx, router, z.view(), wide, dw.view(), other.view());
  REQUIRE(one.data == other.data);
  expar_test::require_adds<float>(40, 8, [&](auto&& to) {
    expar::route_backward(ctx, router, z.view(), routes, dw.view(), to);
  });
  wide.ids(3, 1) = std::int64_t{1} << 32;
  REQUIRE(router_test::sentence_of(
              [&] { expar::route_backward(ctx, router, z.view(), wide, dw.view(), one.view()); }) ==
          "expar: route_backward: ids(3, 1) is 4294967296; an expert id is -1 (no expert) or 0 to "
          "2147483646");
}
