// SPDX-License-Identifier: Apache-2.0
#include <expar/router/load_loss.hpp>

#include "../support/catch.hpp"
#include "cases_data.hpp"
#include "differences.hpp"
#include "support.hpp"

using Catch::Matchers::WithinAbs;
using router_test::inf;
using router_test::mask;
using router_test::matrix;
using router_test::qnan;
using router_test::row_type;
using router_test::sentence_of;

namespace {

expar::host_context const ctx;
constexpr auto kth = expar::load_threshold::kth;
constexpr auto others = expar::load_threshold::others;

template <class T>
constexpr double accuracy = std::is_same_v<T, double> ? 1e-12 : 1e-5;

double cdf(double x) {
  return (1 + std::erf(x / std::sqrt(2.))) / 2;
}

/// The probabilities of one token: each expert's threshold is the k-th of a sorted list.
row_type probabilities(row_type const& c, row_type const& h, row_type const& sigma, int k,
                       expar::load_threshold threshold) {
  auto const there = [&](std::size_t e) { return c[e] > -inf && h[e] > -inf; };
  row_type p(c.size(), 0);
  for (std::size_t e = 0; e < c.size(); ++e) {
    if (!there(e)) continue;
    row_type list;
    for (std::size_t o = 0; o < c.size(); ++o)
      if (there(o) && (threshold == kth || o != e)) list.push_back(h[o]);
    std::sort(list.rbegin(), list.rend());
    auto const n = static_cast<std::size_t>(k);
    p[e] = list.size() < n ? 1 : cdf((c[e] - list[n - 1]) / sigma[e]);
  }
  return p;
}

double variation(row_type const& x, expar::cv_squared_options const& o) {
  double const n = static_cast<double>(x.size());
  double sum = 0, squares = 0;
  for (double v : x) sum += v, squares += v * v;
  double const divisor = sum / n * (sum / n) + o.epsilon;
  return x.size() > 1 && divisor > 0
             ? o.coefficient * (squares - sum * sum / n) / (n - o.ddof) / divisor
             : 0;
}

cases::matrix const noisy{
    {2.3515735902799726, 0.015923015819893305, 0.6210192460450267, 0.9848925312773342},
    {0.8730454350908673, 2.6616308437591116, 0.7031471805599453, 0.25},
    {3.0, 1.9800962302251333, 0.8320302900605783, 0.027360385419959},
    {3.073261687518223, 0.6992132048600137, 1.6640605801211565, 0.6170384920900533}};
cases::matrix const sigma{
    {0.7031471805599453, 0.9840769841801067, 0.4840769841801067, 1.3232616875182228},
    {0.8359394198788436, 0.3232616875182229, 0.7031471805599453, 0.9840769841801067},
    {0.4840769841801067, 0.9840769841801067, 0.8359394198788436, 0.7031471805599453},
    {1.3232616875182228, 0.7031471805599453, 0.5859394198788436, 0.9840769841801067}};
cases::matrix const prob_in_topk{
    {0.9750695398121574, 0.5061242884310014, 0.15824793795526532, 0.11028423921736841},
    {0.8297663418674599, 0.99999998639551, 0.1071873934840924, 0.26332544670189223},
    {0.9999962426563052, 0.46678360295862675, 0.1912268667272482, 0.00021003990414658613},
    {0.7864280234701782, 0.13089208758226784, 0.9959355376743199, 0.058913058794734185}};

}  // namespace

TEMPLATE_TEST_CASE("Shazeer: load by learned noise", "[router][cases]", double, float) {
  using T = TestType;
  matrix<T> c(cases::logits), h(noisy), s(sigma);
  row_type sums(4), load(4);
  for (int t = 0; t < 4; ++t) {  // one token's sums are its probabilities
    auto const row = [&](matrix<T>& m) { return expar::make_view(m.view().row(t), 1, 4); };
    expar::smooth_load(ctx, row(c), row(h), row(s), {.top_k = 2}, sums);
    for (std::size_t e = 0; e < 4; ++e)
      REQUIRE_THAT(sums[e], WithinAbs(prob_in_topk[static_cast<std::size_t>(t)][e], accuracy<T>));
  }
  expar::smooth_load(ctx, c.view(), h.view(), s.view(), {.top_k = 2}, load);
  row_type const expected{3.5912601478061004, 2.103799965367406, 1.4525977358409259,
                          0.4327327846181414};
  for (std::size_t e = 0; e < 4; ++e) REQUIRE_THAT(load[e], WithinAbs(expected[e], accuracy<T>));
  REQUIRE_THAT(expar::cv_squared(ctx, load, {.ddof = 1, .epsilon = 1e-10}),
               WithinAbs(0.48772513664867095, accuracy<T>));
  REQUIRE_THAT(expar::cv_squared(ctx, load, {.ddof = 0, .epsilon = 1e-10}),
               WithinAbs(0.3657938524865032, accuracy<T>));
}

