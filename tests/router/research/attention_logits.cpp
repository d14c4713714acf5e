// SPDX-License-Identifier: Apache-2.0
#include <expar/router/research/attention_logits.hpp>

#include "../../support/adds.hpp"
#include "../../support/catch.hpp"
#include "../support.hpp"

using Catch::Matchers::WithinAbs;
using router_test::inf;
using router_test::matrix;
using router_test::qnan;
using router_test::row_type;
using router_test::sentence_of;

namespace {

expar::host_context const ctx;

row_type by_definition(row_type const& q, row_type const& k, row_type const& v) {
  row_type z;
  for (double a : q) {
    double sum = 0, weighted = 0;
    for (std::size_t j = 0; j < k.size(); ++j) {
      sum += std::exp(a * k[j]);
      weighted += std::exp(a * k[j]) * v[j];
    }
    z.push_back(weighted / sum);
  }
  return z;
}

}  // namespace

TEMPLATE_TEST_CASE("Yuan 2.0: logits of an attention router", "[router][cases]", double, float) {
  matrix<TestType> q(std::vector<row_type>{{0.5, -0.25, 1.0}, {1.0, 0.0, -0.5}});
  matrix<TestType> k(std::vector<row_type>{{1.0, 0.5, -1.0}, {0.25, 0.5, 1.0}});
  matrix<TestType> v(std::vector<row_type>{{0.5, 1.5, -0.5}, {2.0, 0.0, 1.0}}), z(2, 3);
  expar::attention_logits(ctx, q.view(), k.view(), v.view(), z.view());
  double const expected[2][3] = {{0.6914217764058911, 0.36367250717463573, 0.7705118487351644},
                                 {0.9354638092889309, 1.0, 1.045724853790173}};
  for (int t = 0; t < 2; ++t)
    for (int e = 0; e < 3; ++e)
      REQUIRE_THAT(z.get(t, e),
                   WithinAbs(expected[t][e], std::is_same_v<TestType, double> ? 1e-12 : 1e-5));
}

TEST_CASE("attention logits agree with the definition, and gradients with differences",
          "[router]") {
  router_test::random rng(161);
  for (int round = 0; round < 60; ++round) {
    int const tokens = static_cast<int>(rng.integer(0, 3)),
              n = static_cast<int>(rng.integer(1, 40));
    std::vector<matrix<double>> in, gradients;
    for (int i = 0; i < 4; ++i) {
      in.emplace_back(tokens, n, i);
      gradients.emplace_back(tokens, n, 3 - i);
      for (double& x : in.back().data) x = rng.normal();
    }
    matrix<double> z(tokens, n, 1);
    expar::attention_logits(ctx, in[0].view(), in[1].view(), in[2].view(), z.view());
    expar::attention_logits_backward(ctx, in[0].view(), in[1].view(), in[2].view(), in[3].view(),
                                     gradients[0].view(), gradients[1].view(), gradients[2].view());
    for (int t = 0; t < tokens; ++t) {
      std::vector<row_type> rows{in[0].row(t), in[1].row(t), in[2].row(t)};
      auto const expected = by_definition(rows[0], rows[1], rows[2]);
      auto const loss = [&] {
        auto const moved = by_definition(rows[0], rows[1], rows[2]);
        double sum = 0;
        for (int e = 0; e < n; ++e) sum += in[3].get(t, e) * moved[static_cast<std::size_t>(e)];
        return sum;
      };
      for (int e = 0; e < n; ++e) {
        REQUIRE_THAT(z.get(t, e), WithinAbs(expected[static_cast<std::size_t>(e)], 1e-13));
        for (std::size_t i = 0; i < 3; ++i) {
          double& x = rows[i][static_cast<std::size_t>(e)];
          double const at = x;
          x = at + 1e-5;
          double slope = loss();
          x = at - 1e-5;
          slope = (slope - loss()) / 2e-5;
          x = at;
          REQUIRE_THAT(gradients[i].get(t, e), WithinAbs(slope, 1e-7));
        }
      }
    }
  }
}

TEST_CASE("attention logits of large numbers are finite", "[router]") {
  matrix<float> q(std::vector<row_type>{{1e4, -1e4}}), k(std::vector<row_type>{{3e4, 1}});
  matrix<float> v(std::vector<row_type>{{5, 7}});
  matrix<expar::bfloat16> z(1, 2);
  expar::attention_logits(ctx, q.view(), k.view(), v.view(), z.view());
  REQUIRE(z.row(0) == row_type{5, 7});
}

