// SPDX-License-Identifier: Apache-2.0
#include <expar/router/load_loss.hpp>

#include "../support/catch.hpp"
#include "differences.hpp"
#include "load_reference.hpp"
#include "support.hpp"

using Catch::Matchers::WithinAbs;
using expar::only;
using router_test::inf;
using router_test::load_probabilities;
using router_test::mask;
using router_test::matrix;
using router_test::qnan;
using router_test::row_type;
using router_test::sentence_of;
using router_test::variation;

namespace {

expar::host_context const ctx;
constexpr auto kth = expar::load_threshold::kth;
constexpr auto others = expar::load_threshold::others;

}  // namespace

TEST_CASE("load and all gradients of its loss agree with the definition", "[router]") {
  router_test::random rng(340);
  for (int round = 0; round < 150; ++round) {
    int const tokens = static_cast<int>(rng.integer(0, 4)),
              experts = static_cast<int>(rng.integer(1, 6));
    int const k = static_cast<int>(rng.integer(1, experts));
    expar::load_options const o{k, rng.chance(.5) ? kth : others};
    bool const constant = rng.chance(.3);
    matrix<double> c(tokens, experts, 1), h(tokens, experts, 2), s(tokens, experts);
    for (int t = 0; t < tokens; ++t)
      for (int e = 0; e < experts; ++e) {
        s.set(t, e, constant ? .7 : rng.uniform(.3, 2));
        c.set(t, e, rng.chance(.1) ? (rng.chance(.5) ? qnan : -inf) : rng.uniform(-1, 1));
        h.set(t, e, rng.chance(.05) ? -inf : rng.uniform(-1, 1));
      }
    mask const valid = router_test::random_mask(rng, tokens);
    auto const sums_of = [&] {
      row_type sums(static_cast<std::size_t>(experts), 0);
      for (int t = 0; t < tokens; ++t) {
        row_type const p = load_probabilities(c.row(t), h.row(t), s.row(t), k, o.threshold);
        for (std::size_t e = 0; e < p.size(); ++e)
          if (valid[static_cast<std::size_t>(t)]) sums[e] += p[e];
      }
      return sums;
    };
    row_type const expected = sums_of();
    row_type sums(expected.size(), 77);
    expar::cv_squared_options const v{2, rng.chance(.5) ? 0 : 1, .5};
    if (constant)
      expar::smooth_load(ctx, only(valid, c.view()), h.view(), .7, o, sums);
    else
      expar::smooth_load(ctx, only(valid, c.view()), h.view(), s.view(), o, sums);
    // The gradient number `which`; the others go to tensors of their own.
    auto const gradient = [&](int which) {
      return router_test::gradient_of(tokens, experts, [&](auto&& d) {
        matrix<double> a(tokens, experts), b(tokens, experts);
        auto const backward = [&](auto const& sigma, auto&&... out) {
          expar::load_loss_backward(ctx, only(valid, c.view()), h.view(), sigma, sums, o, v,
                                    out...);
        };
        if (which == 2)
          backward(s.view(), a.view(), b.view(), d);
        else if (constant && which == 0)
          backward(.7, d, a.view());
        else if (constant)
          backward(.7, a.view(), d);
        else if (which == 0)
          backward(s.view(), d, a.view(), b.view());
        else
          backward(s.view(), a.view(), d, b.view());
      });
    };
    auto dc = gradient(0), dh = gradient(1);
    for (std::size_t e = 0; e < sums.size(); ++e)
      REQUIRE_THAT(sums[e], WithinAbs(expected[e], 1e-12));
    auto const loss = [&] { return variation(sums_of(), v); };
    router_test::require_gradient(c, dc, 0, loss);
    router_test::require_gradient(h, dh, 0, loss);
    if (constant) continue;
    auto ds = gradient(2);
    router_test::require_gradient(s, ds, 0, loss);
  }
}

TEST_CASE("one gradient tensor has both gradients where the noise is constant", "[router]") {
  router_test::random rng(341);
  matrix<double> c(5, 4), h(5, 4), dc(5, 4), dh(5, 4), both(5, 4);
  for (int i = 0; i < 20; ++i) {
    c.data[static_cast<std::size_t>(i)] = rng.normal();
    h.data[static_cast<std::size_t>(i)] = c.data[static_cast<std::size_t>(i)] + .25 * rng.normal();
  }
  row_type sums(4);
  expar::load_options const o{2, kth};
  expar::cv_squared_options const v{.ddof = 0, .epsilon = 0};
  expar::smooth_load(ctx, c.view(), h.view(), .25, o, sums);
  expar::load_loss_backward(ctx, c.view(), h.view(), .25, sums, o, v, dc.view(), dh.view());
  expar::load_loss_backward(ctx, c.view(), h.view(), .25, sums, o, v, both.view(), both.view());
  for (std::size_t i = 0; i < 20; ++i)
    REQUIRE_THAT(both.data[i], WithinAbs(dc.data[i] + dh.data[i], 1e-15));
}

TEST_CASE("where all experts are selected, load is the number of tokens", "[router]") {
  matrix<float> c(std::vector<row_type>{{1, 2, 0}, {3, inf, 5}}), dc(2, 3), dh(2, 3);
  row_type sums(3);
  expar::smooth_load(ctx, c.view(), c.view(), 1, {.top_k = 3}, sums);
  REQUIRE(sums == row_type{2, 2, 2});
  expar::load_loss_backward(ctx, c.view(), c.view(), 1, sums, {.top_k = 3},
                            {.ddof = 1, .epsilon = 0}, dc.view(), dh.view());
  REQUIRE(dc.data == std::vector<float>(6, 0));
  REQUIRE(dh.data == std::vector<float>(6, 0));
}

