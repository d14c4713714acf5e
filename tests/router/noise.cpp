// SPDX-License-Identifier: Apache-2.0
#include <expar/router/noise.hpp>

#include <expar/router/route.hpp>
#include <expar/router/transform_logits.hpp>

#include "../support/adds.hpp"
#include "../support/catch.hpp"
#include "cases_data.hpp"
#include "support.hpp"

using Catch::Matchers::WithinAbs;
using expar::random_stream;
using router_test::inf;
using router_test::matrix;
using router_test::qnan;
using router_test::row_type;
using router_test::sentence_of;

// The same four tokens with the normal numbers that were drawn for them.
namespace noisy_gate {
cases::matrix const raw{
    {0.0, 0.5, -0.5, 1.0}, {0.25, -1.0, 0.0, 0.5}, {-0.5, 0.5, 0.25, 0.0}, {1.0, 0.0, -0.25, 0.5}};
cases::matrix const normal{{0.5, -1.0, 0.25, 1.5},
                           {-0.75, 0.5, 1.0, 0.0},
                           {0.0, 1.25, -0.5, 0.75},
                           {1.0, -0.25, -1.0, 0.5}};
cases::matrix const deviation{
    {0.7031471805599453, 0.9840769841801067, 0.4840769841801067, 1.3232616875182228},
    {0.8359394198788436, 0.3232616875182229, 0.7031471805599453, 0.9840769841801067},
    {0.4840769841801067, 0.9840769841801067, 0.8359394198788436, 0.7031471805599453},
    {1.3232616875182228, 0.7031471805599453, 0.5859394198788436, 0.9840769841801067}};
cases::matrix const noisy{
    {2.3515735902799726, 0.015923015819893305, 0.6210192460450267, 0.9848925312773342},
    {0.8730454350908673, 2.6616308437591116, 0.7031471805599453, 0.25},
    {3.0, 1.9800962302251333, 0.8320302900605783, 0.027360385419959},
    {3.073261687518223, 0.6992132048600137, 1.6640605801211565, 0.6170384920900533}};
cases::id_matrix const ids{{0, 3}, {1, 0}, {0, 1}, {0, 2}};
cases::matrix const weights{{0.7968433994429924, 0.20315660055700757},
                            {0.8567537559103617, 0.14324624408963815},
                            {0.7349538545613784, 0.26504614543862154},
                            {0.8036399067191415, 0.19636009328085846}};
}  // namespace noisy_gate

namespace v_moe {
double const scale = 0.25;  // noise_std / experts
cases::matrix const normal{{0.125, -0.25, 0.375, 0.0625},
                           {-0.1875, 0.125, 0.0, 0.25},
                           {0.25, -0.125, -0.375, 0.1875},
                           {0.0, 0.25, -0.3125, 0.125}};
cases::matrix const noisy{{2.03125, 0.9375, 0.59375, -0.984375},
                          {1.453125, 2.53125, 0.0, 0.3125},
                          {3.0625, 0.71875, 1.15625, -0.453125},
                          {1.75, 0.9375, 2.171875, 0.15625}};
}  // namespace v_moe