TEST_CASE("attention logits of what is not finite are NaN, and have no gradient", "[router]") {
  matrix<double> q(std::vector<row_type>{{qnan, 1, 0}}), k(std::vector<row_type>{{1, 2, .5}});
  matrix<double> v(std::vector<row_type>{{3, 4, 5}}), z(1, 3), d(std::vector<row_type>{{1, 1, 1}});
  matrix<double> dq(1, 3), dk(1, 3), dv(1, 3);
  expar::attention_logits(ctx, q.view(), k.view(), v.view(), z.view());
  REQUIRE(std::isnan(z.get(0, 0)));
  row_type const plain = by_definition({1, 0}, k.row(0), v.row(0));
  REQUIRE_THAT(z.get(0, 1), WithinAbs(plain[0], 1e-14));
  REQUIRE_THAT(z.get(0, 2), WithinAbs(plain[1], 1e-14));

  // The gradients are those without the first logit.
  expar::attention_logits_backward(ctx, q.view(), k.view(), v.view(), d.view(), dq.view(),
                                   dk.view(), dv.view());
  matrix<double> zero(std::vector<row_type>{{0, 1, 0}}), d0(std::vector<row_type>{{0, 1, 1}});
  matrix<double> eq(1, 3), ek(1, 3), ev(1, 3);
  expar::attention_logits_backward(ctx, zero.view(), k.view(), v.view(), d0.view(), eq.view(),
                                   ek.view(), ev.view());
  REQUIRE(dq.get(0, 0) == 0);
  REQUIRE(dq.get(0, 1) == eq.get(0, 1));
  REQUIRE(dk.row(0) == ek.row(0));
  REQUIRE(dv.row(0) == ev.row(0));

  for (double bad : {inf, -inf, qnan}) {  // 0 * inf is no number either
    k.set(0, 1, bad);
    expar::attention_logits(ctx, q.view(), k.view(), v.view(), z.view());
    for (int e = 0; e < 3; ++e) REQUIRE(std::isnan(z.get(0, e)));
  }
  matrix<float> large(std::vector<row_type>{{1e30, 1}}), w(std::vector<row_type>{{1, 2}}), y(1, 2);
  expar::attention_logits(ctx, large.view(), large.view(), w.view(), y.view());
  REQUIRE(std::isnan(y.get(0, 0)));  // 1e60 is infinite in float
  REQUIRE(y.get(0, 1) == 1);
}

TEST_CASE("the number of threads does not show in attention logits", "[router]") {
  router_test::random rng(162);
  matrix<float> q(2000, 8), k(2000, 8), v(2000, 8), one(2000, 8), three(2000, 8);
  for (auto* m : {&q, &k, &v})
    for (float& x : m->data) x = static_cast<float>(rng.normal());
  expar::host_context const threads(3);
  expar::attention_logits(ctx, q.view(), k.view(), v.view(), one.view());
  expar::attention_logits(threads, q.view(), k.view(), v.view(), three.view());
  REQUIRE(one.data == three.data);
}

TEST_CASE("attention logits refuse what does not fit", "[router]") {
  matrix<float> q(2, 3), k(2, 4), v(3, 3), z(2, 3);
  auto const logits = [&](auto& a, auto& b, auto& c, auto& to) {
    return sentence_of(
        [&] { expar::attention_logits(ctx, a.view(), b.view(), c.view(), to.view()); });
  };
  REQUIRE(logits(q, k, q, z) ==
          "expar: attention_logits: k has extent 4 in dimension 1, but the number of experts in q "
          "is 3");
  REQUIRE(logits(q, q, v, z) ==
          "expar: attention_logits: v has extent 3 in dimension 0, but the number of tokens in q "
          "is 2");
  REQUIRE(logits(q, q, q, k) ==
          "expar: attention_logits: logits has extent 4 in dimension 1, but the number of experts "
          "in q is 3");
  REQUIRE(logits(z, q, q, z) ==
          "expar: attention_logits: logits overlaps q in memory; the operation cannot work in "
          "place");
  REQUIRE(sentence_of([&] {
            matrix<float> other(2, 3);
            expar::attention_logits_backward(ctx, q.view(), q.view(), q.view(), q.view(), z.view(),
                                             other.view(), k.view());
          }) ==
          "expar: attention_logits_backward: dv has extent 4 in dimension 1, but the number of "
          "experts in q is 3");
  matrix<float> a(2, 3), b(2, 3);
  auto const backward = [&](auto& dq, auto& dk, auto& dv) {
    return sentence_of([&] {
      expar::attention_logits_backward(ctx, q.view(), q.view(), q.view(), q.view(), dq.view(),
                                       dk.view(), dv.view());
    });
  };
  REQUIRE(backward(a, a, b) ==
          "expar: attention_logits_backward: dk overlaps dq in memory; the operation cannot work "
          "in place");
  REQUIRE(backward(a, b, a) ==
          "expar: attention_logits_backward: dv overlaps dq in memory; the operation cannot work "
          "in place");
  REQUIRE(backward(a, b, b) ==
          "expar: attention_logits_backward: dv overlaps dk in memory; the operation cannot work "
          "in place");
}

TEST_CASE("gradients of attention logits are added or written in place", "[router]") {
  router_test::random rng(163);
  matrix<float> q(20, 8), k(20, 8), v(20, 8), d(20, 8), dq(20, 8), dk(20, 8), dv(20, 8);
  for (auto* m : {&q, &k, &v, &d})
    for (float& x : m->data) x = static_cast<float>(rng.normal());
  auto const backward = [&](auto&& to_q, auto&& to_k, auto&& to_v) {
    expar::attention_logits_backward(ctx, q.view(), k.view(), v.view(), d.view(), to_q, to_k, to_v);
  };
  expar_test::require_adds<float>(20, 8, [&](auto&& to) { backward(to, dk.view(), dv.view()); });
  expar_test::require_adds<float>(20, 8, [&](auto&& to) { backward(dq.view(), to, dv.view()); });
  expar_test::require_adds<float>(20, 8, [&](auto&& to) { backward(dq.view(), dk.view(), to); });
  backward(dq.view(), dk.view(), dv.view());
  backward(q.view(), k.view(), v.view());
  REQUIRE(q.data == dq.data);
  REQUIRE(k.data == dk.data);
  REQUIRE(v.data == dv.data);
}