TEMPLATE_TEST_CASE("V-MoE: load by noise of one size", "[router][cases]", double, float) {
  using T = TestType;
  cases::matrix const vmoe_noisy{{2.03125, 0.9375, 0.59375, -0.984375},
                                 {1.453125, 2.53125, 0.0, 0.3125},
                                 {3.0625, 0.71875, 1.15625, -0.453125},
                                 {1.75, 0.9375, 2.171875, 0.15625}};
  cases::matrix const expected{
      {0.9999893114742251, 0.5987063256829237, 0.040059156863817114, 4.6629367034256575e-15},
      {0.5743656881558972, 0.9999858977989498, 3.077334165269008e-09, 7.452693638887453e-07},
      {0.9999999999999178, 0.05208127941521956, 0.6461697666727237, 1.7362333792902973e-11},
      {0.5, 0.0002326290790355401, 0.9772498680518208, 4.0159986447463325e-11}};
  matrix<T> c(cases::logits), h(vmoe_noisy);
  row_type sums(4);
  for (int t = 0; t < 4; ++t) {
    auto const row = [&](matrix<T>& m) { return expar::make_view(m.view().row(t), 1, 4); };
    expar::smooth_load(ctx, row(c), row(h), .25, {2, kth}, sums);
    for (std::size_t e = 0; e < 4; ++e)
      REQUIRE_THAT(sums[e], WithinAbs(expected[static_cast<std::size_t>(t)][e], accuracy<T>));
  }
  expar::smooth_load(ctx, c.view(), h.view(), .25, {2, kth}, sums);
  REQUIRE_THAT(expar::cv_squared(ctx, sums, {.ddof = 0, .epsilon = 0}),
               WithinAbs(0.4645404823323823, accuracy<T>));
}

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
        row_type const p = probabilities(c.row(t), h.row(t), s.row(t), k, o.threshold);
        for (std::size_t e = 0; e < p.size(); ++e)
          if (valid[static_cast<std::size_t>(t)]) sums[e] += p[e];
      }
      return sums;
    };
    row_type const expected = sums_of();
    row_type sums(expected.size(), 77);
    expar::cv_squared_options const v{2, rng.chance(.5) ? 0 : 1, .5};
    auto dc = router_test::filled<double>(tokens, experts, 3, 1);
    auto dh = router_test::filled<double>(tokens, experts, 4);
    auto ds = router_test::filled<double>(tokens, experts, 5);
    if (constant) {
      expar::smooth_load(ctx, c.view(), h.view(), .7, o, valid, sums);
      expar::load_loss_backward(ctx, c.view(), h.view(), .7, o, sums, valid, v, dc.view(),
                                dh.view());
    } else {
      expar::smooth_load(ctx, c.view(), h.view(), s.view(), o, valid, sums);
      expar::load_loss_backward(ctx, c.view(), h.view(), s.view(), o, sums, valid, v, dc.view(),
                                dh.view(), ds.view());
    }
    for (std::size_t e = 0; e < sums.size(); ++e)
      REQUIRE_THAT(sums[e], WithinAbs(expected[e], 1e-12));
    auto const loss = [&] { return variation(sums_of(), v); };
    router_test::require_gradient(c, dc, 3, loss);
    router_test::require_gradient(h, dh, 4, loss);
    if (!constant) router_test::require_gradient(s, ds, 5, loss);
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
  expar::load_loss_backward(ctx, c.view(), h.view(), .25, o, sums, v, dc.view(), dh.view());
  expar::load_loss_backward(ctx, c.view(), h.view(), .25, o, sums, v, both.view(), both.view());
  for (std::size_t i = 0; i < 20; ++i)
    REQUIRE_THAT(both.data[i], WithinAbs(dc.data[i] + dh.data[i], 1e-15));
}