namespace {

expar::host_context const ctx;
random_stream const stream{.seed = 11, .step = 2, .layer = 1};
expar::router_shape const shape{.experts = 6, .top_k = 2};

template <class T>
void require_matrix(matrix<T>& got, cases::matrix const& expected) {
  double const accuracy = std::is_same_v<T, double> ? 1e-12 : 1e-5;
  for (std::size_t t = 0; t < expected.size(); ++t)
    for (std::size_t e = 0; e < expected[t].size(); ++e)
      REQUIRE_THAT(got.get(static_cast<expar::index_t>(t), static_cast<expar::index_t>(e)),
                   WithinAbs(expected[t][e], accuracy));
}

matrix<double> random_matrix(expar::index_t rows, expar::index_t columns, std::uint64_t seed) {
  router_test::random rng(seed);
  matrix<double> m(rows, columns, 1);
  for (double& x : m.data) x = rng.normal();
  return m;
}

/// What the transform makes of logits is formula(z, number), also in a router, and its slope is
/// that of the formula.
template <class Transform, class Numbers, class Formula>
void require_formula(Transform const& transform, Numbers const& numbers, Formula formula) {
  STATIC_REQUIRE(expar::transform_policy<expar::detail::bound<Transform>>);
  expar::index_t const tokens = 50, experts = shape.experts;
  matrix<double> z = random_matrix(tokens, experts, 41), x(tokens, experts),
                 d = random_matrix(tokens, experts, 42), dz(tokens, experts);
  expar::transform_logits(ctx, transform, z.view(), x.view());
  expar::transform_logits_backward(ctx, transform, z.view(), d.view(), dz.view());
  for (expar::index_t t = 0; t < tokens; ++t)
    for (expar::index_t e = 0; e < experts; ++e) {
      double const n = numbers.at(t).template of<double>(e), a = z.get(t, e);
      REQUIRE_THAT(x.get(t, e), WithinAbs(formula(a, n), 1e-14));
      double const slope = (formula(a + 1e-4, n) - formula(a - 1e-4, n)) / 2e-4;
      REQUIRE_THAT(dz.get(t, e), WithinAbs(slope * d.get(t, e), 1e-10));
    }
  expar::routes<double> noisy(tokens, shape.top_k), of_noisy(tokens, shape.top_k);
  expar::route(ctx, expar::router(shape, transform, expar::softmax_score{}), z.view(), noisy);
  expar::route(ctx, expar::router(shape, expar::softmax_score{}), x.view(), of_noisy);
  for (expar::index_t t = 0; t < tokens; ++t)
    for (expar::index_t j = 0; j < shape.top_k; ++j) {
      REQUIRE(noisy.ids(t, j) == of_noisy.ids(t, j));
      REQUIRE(noisy.weights(t, j) == of_noisy.weights(t, j));
    }
}
/// With numbers of a stream, and with given ones.
template <class Make, class Numbers, class Formula>
void require_formulas(Make make, Numbers const& drawn, Formula formula) {
  require_formula(make(drawn), drawn, formula);
  matrix<double> mine = random_matrix(50, shape.experts, 43);
  expar::given_numbers const given{mine.view()};
  require_formula(make(given), given, formula);
}

}  // namespace

TEST_CASE("noise follows its formulas", "[router]") {
  expar::uniforms const uniform{stream};
  expar::normals const normal{stream};
  expar::gumbels const gumbel{stream};
  auto const added = [](auto n) { return expar::add_noise{.3, n}; };
  require_formulas(added, normal, [](double z, double n) { return z + .3 * n; });
  require_formulas(added, gumbel, [](double z, double n) { return z + .3 * n; });
  require_formulas(
      [](auto n) {
        return expar::add_uniform{.1, n};
      },
      uniform, [](double z, double u) { return z + 1 - .1 + 2 * .1 * u; });
  require_formulas(
      [](auto n) {
        return expar::multiply_uniform{.1, n};
      },
      uniform, [](double z, double u) { return z * (1 - .1 + 2 * .1 * u); });
  require_formulas(
      [](auto n) {
        return expar::random_logits{false, n};
      },
      uniform, [](double, double u) { return u; });
}

TEST_CASE("random logits can pass the gradient on", "[router]") {
  expar::random_logits const x{true, expar::normals{stream}};
  REQUIRE(x.at(4).of(3., 2) == expar::normals{stream}.at(4).of<double>(2));
  REQUIRE(x.at(4).slope(3., 2) == 1);
}

TEST_CASE("a bias of all tokens is given as rows on top of each other", "[router]") {
  std::vector<double> const bias{1, -2, .5};
  auto const rows = expar::make_view(bias.data(), 4, 3, 0);
  matrix<double> z = random_matrix(4, 3, 44), x(4, 3);
  expar::transform_logits(ctx, expar::add_noise{2, expar::given_numbers{rows}}, z.view(), x.view());
  for (int t = 0; t < 4; ++t)
    for (int e = 0; e < 3; ++e)
      REQUIRE(x.get(t, e) == z.get(t, e) + 2 * bias[static_cast<std::size_t>(e)]);
}

TEMPLATE_TEST_CASE("the noisy gate of Shazeer and fastmoe", "[router][cases]", double, float) {
  using T = TestType;
  matrix<T> z(cases::logits), raw(noisy_gate::raw), normal(noisy_gate::normal), x(4, 4),
      sigma(4, 4);
  expar::add_learned_noise const noise{raw.view(), 1e-2, expar::given_numbers{normal.view()}};
  expar::transform_logits(ctx, noise, z.view(), x.view());
  require_matrix(x, noisy_gate::noisy);
  for (int t = 0; t < 4; ++t)
    for (int e = 0; e < 4; ++e) sigma.at(t, e) = noise.at(t).template deviation<T>(e);
  require_matrix(sigma, noisy_gate::deviation);
  expar::routes<T> routes(4, 2);
  expar::route(ctx,
               expar::router({.experts = 4, .top_k = 2}, noise, expar::logit_score{},
                             expar::softmax_weights{}),
               z.view(), routes);
  matrix<T> weights(4, 2);
  for (int t = 0; t < 4; ++t)
    for (int j = 0; j < 2; ++j) {
      auto const at = static_cast<std::size_t>(t), choice = static_cast<std::size_t>(j);
      REQUIRE(routes.ids(t, j) == noisy_gate::ids[at][choice]);
      weights.at(t, j) = routes.weights(t, j);
    }
  require_matrix(weights, noisy_gate::weights);
}

