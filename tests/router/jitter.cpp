// SPDX-License-Identifier: Apache-2.0
#include <expar/router/jitter.hpp>

#include <set>

#include "../support/adds.hpp"
#include "../support/catch.hpp"
#include "support.hpp"

using Catch::Matchers::WithinAbs;
using expar::random_stream;
using router_test::inf;
using router_test::matrix;
using router_test::qnan;
using router_test::row_type;
using router_test::sentence_of;

namespace {

expar::host_context const ctx;
random_stream const stream{.seed = 71, .step = 5, .layer = 3};

template <class T>
matrix<T> ones(expar::index_t rows, expar::index_t columns, expar::index_t gap = 0) {
  matrix<T> m(rows, columns, gap);
  for (expar::index_t t = 0; t < rows; ++t)
    for (expar::index_t c = 0; c < columns; ++c) m.set(t, c, 1);
  return m;
}
/// The upper bits of the word that the stream has for a token and a column.
double uniform(random_stream const& s, expar::index_t t, expar::index_t c,
               expar::random_purpose purpose) {
  expar::random_draw const d = s.at(t, c / 4, purpose);
  std::uint64_t const half = c % 4 < 2 ? d.first : d.second;
  return static_cast<double>(c % 2 == 0 ? half >> 32 : half & 0xffffffff) * 0x1p-32;
}

}  // namespace

TEST_CASE("jitter multiplies by its numbers, and so does its adjoint", "[router]") {
  router_test::random rng(72);
  double const eps = .25;
  for (int tokens : {0, 1, 40})
    for (int columns : {1, 3, 4, 4099}) {
      matrix<double> x(tokens, columns, 1), out(tokens, columns, 2), dx(tokens, columns);
      for (double& a : x.data) a = rng.normal();
      for (double& a : out.data) a = 77;
      expar::jitter(ctx, x.view(), eps, stream, out.view());
      expar::jitter_backward(ctx, x.view(), eps, stream, dx.view());
      bool all = true;
      for (int t = 0; t < tokens; ++t) {
        for (int c = 0; c < columns; ++c) {
          double const u = uniform(stream, t, c, expar::random_purpose::input_jitter);
          double const expected = x.get(t, c) * (1 - eps + 2 * eps * u);
          all = all && std::abs(out.get(t, c) - expected) < 1e-14 && dx.get(t, c) == out.get(t, c);
        }
        all = all && out.at(t, columns) == 77;
      }
      REQUIRE(all);
    }
}

TEST_CASE("input dropout keeps by its numbers, and so does its adjoint", "[router]") {
  router_test::random rng(73);
  for (double rate : {0., .3, .9}) {
    matrix<double> x(30, 101), out(30, 101), dx(30, 101);
    for (double& a : x.data) a = rng.normal();
    expar::input_dropout(ctx, x.view(), rate, stream, out.view());
    expar::input_dropout_backward(ctx, x.view(), rate, stream, dx.view());
    bool all = true;
    for (int t = 0; t < 30; ++t)
      for (int c = 0; c < 101; ++c) {
        bool const keeps = uniform(stream, t, c, expar::random_purpose::input_dropout) >= rate;
        double const expected = keeps ? x.get(t, c) / (1 - rate) : 0;
        all = all && std::abs(out.get(t, c) - expected) < 1e-13 && dx.get(t, c) == out.get(t, c);
      }
    REQUIRE(all);
  }
}

TEST_CASE("input dropout takes away what is not finite", "[router]") {
  matrix<float> x(1, 400);
  for (int c = 0; c < 400; ++c) x.at(0, c) = static_cast<float>(c % 2 == 0 ? inf : qnan);
  expar::input_dropout(ctx, x.view(), .5, stream, x.view());
  REQUIRE(std::count(x.data.begin(), x.data.end(), 0.f) > 150);
}

TEMPLATE_TEST_CASE("factors are distributed as they say", "[router]", double, float) {
  expar::index_t const tokens = 300, columns = 333;
  auto const n = static_cast<double>(tokens * columns);
  auto x = ones<TestType>(tokens, columns), out = x, kept = x;
  expar::jitter(ctx, x.view(), .1, stream, out.view());
  expar::input_dropout(ctx, x.view(), .2, stream, kept.view());
  double sum = 0, squares = 0, lowest = 2, highest = 0, zeros = 0, both = 0;
  std::set<double> different;
  for (expar::index_t t = 0; t < tokens; ++t)
    for (expar::index_t c = 0; c < columns; ++c) {
      double const f = out.get(t, c), k = kept.get(t, c);
      sum += f - 1, squares += (f - 1) * (f - 1), zeros += k == 0;
      both += (f - 1) * (k == 0 ? .8 : -.2);
      lowest = std::min(lowest, f), highest = std::max(highest, f);
      different.insert(f);
    }
  double const variance = .01 / 3;
  REQUIRE(std::abs(sum / n) < 5 * std::sqrt(variance / n));
  REQUIRE_THAT(squares / n,
               WithinAbs(variance, 5 * std::sqrt((1e-4 / 5 - variance * variance) / n)));
  REQUIRE(lowest >= .9 - 1e-7);
  REQUIRE(lowest < .9001);
  REQUIRE(highest <= 1.1 + 1e-7);
  REQUIRE(highest > 1.0999);
  REQUIRE_THAT(zeros / n, WithinAbs(.2, 5 * std::sqrt(.16 / n)));
  REQUIRE(std::abs(both / n) < 5 * std::sqrt(.16 * variance / n));
  REQUIRE(different.size() > (sizeof(TestType) == 8 ? 99800u : 90000u));
}