TEST_CASE("where all experts are selected, load is the number of tokens", "[router]") {
  matrix<float> c(std::vector<row_type>{{1, 2, 0}, {3, inf, 5}}), dc(2, 3), dh(2, 3);
  row_type sums(3);
  expar::smooth_load(ctx, c.view(), c.view(), 1, {.top_k = 3}, sums);
  REQUIRE(sums == row_type{2, 2, 2});
  expar::load_loss_backward(ctx, c.view(), c.view(), 1, {.top_k = 3}, sums,
                            {.ddof = 1, .epsilon = 0}, dc.view(), dh.view());
  REQUIRE(dc.data == std::vector<float>(6, 0));
  REQUIRE(dh.data == std::vector<float>(6, 0));
}

TEST_CASE("load of narrow logits", "[router]") {
  matrix<expar::bfloat16> c(cases::matrix{{2, 1, .5, -1}}), h(cases::matrix{{2.5, 1, .75, -1}});
  matrix<double> wide_c(cases::matrix{{2, 1, .5, -1}}), wide_h(cases::matrix{{2.5, 1, .75, -1}});
  row_type a(4), b(4);
  expar::smooth_load(ctx, c.view(), h.view(), .5, {.top_k = 2}, a);
  expar::smooth_load(ctx, wide_c.view(), wide_h.view(), .5, {.top_k = 2}, b);
  REQUIRE(a == b);
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
  expar::load_loss_backward(ctx, c.view(), h.view(), 1, o, a, v, dc1.view(), dh1.view());
  expar::load_loss_backward(threads, c.view(), h.view(), 1, o, a, v, dc3.view(), dh3.view());
  REQUIRE(dc1.data == dc3.data);
  REQUIRE(dh1.data == dh3.data);
}

TEST_CASE("load refuses what does not fit", "[router]") {
  matrix<float> c(2, 3), narrow(2, 2);
  row_type sums(3), two(2);
  auto const load = [&](auto const&... arguments) {
    return sentence_of([&] { expar::smooth_load(ctx, arguments..., sums); });
  };
  expar::load_options const top2{2}, top4{4};
  REQUIRE(load(c.view(), narrow.view(), 1, top2) ==
          "expar: smooth_load: noisy has extent 2 in dimension 1, but the number of experts is 3");
  REQUIRE(load(c.view(), c.view(), 0, top2) ==
          "expar: smooth_load: sigma is 0; it is greater than 0");
  REQUIRE(load(c.view(), c.view(), narrow.view(), top2) ==
          "expar: smooth_load: sigma has extent 2 in dimension 1, but the number of experts is 3");
  REQUIRE(load(c.view(), c.view(), 1, top4) ==
          "expar: smooth_load: top_k is 4; it is at least 1 and at most the 3 experts");
  REQUIRE(load(c.view(), c.view(), 1, top2, mask{1}) ==
          "expar: smooth_load: valid has extent 1 in dimension 0, but the number of tokens is 2");
  REQUIRE(sentence_of([&] { expar::smooth_load(ctx, c.view(), c.view(), 1, top2, two); }) ==
          "expar: smooth_load: sums has extent 2 in dimension 0, but the number of experts is 3");
  expar::cv_squared_options const v{.ddof = 0, .epsilon = 0};
  REQUIRE(sentence_of([&] {
            expar::load_loss_backward(ctx, c.view(), c.view(), 1, top2, two, v, c.view(), c.view());
          }) ==
          "expar: load_loss_backward: sums has extent 2 in dimension 0, but the number of experts "
          "is 3");
  REQUIRE(sentence_of([&] {
            expar::load_loss_backward(ctx, c.view(), c.view(), c.view(), top2, sums, v, c.view(),
                                      c.view(), narrow.view());
          }) ==
          "expar: load_loss_backward: d_sigma has extent 2 in dimension 1, but the number of "
          "experts is 3");
}
