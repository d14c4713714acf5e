// SPDX-License-Identifier: Apache-2.0
#include <expar/router/importance_loss.hpp>

#include "../support/catch.hpp"
#include "cases_data.hpp"
#include "differences.hpp"
#include "load_reference.hpp"
#include "support.hpp"

using Catch::Matchers::WithinAbs;
using expar::only;
using router_test::mask;
using router_test::matrix;
using router_test::row_type;
using router_test::sentence_of;
using router_test::variation;

namespace {

expar::host_context const ctx;
expar::softmax_score const softmax;
constexpr expar::cv_squared_options population{.ddof = 0, .epsilon = 0};
constexpr expar::cv_squared_options unbiased{.ddof = 1, .epsilon = 1e-10};

template <class T>
constexpr double accuracy = std::is_same_v<T, double> ? 1e-12 : 1e-5;

row_type sums_of(matrix<double>& z, mask const& valid) {
  row_type sums(static_cast<std::size_t>(z.columns), 0);
  for (expar::index_t t = 0; t < z.rows; ++t) {
    row_type const p = router_test::reference_router{}.scores(z.row(t));
    for (std::size_t e = 0; e < p.size(); ++e)
      if (valid[static_cast<std::size_t>(t)]) sums[e] += p[e];
  }
  return sums;
}

}  // namespace

TEMPLATE_TEST_CASE("V-MoE: importance of clean probabilities", "[router][cases]", double, float) {
  using T = TestType;
  row_type const expected{1.9162227692750542, 1.0754143702802392, 0.8268359468074147,
                          0.18152691363729204};
  cases::matrix const d_expected{
      {0.1186303669991548, -0.050616235140576414, -0.047602253639157543, -0.020411878219420834},
      {0.08463162181030683, -0.040240585823435704, -0.009862566018403608, -0.0345284699684675},
      {0.09633136985491274, -0.023687647347220685, -0.05554944962217803, -0.01709427288551402},
      {0.11688311607215614, -0.004992592795794899, -0.08255638128580862, -0.029334141990552603}};
  matrix<T> z(cases::logits), dz(4, 4);
  row_type sums(4);
  expar::score_importance(ctx, softmax, z.view(), sums);
  for (std::size_t e = 0; e < 4; ++e) REQUIRE_THAT(sums[e], WithinAbs(expected[e], accuracy<T>));
  expar::cv_squared_options const tensor2tensor{.ddof = 0, .epsilon = 1e-10};
  REQUIRE_THAT(expar::cv_squared(ctx, sums, population),
               WithinAbs(0.3862588681502489, accuracy<T>));
  REQUIRE_THAT(expar::cv_squared(ctx, sums, tensor2tensor),
               WithinAbs(0.386258868111623, accuracy<T>));
  expar::score_importance_loss_backward(ctx, softmax, z.view(), sums, tensor2tensor, dz.view());
  for (std::size_t t = 0; t < 4; ++t)
    for (std::size_t e = 0; e < 4; ++e)
      REQUIRE_THAT(dz.get(static_cast<int>(t), static_cast<int>(e)),
                   WithinAbs(d_expected[t][e], accuracy<T>));
}

TEMPLATE_TEST_CASE("Shazeer: importance of the weights of routes", "[router][cases]", double,
                   float) {
  using T = TestType;
  std::vector<std::int32_t> const ids{0, 3, 1, 0, 0, 1, 0, 2};
  matrix<T> weights(cases::matrix{{0.7968433994429924, 0.20315660055700757},
                                  {0.8567537559103617, 0.14324624408963815},
                                  {0.7349538545613784, 0.26504614543862154},
                                  {0.8036399067191415, 0.19636009328085846}});
  row_type const expected{2.4786834048131503, 1.1217999013489832, 0.19636009328085846,
                          0.20315660055700757};
  row_type sums(4);
  expar::weight_importance(ctx, expar::make_view(ids.data(), 4, 2), weights.view(), sums);
  for (std::size_t e = 0; e < 4; ++e) REQUIRE_THAT(sums[e], WithinAbs(expected[e], accuracy<T>));
  REQUIRE_THAT(expar::cv_squared(ctx, sums, {.ddof = 1, .epsilon = 1e-10}),
               WithinAbs(1.1607121100658784, accuracy<T>));
  REQUIRE_THAT(expar::cv_squared(ctx, sums, {.ddof = 0, .epsilon = 1e-10}),
               WithinAbs(0.8705340825494087, accuracy<T>));
}

