// SPDX-License-Identifier: Apache-2.0
#include <expar/router/logits/cosine_scale.hpp>

#include <expar/router/logits/normalize_rows.hpp>
#include <expar/router/route.hpp>

#include "../../support/catch.hpp"
#include "../support.hpp"

using Catch::Matchers::WithinAbs;
using Catch::Matchers::WithinRel;
using router_test::matrix;
using router_test::qnan;
using router_test::row_type;
using router_test::sentence_of;

namespace {

expar::host_context const ctx;

template <class T>
constexpr double accuracy = std::is_same_v<T, double> ? 1e-12 : 1e-5;

/// a [n][h] times b [m][h], and an addend [m].
template <class T>
matrix<T> product(matrix<T>& a, matrix<T>& b, row_type const& addend) {
  matrix<T> c(a.rows, b.rows);
  for (expar::index_t i = 0; i < a.rows; ++i)
    for (expar::index_t j = 0; j < b.rows; ++j) {
      double sum = addend[static_cast<std::size_t>(j)];
      for (expar::index_t h = 0; h < a.columns; ++h) sum += a.get(i, h) * b.get(j, h);
      c.set(i, j, sum);
    }
  return c;
}

}  // namespace

TEMPLATE_TEST_CASE("Tutel: logits from cosines", "[router][cases]", double, float) {
  using T = TestType;
  matrix<T> x(std::vector<row_type>{{1.0, 2.0, -1.0}, {0.5, -0.5, 1.5}});
  matrix<T> projection(std::vector<row_type>{{0.5, 0.25, -0.5}, {1.0, -1.0, 0.5}});
  matrix<T> sim(std::vector<row_type>{{0.5, 1.0}, {-1.0, 0.25}, {0.25, -0.75}, {1.0, 0.125}});
  matrix<T> projected = product(x, projection, {0.125, -0.25});
  expar::normalize_rows(ctx, expar::unit_length{}, projected.view(), projected.view());
  expar::normalize_rows(ctx, expar::unit_length{}, sim.view(), sim.view());
  matrix<T> cosines = product(projected, sim, row_type(4, 0));

  std::vector<row_type> const logits{
      {-0.6982923447355238, -1.6662896583821405, 1.8104799247815253, 1.1620287019421112},
      {1.4062497507414138, 1.0677044078249711, -1.9887374695822917, -0.3900235063389709}};
  expar::cosine_scale const scale(0.6875);
  for (int t = 0; t < 2; ++t)
    for (int e = 0; e < 4; ++e)
      REQUIRE_THAT(
          static_cast<double>(scale.of(cosines.at(t, e), e)),
          WithinAbs(logits[static_cast<std::size_t>(t)][static_cast<std::size_t>(e)], accuracy<T>));

  std::vector<row_type> const scores{
      {0.04976244751678223, 0.018901916518222463, 0.6115721294811474, 0.31976350648384805},
      {0.5229404825855338, 0.37275535310128405, 0.017539937738263865, 0.0867642265749182}};
  for (int t = 0; t < 2; ++t) {
    std::vector<T> scaled(4);
    for (int e = 0; e < 4; ++e) scaled[static_cast<std::size_t>(e)] = scale.of(cosines.at(t, e), e);
    expar::softmax_score{}(static_cast<T const*>(scaled.data()), scaled.data(), 4);
    for (std::size_t e = 0; e < 4; ++e)
      REQUIRE_THAT(static_cast<double>(scaled[e]),
                   WithinAbs(scores[static_cast<std::size_t>(t)][e], accuracy<T>));
  }

  expar::router const r({4, 2}, scale, expar::softmax_score{}, expar::renormalize{});
  expar::routes<T> routes(2, 2);
  expar::route(ctx, r, cosines.view(), routes);
  int const ids[2][2] = {{2, 3}, {0, 1}};
  double const weights[2][2] = {{0.6566613644580154, 0.3433386355419847},
                                {0.5838371261205474, 0.41616287387945256}};
  for (int t = 0; t < 2; ++t)
    for (int j = 0; j < 2; ++j) {
      REQUIRE(routes.ids(t, j) == ids[t][j]);
      REQUIRE_THAT(static_cast<double>(routes.weights(t, j)),
                   WithinAbs(weights[t][j], accuracy<T>));
    }
}