TEMPLATE_TEST_CASE("the noisy logits of V-MoE", "[router][cases]", double, float) {
  matrix<TestType> z(cases::logits), normal(v_moe::normal), x(4, 4);
  expar::given_numbers const given{normal.view()};
  expar::transform_logits(ctx, expar::add_noise{v_moe::scale, given}, z.view(), x.view());
  require_matrix(x, v_moe::noisy);
}

TEST_CASE("learned noise has gradients for logits and raw", "[router]") {
  expar::index_t const tokens = 12, experts = shape.experts;
  matrix<double> z = random_matrix(tokens, experts, 51), raw = random_matrix(tokens, experts, 52),
                 normal = random_matrix(tokens, experts, 53), dw = random_matrix(tokens, 2, 54),
                 dz(tokens, experts), d_raw(tokens, experts, 2);
  z.set(3, 1, -inf), z.set(4, 0, qnan);
  auto const router_of = [&](auto numbers) {
    return expar::router(shape, expar::add_learned_noise{raw.view(), 1e-2, numbers},
                         expar::temperature{.7}, expar::softmax_score{}, expar::renormalize{});
  };
  auto const compare = [&](auto numbers) {
    auto const r = router_of(numbers);
    expar::routes<double> routes(tokens, 2), moved(tokens, 2);
    expar::route(ctx, r, z.view(), routes);
    auto const loss = [&] {
      expar::route(ctx, r, z.view(), moved);
      double sum = 0;
      for (expar::index_t t = 0; t < tokens; ++t)
        for (int j = 0; j < 2; ++j) {
          REQUIRE(moved.ids(t, j) == routes.ids(t, j));
          sum += moved.weights(t, j) * dw.get(t, j);
        }
      return sum;
    };
    expar::route_backward(ctx, r, z.view(), routes, dw.view(), dz.view());
    expar::learned_noise_backward(ctx, expar::add_learned_noise{raw.view(), 1e-2, numbers},
                                  dz.view(), d_raw.view());
    double largest = 0;
    for (expar::index_t t = 0; t < tokens; ++t)
      for (expar::index_t e = 0; e < experts; ++e)
        for (auto [values, gradient] : {std::pair{&z, &dz}, std::pair{&raw, &d_raw}}) {
          double const at = values->get(t, e), step = 1e-6;
          values->set(t, e, at + step);
          double const above = loss();
          values->set(t, e, at - step);
          double const below = loss();
          values->set(t, e, at);
          CAPTURE(t, e);
          REQUIRE_THAT(gradient->get(t, e), WithinAbs((above - below) / (2 * step), 1e-8));
          largest = std::max(largest, std::abs(gradient->get(t, e)));
        }
    REQUIRE(largest > .05);
    REQUIRE(d_raw.get(3, 1) == 0);
    REQUIRE(d_raw.get(4, 0) == 0);
  };
  compare(expar::given_numbers{normal.view()});
  compare(expar::normals{stream});
}

TEST_CASE("a gradient of 0 is one for raw, whatever raw is", "[router]") {
  matrix<float> raw(std::vector<row_type>{{qnan, inf, 0}});
  matrix<expar::bfloat16> d(std::vector<row_type>{{0, 0, 2}}), d_raw(1, 3);
  std::vector<float> const one{1, 1, 1};
  expar::learned_noise_backward(
      ctx,
      expar::add_learned_noise{raw.view(), 1e-2,
                               expar::given_numbers{expar::make_view(one.data(), 1, 3)}},
      d.view(), d_raw.view());
  REQUIRE(d_raw.row(0) == row_type{0, 0, 1});
  expar::learned_noise_backward(
      ctx, expar::add_learned_noise{raw.view(), 1e-2, expar::normals{stream}}, d.view(), d.view());
  REQUIRE(d.get(0, 0) == 0);
}