TEST_CASE("importance and the gradient of its loss agree with the definition", "[router]") {
  router_test::random rng(330);
  for (int round = 0; round < 100; ++round) {
    int const tokens = static_cast<int>(rng.integer(0, round < 90 ? 6 : 300));
    int const experts = static_cast<int>(rng.integer(1, 8));
    matrix<double> z = router_test::random_logits(rng, tokens, experts);
    mask const valid = router_test::random_mask(rng, tokens);
    row_type sums(static_cast<std::size_t>(experts), 77);
    expar::score_importance(ctx, softmax, only(valid, z.view()), sums);
    row_type const expected = sums_of(z, valid);
    for (std::size_t e = 0; e < sums.size(); ++e)
      REQUIRE_THAT(sums[e], WithinAbs(expected[e], 1e-11));
    if (tokens > 6) continue;
    expar::cv_squared_options const o{2, rng.chance(.5) ? 0 : 1, rng.chance(.5) ? 1e-10 : .5};
    auto dz = router_test::gradient_of(tokens, experts, [&](auto&& d) {
      expar::score_importance_loss_backward(ctx, softmax, only(valid, z.view()), sums, o, d);
    });
    router_test::require_gradient(z, dz, 0, [&] { return variation(sums_of(z, valid), o); });
  }
}

TEST_CASE("importance of weights and the gradient of its loss agree with the definition",
          "[router]") {
  router_test::random rng(331);
  for (int round = 0; round < 100; ++round) {
    int const tokens = static_cast<int>(rng.integer(0, 6)), k = static_cast<int>(rng.integer(1, 4));
    int const experts = static_cast<int>(rng.integer(2, 6));
    matrix<double> w(tokens, k, 1);
    for (double& x : w.data) x = rng.uniform(.1, 1);
    std::vector<std::int32_t> ids;
    for (int i = 0; i < tokens * k; ++i)
      ids.push_back(static_cast<std::int32_t>(rng.integer(round % 10 == 0 ? -1 : 0, experts - 1)));
    if (round % 20 == 0) ids.assign(ids.size(), -1);
    mask const valid = router_test::random_mask(rng, tokens);
    auto const definition = [&] {
      row_type sums(static_cast<std::size_t>(experts), 0);
      for (int t = 0; t < tokens; ++t)
        for (int j = 0; j < k; ++j)
          if (auto const e = ids[static_cast<std::size_t>(t * k + j)];
              e >= 0 && valid[static_cast<std::size_t>(t)])
            sums[static_cast<std::size_t>(e)] += w.get(t, j);
      return sums;
    };
    auto const i = expar::make_view(ids.data(), tokens, k);
    row_type sums(static_cast<std::size_t>(experts));
    expar::weight_importance(ctx, only(valid, i), w.view(), sums);
    row_type const expected = definition();
    for (std::size_t e = 0; e < sums.size(); ++e)
      REQUIRE_THAT(sums[e], WithinAbs(expected[e], 1e-13));
    auto dw = router_test::gradient_of(tokens, k, [&](auto&& d) {
      expar::weight_importance_loss_backward(ctx, only(valid, i), sums, unbiased, d);
    });
    router_test::require_gradient(w, dw, 0, [&] { return variation(definition(), unbiased); });
  }
}

TEST_CASE("importance of narrow logits, and masks of all tokens", "[router]") {
  matrix<expar::bfloat16> z(std::vector<row_type>{{1, 2, 0}, {0, 1, 3}});
  matrix<double> wide(std::vector<row_type>{{1, 2, 0}, {0, 1, 3}});
  row_type a(3), b(3), none(3, 77);
  expar::score_importance(ctx, softmax, z.view(), a);
  expar::score_importance(ctx, softmax, wide.view(), b);
  for (std::size_t e = 0; e < 3; ++e) REQUIRE_THAT(a[e], WithinAbs(b[e], 1e-6));
  expar::score_importance(ctx, softmax, only(mask{0, 0}, wide.view()), none);
  REQUIRE(none == row_type{0, 0, 0});
}