TEST_CASE("the cosine scale is at most 100", "[router]") {
  REQUIRE_THAT(expar::cosine_scale(0).factor, WithinRel(1, 1e-15));
  REQUIRE_THAT(expar::cosine_scale(-2).factor, WithinRel(std::exp(-2), 1e-14));
  REQUIRE_THAT(expar::cosine_scale(4.6).factor, WithinRel(std::exp(4.6), 1e-14));
  REQUIRE_THAT(expar::cosine_scale(9).factor, WithinRel(100, 1e-14));
  REQUIRE(std::isnan(expar::cosine_scale(qnan).factor));
}

TEST_CASE("the gradients of the cosine scale agree with differences", "[router]") {
  router_test::random rng(151);
  for (double const temperature : {-1., .7, 4., 5.}) {
    matrix<double> cosines(70, 4, 1), dz(70, 4, 2);
    expar::routes<double> routes(70, 2), dw(70, 2);
    for (double& x : cosines.data) x = rng.uniform(-1, 1);
    cosines.set(3, 1, qnan);
    for (int t = 0; t < 70; ++t)
      for (int j = 0; j < 2; ++j) dw.weights(t, j) = rng.normal();
    auto const router = [](double at) {
      return expar::router({4, 2}, expar::cosine_scale(at), expar::softmax_score{});
    };
    auto const loss = [&](double at) {
      expar::routes<double> moved(70, 2);
      expar::route(ctx, router(at), cosines.view(), moved);
      double sum = 0;
      for (int t = 0; t < 70; ++t)
        for (int j = 0; j < 2; ++j) sum += dw.weights(t, j) * moved.weights(t, j);
      return sum;
    };
    expar::route(ctx, router(temperature), cosines.view(), routes);
    expar::route_backward(ctx, router(temperature), cosines.view(), routes, dw.weights, dz.view());
    double const slope = (loss(temperature + 1e-6) - loss(temperature - 1e-6)) / 2e-6;
    REQUIRE_THAT(expar::cosine_scale_backward(ctx, temperature, cosines.view(), dz.view()),
                 WithinAbs(slope, 1e-7));
    double const factor = expar::cosine_scale(temperature).factor;
    for (double& x : cosines.data) x *= factor;
    for (double& x : dz.data) x /= factor;
    REQUIRE_THAT(expar::cosine_scale_backward(ctx, temperature, cosines.view(), dz.view()),
                 WithinAbs(slope, 1e-7));
  }
}

TEST_CASE("the number of threads does not show in the gradient of a temperature", "[router]") {
  router_test::random rng(152);
  matrix<float> z(3000, 9), dz(3000, 9);
  for (float& x : z.data) x = static_cast<float>(rng.normal());
  for (float& x : dz.data) x = static_cast<float>(rng.normal());
  expar::host_context const threads(3);
  REQUIRE(expar::cosine_scale_backward(ctx, 1, z.view(), dz.view()) ==
          expar::cosine_scale_backward(threads, 1, z.view(), dz.view()));
  REQUIRE(expar::cosine_scale_backward(ctx, 1, expar::make_view(z.data.data(), 0, 9),
                                       expar::make_view(dz.data.data(), 0, 9)) == 0);
  REQUIRE(sentence_of([&] {
            (void)expar::cosine_scale_backward(ctx, 1, z.view(),
                                               expar::make_view(dz.data.data(), 5, 9));
          }) ==
          "expar: cosine_scale_backward: d_logits has extent 5 in dimension 0, but the number of "
          "tokens is 3000");
}