TEST_CASE("a logit of +inf spoils no gradient of load", "[router]") {
  matrix<double> c(std::vector<row_type>{{1, inf, 0, -1}}), s(std::vector<row_type>{{1, 1, 1, 1}});
  matrix<double> dc(1, 4), dh(1, 4), ds(1, 4);
  row_type sums(4);
  for (auto threshold : {others, kth}) {
    expar::load_options const o{1, threshold};
    expar::smooth_load(ctx, c.view(), c.view(), s.view(), o, sums);
    expar::load_loss_backward(ctx, c.view(), c.view(), s.view(), sums, o,
                              {.ddof = 0, .epsilon = .5}, dc.view(), dh.view(), ds.view());
    for (auto* m : {&dc, &dh, &ds})
      for (double x : m->data) REQUIRE((threshold == kth ? std::isfinite(x) : x == 0));
  }
}

TEST_CASE("the number of threads does not show in load", "[router]") {
  router_test::random rng(342);
  matrix<float> c(5000, 9), h(5000, 9), dc1(5000, 9), dh1(5000, 9), dc3(5000, 9), dh3(5000, 9);
  for (std::size_t i = 0; i < c.data.size(); ++i) {
    c.data[i] = static_cast<float>(rng.normal());
    h.data[i] = c.data[i] + static_cast<float>(rng.normal());
  }
  expar::host_context const threads(3);
  expar::load_options const o{.top_k = 2};
  expar::cv_squared_options const v{.ddof = 1, .epsilon = 1e-10};
  row_type a(9), b(9);
  expar::smooth_load(ctx, c.view(), h.view(), 1, o, a);
  expar::smooth_load(threads, c.view(), h.view(), 1, o, b);
  REQUIRE(a == b);
  expar::load_loss_backward(ctx, c.view(), h.view(), 1, a, o, v, dc1.view(), dh1.view());
  expar::load_loss_backward(threads, c.view(), h.view(), 1, a, o, v, dc3.view(), dh3.view());
  REQUIRE(dc1.data == dc3.data);
  REQUIRE(dh1.data == dh3.data);
}

TEST_CASE("the gradient goes on through noise that is learned", "[router]") {
  // Shazeer: noisy = clean + n * sigma.
  router_test::random rng(344);
  matrix<double> c(6, 4), s(6, 4), n(6, 4), h(6, 4), dc(6, 4), ds(6, 4), dh(6, 4);
  for (std::size_t i = 0; i < 24; ++i) {
    c.data[i] = rng.normal();
    n.data[i] = rng.normal();
    s.data[i] = std::log1p(std::exp(rng.normal())) + .01;
  }
  expar::cv_squared_options const v{.ddof = 1, .epsilon = 1e-10};
  auto const sums_of = [&] {
    row_type sums(4, 0);
    for (std::size_t i = 0; i < 24; ++i) h.data[i] = c.data[i] + n.data[i] * s.data[i];
    for (int t = 0; t < 6; ++t) {
      row_type const p = load_probabilities(c.row(t), h.row(t), s.row(t), 2, others);
      for (std::size_t e = 0; e < 4; ++e) sums[e] += p[e];
    }
    return sums;
  };
  row_type const sums = sums_of();
  expar::load_loss_backward(ctx, c.view(), h.view(), s.view(), sums, {.top_k = 2}, v, dc.view(),
                            dh.view(), ds.view());
  for (std::size_t i = 0; i < 24; ++i) {
    dc.data[i] += dh.data[i];
    ds.data[i] += dh.data[i] * n.data[i];
  }
  auto const loss = [&] { return variation(sums_of(), v); };
  router_test::require_gradient(c, dc, 0, loss);
  router_test::require_gradient(s, ds, 0, loss);
}

TEST_CASE("the gradient of load refuses what does not fit", "[router]") {
  matrix<float> c(2, 3), narrow(2, 2), dc(2, 3), dh(2, 3);
  auto ones = router_test::filled<float>(2, 3, 1);
  row_type sums(3), two(2);
  expar::load_options const top2{2};
  expar::cv_squared_options const v{.ddof = 0, .epsilon = 0};
  REQUIRE(sentence_of([&] {
            expar::load_loss_backward(ctx, c.view(), c.view(), 1, two, top2, v, dc.view(),
                                      dh.view());
          }) ==
          "expar: load_loss_backward: sums has extent 2 in dimension 0, but the number of experts "
          "is 3");
  REQUIRE(sentence_of([&] {
            expar::load_loss_backward(ctx, c.view(), c.view(), ones.view(), sums, top2, v,
                                      dc.view(), dh.view(), narrow.view());
          }) ==
          "expar: load_loss_backward: d_sigma has extent 2 in dimension 1, but the number of "
          "experts is 3");
  REQUIRE(sentence_of([&] {
            expar::load_loss_backward(ctx, c.view(), c.view(), 1, sums, top2, v,
                                      expar::add_to(dc.view()), dc.view());
          }) ==
          "expar: load_loss_backward: d_noisy overlaps d_clean in memory; the operation cannot "
          "work in place");
}