TEST_CASE("float and double inputs get the same factors", "[router]") {
  auto const x = ones<double>(20, 50);
  auto a = ones<double>(20, 50);
  auto b = ones<float>(20, 50);
  expar::jitter(ctx, a.view(), .1, stream, a.view());
  expar::jitter(ctx, b.view(), .1, stream, b.view());
  auto kept = x, out = x;
  auto kept_float = ones<float>(20, 50);
  expar::input_dropout(ctx, kept.view(), .4, stream, kept.view());
  expar::input_dropout(ctx, kept_float.view(), .4, stream, kept_float.view());
  for (int t = 0; t < 20; ++t)
    for (int c = 0; c < 50; ++c) {
      REQUIRE_THAT(b.get(t, c), WithinAbs(a.get(t, c), 2e-7));
      REQUIRE((kept.get(t, c) == 0) == (kept_float.get(t, c) == 0));
    }
}

TEST_CASE("inputs of 16 bits are rounded once", "[router]") {
  router_test::random rng(74);
  matrix<expar::bfloat16> x(9, 30, 2), out(9, 30);
  matrix<float> wide(9, 30);
  for (int t = 0; t < 9; ++t)
    for (int c = 0; c < 30; ++c) x.set(t, c, rng.normal());
  expar::jitter(ctx, x.view(), .1, stream, out.view());
  expar::jitter(ctx, x.view(), .1, stream, wide.view());
  for (int t = 0; t < 9; ++t)
    for (int c = 0; c < 30; ++c)
      REQUIRE(out.at(t, c).bits == expar::narrow<expar::bfloat16>(wide.at(t, c)).bits);
}

TEMPLATE_TEST_CASE("jitter and dropout take numbers of any source", "[router]", double, float,
                   expar::bfloat16) {
  router_test::random rng(76);
  using A = expar::accumulator_t<TestType>;
  matrix<TestType> x(20, 7, 2), out(20, 7), dropped(20, 7, 1), dx(20, 7);
  matrix<double> numbers(20, 7, 1);
  for (int t = 0; t < 20; ++t)
    for (int c = 0; c < 7; ++c) x.set(t, c, rng.normal()), numbers.set(t, c, rng.uniform());
  auto const check = [&](auto const& source) {
    expar::jitter(ctx, x.view(), .25, source, out.view());
    expar::jitter_backward(ctx, x.view(), .25, source, dx.view());
    expar::input_dropout(ctx, x.view(), .4, source, dropped.view());
    double const tolerance = sizeof(TestType) == 2 ? .02 : sizeof(TestType) == 4 ? 1e-6 : 1e-14;
    for (int t = 0; t < 20; ++t)
      for (int c = 0; c < 7; ++c) {
        double const u = static_cast<double>(source.at(t).template of<A>(c));
        REQUIRE_THAT(out.get(t, c), WithinAbs(x.get(t, c) * (.75 + .5 * u), tolerance));
        REQUIRE(dx.get(t, c) == out.get(t, c));
        bool const keeps = source.at(t).template of<double>(c) >= .4;
        REQUIRE_THAT(dropped.get(t, c), WithinAbs(keeps ? x.get(t, c) / .6 : 0, 2 * tolerance));
      }
    expar::input_dropout_backward(ctx, x.view(), .4, source, dx.view());
    for (int t = 0; t < 20; ++t)
      for (int c = 0; c < 7; ++c) REQUIRE(dx.get(t, c) == dropped.get(t, c));
  };
  check(expar::given_numbers{numbers.view()});
  check(expar::uniforms{stream, expar::random_purpose::input_jitter});
  check(expar::uniforms{stream, expar::random_purpose{130}});
}