TEST_CASE("the number of threads does not show in the gradient of raw", "[router]") {
  for (expar::index_t tokens : {0, 3000}) {
    matrix<double> raw = random_matrix(tokens, 5, 55), d = random_matrix(tokens, 5, 56),
                   one(tokens, 5), three(tokens, 5);
    expar::add_learned_noise const noise{raw.view(), 1e-2, expar::normals{stream}};
    expar::learned_noise_backward(ctx, noise, d.view(), one.view());
    expar::learned_noise_backward(expar::host_context(3), noise, d.view(), three.view());
    REQUIRE(one.data == three.data);
  }
}

TEST_CASE("the largest logit with Gumbel noise is a sample of the softmax", "[router]") {
  expar::index_t const tokens = 40000;
  std::vector<double> const row{1, 0, -1, .5}, n = [&] {
    auto const logits = expar::make_view(row.data(), tokens, 4, 0);
    expar::routes<double> routes(tokens, 1);
    expar::route(ctx,
                 expar::router({.experts = 4, .top_k = 1},
                               expar::add_noise{1, expar::gumbels{stream}}, expar::softmax_score{}),
                 logits, routes);
    std::vector<double> count(4);
    for (expar::index_t t = 0; t < tokens; ++t) ++count[static_cast<std::size_t>(routes.ids(t, 0))];
    return count;
  }();
  double sum = 0, distance = 0;
  for (double z : row) sum += std::exp(z);
  for (std::size_t e = 0; e < 4; ++e) {
    double const expected = static_cast<double>(tokens) * std::exp(row[e]) / sum;
    distance += (n[e] - expected) * (n[e] - expected) / expected;
  }
  REQUIRE(distance < 16.3);  // chi square with 3 degrees of freedom: one sample in a thousand
}

TEMPLATE_TEST_CASE("neither threads nor ranks show in noisy routes", "[router]", double, float,
                   expar::bfloat16) {
  using T = TestType;
  expar::index_t const tokens = 3000, experts = shape.experts, mine = 1234;
  matrix<double> from = random_matrix(tokens, experts, 61);
  matrix<T> z(tokens, experts, 3), raw(tokens, experts, 1);
  for (expar::index_t t = 0; t < tokens; ++t)
    for (expar::index_t e = 0; e < experts; ++e)
      z.set(t, e, from.get(t, e)), raw.set(t, e, from.get(t, experts - 1 - e));
  auto const route = [&](expar::host_context const& on, expar::index_t first, expar::index_t n) {
    random_stream part = stream;
    part.first_token = first;
    auto const rows = [&](matrix<T>& m) {
      return expar::make_view(m.view().row(first), n, experts, m.pitch);
    };
    expar::routes<T> routes(n, 2);
    expar::route(on,
                 expar::router(shape, expar::multiply_uniform{.1, expar::uniforms{part}},
                               expar::add_learned_noise{rows(raw), 1e-2, expar::normals{part}},
                               expar::add_noise{.5, expar::gumbels{part}}, expar::softmax_score{}),
                 rows(z), routes);
    return routes;
  };
  auto const same = [](expar::routes<T> const& whole, expar::index_t first,
                       expar::routes<T> const& part) {
    bool all = true;
    for (expar::index_t t = 0; t < part.ids.extents[0]; ++t)
      for (int j = 0; j < 2; ++j)
        all = all && whole.ids(first + t, j) == part.ids(t, j) &&
              expar::widen(whole.weights(first + t, j)) == expar::widen(part.weights(t, j));
    return all;
  };
  auto const whole = route(ctx, 0, tokens);
  REQUIRE(same(whole, 0, route(expar::host_context(3), 0, tokens)));
  REQUIRE(same(whole, 0, route(ctx, 0, mine)));
  REQUIRE(same(whole, mine, route(ctx, mine, tokens - mine)));
}

TEST_CASE("noise of the key of a second expert", "[router]") {
  expar::add_noise const noise{5, expar::gumbels{stream}};
  auto const x = expar::perturbed_rest{noise}.at(7);
  STATIC_REQUIRE(expar::selection_policy<std::remove_const_t<decltype(x)>>);
  row_type const keys{1, 4, 0, 3, -inf, 2};
  std::int32_t ids[2];
  double scratch[8];
  x.select(keys.data(), keys.data(), 6, 2, ids, scratch);
  int best = 0;
  for (int e : {0, 2, 3, 5})
    if (noise.at(7).of(keys[static_cast<std::size_t>(e)], e) >
        noise.at(7).of(keys[static_cast<std::size_t>(best)], best))
      best = e;
  REQUIRE(ids[0] == 1);
  REQUIRE(ids[1] == best);
}

