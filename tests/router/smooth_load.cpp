// SPDX-License-Identifier: Apache-2.0
#include <expar/router/smooth_load.hpp>

#include <expar/router/importance_loss.hpp>
#include <expar/router/load_balance_loss.hpp>

#include "../support/catch.hpp"
#include "cases_data.hpp"
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

namespace {

expar::host_context const ctx;
constexpr auto kth = expar::load_threshold::kth;
constexpr auto others = expar::load_threshold::others;

template <class T>
constexpr double accuracy = std::is_same_v<T, double> ? 1e-12 : 1e-5;

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

  // fastmoe's loss is that of importance and of load.
  std::vector<std::int32_t> const ids{0, 3, 1, 0, 0, 1, 0, 2};
  matrix<T> weights(cases::matrix{{0.7968433994429924, 0.20315660055700757},
                                  {0.8567537559103617, 0.14324624408963815},
                                  {0.7349538545613784, 0.26504614543862154},
                                  {0.8036399067191415, 0.19636009328085846}});
  row_type importance(4);
  expar::weight_importance(ctx, expar::make_view(ids.data(), 4, 2), weights.view(), importance);
  expar::cv_squared_options const fastmoe{.ddof = 1, .epsilon = 1e-10};
  REQUIRE_THAT(expar::cv_squared(ctx, importance, fastmoe) + expar::cv_squared(ctx, load, fastmoe),
               WithinAbs(1.6484372467145494, accuracy<T>));
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

  // V-MoE's third loss is GShard's, of the noisy logits.
  std::vector<std::int32_t> const first{0, 1, 0, 2};
  std::vector<int> counts(4);
  expar::count_choices(ctx, expar::make_view(first.data(), 4, 1), 1, counts);
  REQUIRE_THAT(expar::load_balance_loss(ctx, h.view(), counts, {.choices = 1}),
               WithinAbs(1.437639315816349, accuracy<T>));
}

TEST_CASE("Tutel: load of softmax scores over thresholds that are logits", "[router][cases]") {
  matrix<double> scores(cases::matrix{{.50, .30, .15, .05},
                                      {.40, .35, .20, .05},
                                      {.60, .10, .25, .05},
                                      {.10, .70, .15, .05},
                                      {.45, .05, .30, .20},
                                      {.55, .25, .05, .15}});
  matrix<double> logits = scores;
  for (double& x : logits.data) x = std::log(x);
  row_type importance(4), load(4);
  expar::score_importance(ctx, expar::softmax_score{}, logits.view(), importance);
  row_type const sums{2.6, 1.75, 1.1, .55}, loads{5.96612, 5.991984, 5.972322, 5.932708};
  for (std::size_t e = 0; e < 4; ++e) REQUIRE_THAT(importance[e], WithinAbs(sums[e], 1e-12));
  expar::cv_squared_options const half{.coefficient = .5, .ddof = 1, .epsilon = 1e-10};
  REQUIRE_THAT(2 * expar::cv_squared(ctx, importance, half), WithinAbs(.345925926, 1e-9));
  for (int k : {1, 2}) {
    expar::smooth_load(ctx, scores.view(), logits.view(), 1. / 4, {k, kth}, load);
    for (std::size_t e = 0; k == 1 && e < 4; ++e) REQUIRE_THAT(load[e], WithinAbs(loads[e], 1e-5));
    REQUIRE_THAT(expar::cv_squared(ctx, importance, half) + expar::cv_squared(ctx, load, half),
                 WithinAbs(k == 1 ? .172971501 : .172962963, 1e-9));
  }
}

TEST_CASE("load agrees with its definition, for any number of threads", "[router]") {
  router_test::random rng(343);
  expar::host_context const threads(3);
  for (int round = 0; round < 60; ++round) {
    int const tokens = static_cast<int>(rng.chance(.1) ? 700 : rng.integer(0, 4));
    int const experts = static_cast<int>(rng.integer(1, 6));
    expar::load_options const o{static_cast<int>(rng.integer(1, experts)),
                                rng.chance(.5) ? kth : others};
    matrix<double> c(tokens, experts, 1), h(tokens, experts, 2), s(tokens, experts);
    for (int t = 0; t < tokens; ++t)
      for (int e = 0; e < experts; ++e) {
        s.set(t, e, rng.uniform(.3, 2));
        c.set(t, e, rng.chance(.1) ? (rng.chance(.5) ? qnan : -inf) : rng.uniform(-1, 1));
        h.set(t, e, static_cast<double>(rng.integer(-3, 3)) / 4);  // ties
      }
    mask const valid = router_test::random_mask(rng, tokens);
    row_type expected(static_cast<std::size_t>(experts), 0), sums(expected.size(), 77), same(sums);
    for (int t = 0; t < tokens; ++t) {
      row_type const p = load_probabilities(c.row(t), h.row(t), s.row(t), o.top_k, o.threshold);
      for (std::size_t e = 0; e < p.size(); ++e)
        if (valid[static_cast<std::size_t>(t)]) expected[e] += p[e];
    }
    expar::smooth_load(ctx, only(valid, c.view()), h.view(), s.view(), o, sums);
    expar::smooth_load(threads, only(valid, c.view()), h.view(), s.view(), o, same);
    for (std::size_t e = 0; e < sums.size(); ++e)
      REQUIRE_THAT(sums[e], WithinAbs(expected[e], 1e-10));
    REQUIRE(same == sums);
  }
}

TEST_CASE("load of narrow logits", "[router]") {
  matrix<expar::bfloat16> c(cases::matrix{{2, 1, .5, -1}}), h(cases::matrix{{2.5, 1, .75, -1}});
  matrix<double> wide_c(cases::matrix{{2, 1, .5, -1}}), wide_h(cases::matrix{{2.5, 1, .75, -1}});
  row_type a(4), b(4);
  expar::smooth_load(ctx, c.view(), h.view(), .5, {.top_k = 2}, a);
  expar::smooth_load(ctx, wide_c.view(), wide_h.view(), .5, {.top_k = 2}, b);
  REQUIRE(a == b);
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
          "expar: smooth_load: sigma is 0; it is greater than 0 and finite");
  REQUIRE(load(c.view(), c.view(), inf, top2) ==
          "expar: smooth_load: sigma is inf; it is greater than 0 and finite");
  matrix<float> sigmas(std::vector<row_type>{{1, 2, 3}, {1, 0, 3}});
  REQUIRE(load(c.view(), c.view(), sigmas.view(), top2) ==
          "expar: smooth_load: sigma(1, 1) is 0; it is greater than 0 and finite");
  REQUIRE_NOTHROW(
      expar::smooth_load(ctx, only(mask{1, 0}, c.view()), c.view(), sigmas.view(), top2, sums));
  REQUIRE(load(c.view(), c.view(), narrow.view(), top2) ==
          "expar: smooth_load: sigma has extent 2 in dimension 1, but the number of experts is 3");
  REQUIRE(load(c.view(), c.view(), 1, top4) ==
          "expar: smooth_load: top_k is 4; it is at least 1 and at most the 3 experts");
  REQUIRE(load(only(mask{1}, c.view()), c.view(), 1, top2) ==
          "expar: smooth_load: valid has extent 1 in dimension 0, but the number of tokens is 2");
  REQUIRE(sentence_of([&] { expar::smooth_load(ctx, c.view(), c.view(), 1, top2, two); }) ==
          "expar: smooth_load: sums has extent 2 in dimension 0, but the number of experts is 3");
}