TEST_CASE("jitter works in place, and neither threads nor ranks show", "[router]") {
  router_test::random rng(75);
  expar::index_t const tokens = 2000, columns = 37, mine = 777;
  matrix<float> x(tokens, columns, 3), whole(tokens, columns, 3), parts(tokens, columns, 3);
  for (float& a : x.data) a = static_cast<float>(rng.normal());
  expar::host_context const threads(3);
  expar::jitter(ctx, x.view(), .1, stream, whole.view());
  expar::jitter(threads, x.view(), .1, stream, parts.view());
  REQUIRE(whole.data == parts.data);
  for (auto [first, n] : {std::pair{expar::index_t{0}, mine}, std::pair{mine, tokens - mine}}) {
    random_stream part = stream;
    part.first_token = first;
    auto const rows = expar::make_view(x.view().row(first), n, columns, x.pitch);
    expar::jitter(ctx, rows, .1, part, rows);
  }
  for (expar::index_t t = 0; t < tokens; ++t) REQUIRE(x.row(t) == whole.row(t));
}

TEST_CASE("jitter refuses what does not fit", "[router]") {
  matrix<float> x(2, 3, 3), out(2, 3);
  auto const null = expar::make_view<float>(nullptr, 2, 3);
  auto const shifted = expar::make_view(x.data.data() + 1, 2, 3, 6);
  auto const jitter = [&](auto in, double eps, auto to, random_stream const& s = stream) {
    return sentence_of([&] { expar::jitter(ctx, in, eps, s, to); });
  };
  auto const none = expar::make_view(out.data.data(), 2, 3);
  REQUIRE(jitter(x.view(), -.1, none) == "expar: jitter: eps is -0.1; it is 0 to 1");
  REQUIRE(jitter(x.view(), 1.5, none) == "expar: jitter: eps is 1.5; it is 0 to 1");
  REQUIRE(jitter(x.view(), qnan, none) == "expar: jitter: eps is nan; it is 0 to 1");
  REQUIRE(jitter(null, .1, none) == "expar: jitter: x has 6 elements but its data is null");
  REQUIRE(jitter(x.view(), .1, null) == "expar: jitter: out has 6 elements but its data is null");
  REQUIRE(jitter(x.view(), .1, expar::make_view(out.data.data(), 1, 3)) ==
          "expar: jitter: out has extent 1 in dimension 0, but the number of tokens is 2");
  REQUIRE(jitter(x.view(), .1, expar::make_view(out.data.data(), 2, 2)) ==
          "expar: jitter: out has extent 2 in dimension 1, but the number of columns is 3");
  REQUIRE(jitter(x.view(), .1, shifted) ==
          "expar: jitter: out overlaps x in memory; it is that very tensor, or apart from it");
  REQUIRE(jitter(x.view(), .1, none, {.layer = -1}) ==
          "expar: jitter: layer is -1; it is 0 to 65535");
  REQUIRE(std::count(out.data.begin(), out.data.end(), 0.f) == 6);
  REQUIRE(sentence_of([&] { expar::jitter_backward(ctx, null, .1, stream, none); }) ==
          "expar: jitter_backward: d_out has 6 elements but its data is null");
  REQUIRE(sentence_of([&] { expar::jitter_backward(ctx, none, .1, stream, null); }) ==
          "expar: jitter_backward: d_x has 6 elements but its data is null");
  REQUIRE(sentence_of([&] { expar::input_dropout(ctx, x.view(), 1, stream, none); }) ==
          "expar: input_dropout: rate is 1; it is at least 0 and below 1");
  REQUIRE(sentence_of([&] { expar::input_dropout(ctx, null, .1, stream, none); }) ==
          "expar: input_dropout: x has 6 elements but its data is null");
  REQUIRE(sentence_of([&] { expar::input_dropout_backward(ctx, x.view(), -1, stream, none); }) ==
          "expar: input_dropout_backward: rate is -1; it is at least 0 and below 1");
  REQUIRE(sentence_of([&] { expar::input_dropout_backward(ctx, x.view(), .1, stream, null); }) ==
          "expar: input_dropout_backward: d_x has 6 elements but its data is null");
  expar::given_numbers const few{expar::make_view(out.data.data(), 1, 3)}, given{x.view()};
  REQUIRE(
      sentence_of([&] { expar::jitter(ctx, x.view(), .1, few, none); }) ==
      "expar: jitter: given numbers has extent 1 in dimension 0, but the number of tokens is 2");
  REQUIRE(sentence_of([&] { expar::input_dropout(ctx, none, .1, given, shifted); }) ==
          "expar: input_dropout: out overlaps given numbers in memory; it is that very tensor, or "
          "apart from it");
}

TEST_CASE("the gradients of jitter and dropout are added where the caller says so", "[router]") {
  router_test::random rng(301);
  matrix<float> d(9, 6);
  for (float& x : d.data) x = static_cast<float>(rng.normal());
  expar_test::require_adds<float>(
      9, 6, [&](auto&& to) { expar::jitter_backward(ctx, d.view(), .1, stream, to); });
  expar_test::require_adds<float>(
      9, 6, [&](auto&& to) { expar::input_dropout_backward(ctx, d.view(), .4, stream, to); });
}