TEST_CASE("noise refuses what does not fit", "[router]") {
  matrix<float> z(2, 3), d(2, 3), d_raw(2, 3);
  auto const null = expar::make_view<float>(nullptr, 2, 3);
  auto const small = expar::make_view(d.data.data(), 1, 3);
  auto const narrow = expar::make_view(d.data.data(), 2, 2);
  expar::given_numbers const given{small};
  expar::normals const drawn{stream}, endless{{.step = -1}};
  auto const forward = [&](auto const& transform) {
    return sentence_of([&] { expar::transform_logits(ctx, transform, z.view(), d_raw.view()); });
  };
  std::string const numbers =
      "expar: transform_logits: given numbers has extent 1 in dimension 0, but the number of "
      "tokens is 2";
  REQUIRE(forward(expar::add_noise{1, given}) == numbers);
  REQUIRE(forward(expar::add_uniform{1, given}) == numbers);
  REQUIRE(forward(expar::multiply_uniform{1, given}) == numbers);
  REQUIRE(forward(expar::random_logits{true, given}) == numbers);
  REQUIRE(forward(expar::add_learned_noise{z.view(), 1, given}) == numbers);
  REQUIRE(
      forward(expar::add_learned_noise{narrow, 1, drawn}) ==
      "expar: transform_logits: raw has extent 2 in dimension 1, but the number of experts is 3");
  REQUIRE(forward(expar::add_noise{1, endless}) ==
          "expar: transform_logits: step is -1; it is 0 to 4294967295");
  expar::routes<float> routes(2, 1);
  REQUIRE(sentence_of([&] {
            expar::route(ctx,
                         expar::router({.experts = 3, .top_k = 1}, expar::add_noise{1, endless},
                                       expar::softmax_score{}),
                         z.view(), routes);
          }) == "expar: route: step is -1; it is 0 to 4294967295");
  auto const backward = [&](auto raw, auto const& source, auto const& in, auto const& out) {
    return sentence_of([&] {
      expar::learned_noise_backward(ctx, expar::add_learned_noise{raw, 1, source}, in, out);
    });
  };
  REQUIRE(backward(null, drawn, d.view(), d_raw.view()) ==
          "expar: learned_noise_backward: raw has 6 elements but its data is null");
  REQUIRE(backward(z.view(), drawn, null, d_raw.view()) ==
          "expar: learned_noise_backward: d_noisy has 6 elements but its data is null");
  REQUIRE(backward(z.view(), drawn, small, d_raw.view()) ==
          "expar: learned_noise_backward: d_noisy has extent 1 in dimension 0, but the number of "
          "tokens is 2");
  REQUIRE(backward(z.view(), drawn, narrow, d_raw.view()) ==
          "expar: learned_noise_backward: d_noisy has extent 2 in dimension 1, but the number of "
          "experts is 3");
  REQUIRE(backward(z.view(), drawn, d.view(), null) ==
          "expar: learned_noise_backward: d_raw has 6 elements but its data is null");
  REQUIRE(backward(z.view(), drawn, d.view(), small) ==
          "expar: learned_noise_backward: d_raw has extent 1 in dimension 0, but the number of "
          "tokens is 2");
  REQUIRE(backward(z.view(), drawn, d.view(), narrow) ==
          "expar: learned_noise_backward: d_raw has extent 2 in dimension 1, but the number of "
          "experts is 3");
  REQUIRE(
      backward(z.view(), given, d.view(), d_raw.view()) ==
      "expar: learned_noise_backward: given numbers has extent 1 in dimension 0, but the number "
      "of tokens is 2");
  // One row behind.
  matrix<float> three(3, 3);
  auto const first = expar::make_view(three.data.data(), 2, 3),
             later = expar::make_view(three.data.data() + 3, 2, 3);
  std::string const f = "expar: learned_noise_backward: d_raw overlaps ",
                    beside = " in memory; it is that very tensor, or apart from it";
  REQUIRE(backward(first, drawn, d.view(), later) == f + "raw" + beside);
  REQUIRE(backward(z.view(), drawn, first, later) == f + "d_noisy" + beside);
  REQUIRE(backward(z.view(), expar::given_numbers{first}, d.view(), later) ==
          f + "given numbers" + beside);
}

TEST_CASE("the gradient of learned noise is added where the caller says so", "[router]") {
  auto raw = random_matrix(9, 6, 77), d = random_matrix(9, 6, 78);
  d.set(3, 2, 0);
  expar_test::require_adds<double>(9, 6, [&](auto&& to) {
    expar::learned_noise_backward(
        ctx, expar::add_learned_noise{raw.view(), .01, expar::normals{stream}}, d.view(), to);
  });
}