TEST_CASE("the number of threads does not show in importance", "[router]") {
  router_test::random rng(332);
  matrix<float> z(33333, 7), one(33333, 7), three(33333, 7);
  for (float& x : z.data) x = static_cast<float>(rng.normal());
  expar::host_context const threads(3);
  row_type a(7), b(7);
  expar::score_importance(ctx, softmax, z.view(), a);
  expar::score_importance(threads, softmax, z.view(), b);
  REQUIRE(a == b);
  expar::score_importance_loss_backward(ctx, softmax, z.view(), a, population, one.view());
  expar::score_importance_loss_backward(threads, softmax, z.view(), a, population, three.view());
  REQUIRE(one.data == three.data);

  matrix<float> w(33333, 2), dw1(33333, 2), dw3(33333, 2);
  std::vector<std::int32_t> ids;
  for (float& x : w.data) {
    x = static_cast<float>(rng.uniform(0, 1));
    ids.push_back(static_cast<std::int32_t>(rng.integer(-1, 6)));
  }
  auto const i = expar::make_view(ids.data(), 33333, 2);
  expar::weight_importance(ctx, i, w.view(), a);
  expar::weight_importance(threads, i, w.view(), b);
  REQUIRE(a == b);
  expar::weight_importance_loss_backward(ctx, i, a, unbiased, dw1.view());
  expar::weight_importance_loss_backward(threads, i, a, unbiased, dw3.view());
  REQUIRE(dw1.data == dw3.data);
}

TEST_CASE("importance of 64-bit ids, to sums that stand apart", "[router]") {
  std::vector<std::int64_t> const ids{0, 2, -1, 0};
  std::vector<std::int32_t> const narrow{0, 2, -1, 0};
  matrix<double> w(std::vector<row_type>{{1, 2}, {4, 8}}), dw(2, 2), same(2, 2);
  row_type memory(6, 77);
  auto const sums = expar::make_strided_view(memory.data(), 3, 2);
  auto const i = expar::make_view(ids.data(), 2, 2);
  expar::weight_importance(ctx, i, w.view(), sums);
  REQUIRE(memory == row_type{9, 77, 0, 77, 2, 77});
  expar::weight_importance_loss_backward(ctx, i, sums, population, dw.view());
  expar::weight_importance_loss_backward(ctx, expar::make_view(narrow.data(), 2, 2),
                                         row_type{9, 0, 2}, population, same.view());
  REQUIRE(dw.data == same.data);
}

TEST_CASE("importance refuses what does not fit", "[router]") {
  matrix<float> z(std::vector<row_type>{{1, 2, 3}, {3, 2, 1}}), dz(2, 3), w(2, 1);
  row_type two(2), three(3);
  std::vector<std::int32_t> ids{0, 3};
  auto const i = expar::make_view(ids.data(), 2, 1);
  REQUIRE(
      sentence_of([&] { expar::score_importance(ctx, softmax, z.view(), two); }) ==
      "expar: score_importance: sums has extent 2 in dimension 0, but the number of experts is 3");
  REQUIRE(
      sentence_of([&] { expar::score_importance(ctx, softmax, only(mask{1}, z.view()), three); }) ==
      "expar: score_importance: valid has extent 1 in dimension 0, but the number of tokens is 2");
  REQUIRE(
      sentence_of([&] {
        expar::score_importance_loss_backward(ctx, softmax, z.view(), two, population, dz.view());
      }) ==
      "expar: score_importance_loss_backward: sums has extent 2 in dimension 0, but the number of "
      "experts is 3");
  REQUIRE(
      sentence_of([&] {
        expar::score_importance_loss_backward(ctx, softmax, z.view(), three, population,
                                              expar::make_view(dz.data.data(), 1, 3));
      }) ==
      "expar: score_importance_loss_backward: d_logits has extent 1 in dimension 0, but the number "
      "of tokens is 2");
  REQUIRE(sentence_of([&] { expar::weight_importance(ctx, i, w.view(), three); }) ==
          "expar: weight_importance: ids(1, 0) is 3; an expert id is -1 (no expert) or 0 to 2");
  REQUIRE(
      sentence_of([&] { expar::weight_importance(ctx, i, z.view(), three); }) ==
      "expar: weight_importance: weights has extent 3 in dimension 1, but the number of choices "
      "is 1");
  REQUIRE(sentence_of([&] {
            expar::weight_importance_loss_backward(ctx, i, three, population, w.view());
          }) ==
          "expar: weight_importance_loss_backward: ids(1, 0) is 3; an expert id is -1 (no expert) "
          "or 0 to 2");
}
