// SPDX-License-Identifier: Apache-2.0
#include <expar/router/random.hpp>

#include <array>
#include <set>
#include <utility>

#include "../support/catch.hpp"
#include "support.hpp"

using Catch::Matchers::WithinAbs;
using Catch::Matchers::WithinRel;
using expar::random_draw;
using expar::random_purpose;
using expar::random_stream;
using router_test::row_type;
using router_test::sentence_of;

namespace {

using words = std::array<std::uint32_t, 4>;

words philox(words c, std::uint32_t key0, std::uint32_t key1) {
  expar::detail::random_words const w = expar::detail::philox(
      {{c[0], c[1], c[2], c[3]}}, static_cast<std::uint64_t>(key1) << 32 | key0);
  return {w.at[0], w.at[1], w.at[2], w.at[3]};
}

constexpr int tokens = 400, columns = 250;

template <class F>
row_type draw_all(F number) {
  random_stream const stream{.seed = 17, .step = 3, .layer = 2, .first_token = 1000};
  row_type all;
  for (int t = 0; t < tokens; ++t)
    for (int c = 0; c < columns; ++c)
      all.push_back(static_cast<double>(number(stream.at(t, c, random_purpose::normal_noise))));
  return all;
}

/// Mean and variance within five of their standard errors, and the distance from the distribution
/// function within what one sample in some thousand exceeds (Kolmogorov and Smirnov).
template <class F>
void require_distribution(row_type x, double mean, double variance, double fourth, F cdf) {
  auto const n = static_cast<double>(x.size());
  double sum = 0, squares = 0, distance = 0;
  for (double a : x) sum += a;
  for (double a : x) squares += (a - sum / n) * (a - sum / n);
  REQUIRE_THAT(sum / n, WithinAbs(mean, 5 * std::sqrt(variance / n)));
  REQUIRE_THAT(squares / n, WithinAbs(variance, 5 * std::sqrt((fourth - variance * variance) / n)));
  std::sort(x.begin(), x.end());
  for (std::size_t i = 0; i < x.size(); ++i) {
    double const f = cdf(x[i]), below = static_cast<double>(i) / n;
    distance = std::max({distance, f - below, below + 1 / n - f});
  }
  REQUIRE(distance < 2.2 / std::sqrt(n));
}

double correlation(row_type const& x, row_type const& y) {
  double xy = 0, xx = 0, yy = 0;
  for (std::size_t i = 0; i < x.size(); ++i)
    xy += x[i] * y[i], xx += x[i] * x[i], yy += y[i] * y[i];
  return xy / std::sqrt(xx * yy);
}

}  // namespace

TEST_CASE("Philox4x32-10 gives the answers that Random123 publishes", "[router]") {
  std::uint32_t const all = 0xffffffff;
  REQUIRE(philox({0, 0, 0, 0}, 0, 0) == words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
  REQUIRE(philox({all, all, all, all}, all, all) ==
          words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
  REQUIRE(philox({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, 0xa4093822, 0x299f31d0) ==
          words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
  STATIC_REQUIRE(random_stream{}.at(0, 0, random_purpose{0}).first == 0x6627e8d5e169c58d);
}

TEST_CASE("a stream's bits are those of its counter", "[router]") {
  random_stream const stream{
      .seed = 0x299f31d0a4093822, .step = 0x13198a2e, .layer = 0x0370, .first_token = 0x4424000000};
  random_draw const d = stream.at(0x3f6a88, 0x85a308d3, random_purpose{0x73});
  REQUIRE(d.first == 0xd16cfe0994fdcceb);
  REQUIRE(d.second == 0x5001e42024126ea1);
}

TEMPLATE_TEST_CASE("random numbers are distributed as they say", "[router]", double, float) {
  using A = TestType;
  require_distribution(draw_all([](random_draw d) { return d.uniform<A>(); }), .5, 1. / 12, 1. / 80,
                       [](double x) { return x; });
  require_distribution(draw_all([](random_draw d) { return d.positive_uniform<A>(); }), .5, 1. / 12,
                       1. / 80, [](double x) { return x; });
  require_distribution(draw_all([](random_draw d) { return d.exponential<A>(); }), 1, 1, 9,
                       [](double x) { return -std::expm1(-x); });
  double const v = 1.6449340668482264;  // pi^2 / 6
  require_distribution(draw_all([](random_draw d) { return d.gumbel<A>(); }), .5772156649015329, v,
                       5.4 * v * v, [](double x) { return std::exp(-std::exp(-x)); });
  row_type const normal = draw_all([](random_draw d) { return d.normal<A>(); });
  require_distribution(normal, 0, 1, 3, [](double x) { return std::erfc(-x / std::sqrt(2)) / 2; });
  double third = 0;
  for (double x : normal) third += x * x * x;
  REQUIRE_THAT(third / tokens / columns, WithinAbs(0, 5 * std::sqrt(15. / tokens / columns)));
}

TEST_CASE("random numbers follow their formulas, and float those of double", "[router]") {
  random_stream const stream{.seed = 5};
  for (int t = 0; t < 20000; ++t) {
    random_draw const d = stream.at(t, 1, random_purpose::gumbel_noise);
    CAPTURE(t);
    double const u = (static_cast<double>(d.first >> 12) + .5) * 0x1p-52;
    double const turns = static_cast<double>(d.second >> 11) * 0x1p-53;
    double const exponential = -std::log(u);
    double const normal = std::sqrt(2 * exponential) * std::cos(6.283185307179586 * turns);
    REQUIRE(d.uniform<double>() == static_cast<double>(d.first >> 11) * 0x1p-53);
    REQUIRE(d.positive_uniform<double>() - d.uniform<double>() == 0x1p-53);
    REQUIRE_THAT(d.exponential<double>(), WithinRel(exponential, 1e-15));
    REQUIRE_THAT(d.gumbel<double>(), WithinAbs(-std::log(exponential), 2e-15));
    REQUIRE_THAT(d.normal<double>(), WithinAbs(normal, 1e-14));
    REQUIRE(static_cast<double>(d.uniform<float>()) <= d.uniform<double>());
    REQUIRE_THAT(static_cast<double>(d.uniform<float>()), WithinAbs(d.uniform<double>(), 0x1p-24));
    REQUIRE(d.positive_uniform<float>() - d.uniform<float>() == 0x1p-24f);
    REQUIRE_THAT(static_cast<double>(d.exponential<float>()), WithinRel(exponential, 4e-7));
    REQUIRE_THAT(static_cast<double>(d.gumbel<float>()), WithinAbs(-std::log(exponential), 1e-6));
    REQUIRE_THAT(static_cast<double>(d.normal<float>()), WithinAbs(normal, 3e-6));
  }
}

TEMPLATE_TEST_CASE("the outermost bits give finite numbers", "[router]", double, float) {
  using A = TestType;
  std::uint64_t const all = ~std::uint64_t{0};
  random_draw const low{0, 0}, high{all, all};
  double const unit = sizeof(A) == 4 ? 0x1p-24 : 0x1p-53, largest = 53 * std::log(2.);
  double const accuracy = sizeof(A) == 4 ? 1e-6 : 1e-14;
  REQUIRE(low.uniform<A>() == 0);
  REQUIRE(static_cast<double>(high.uniform<A>()) == 1 - unit);
  REQUIRE(static_cast<double>(low.positive_uniform<A>()) == unit);
  REQUIRE(high.positive_uniform<A>() == 1);
  REQUIRE_THAT(static_cast<double>(low.exponential<A>()), WithinRel(largest, accuracy));
  REQUIRE_THAT(static_cast<double>(high.exponential<A>()), WithinRel(0x1p-53, accuracy));
  REQUIRE_THAT(static_cast<double>(low.gumbel<A>()), WithinRel(-std::log(largest), accuracy));
  REQUIRE_THAT(static_cast<double>(high.gumbel<A>()), WithinRel(largest, accuracy));
  REQUIRE_THAT(static_cast<double>(low.normal<A>()), WithinRel(std::sqrt(2 * largest), accuracy));
  REQUIRE(std::isfinite(high.normal<A>()));
}

TEST_CASE("whatever differs in a stream, its numbers differ", "[router]") {
  std::set<std::pair<std::uint64_t, std::uint64_t>> seen;
  std::size_t n = 0;
  for (std::uint64_t seed : {0ull, 1ull, 1ull << 32})
    for (std::int64_t step : {0ll, 1ll, 1ll << 16})
      for (int layer : {0, 1, 256})
        for (expar::index_t token : {expar::index_t{0}, expar::index_t{1}, expar::index_t{1} << 32})
          for (int column : {0, 1, 256})
            for (int purpose : {0, 1, 2, 255}) {
              random_draw const d = random_stream{seed, step, layer}.at(
                  token, column, static_cast<random_purpose>(purpose));
              seen.insert({d.first, d.second}), ++n;
            }
  REQUIRE(seen.size() == n);
}

TEST_CASE("numbers of neighbours do not correlate", "[router]") {
  random_stream const stream{.seed = 23}, other_seed{.seed = 24}, step{.seed = 23, .step = 1},
      layer{.seed = 23, .layer = 1};
  row_type here, there[6];
  auto const p = random_purpose::normal_noise;
  for (int t = 0; t < 200; ++t)
    for (int c = 0; c < 100; ++c) {
      here.push_back(stream.at(t, c, p).normal<double>());
      random_draw const draws[] = {
          stream.at(t + 1, c, p), stream.at(t, c + 1, p),
          other_seed.at(t, c, p), step.at(t, c, p),
          layer.at(t, c, p),      stream.at(t, c, random_purpose::gumbel_noise)};
      for (std::size_t i = 0; i < 6; ++i) there[i].push_back(draws[i].normal<double>());
    }
  for (std::size_t i = 0; i < 6; ++i) {
    CAPTURE(i);
    REQUIRE(std::abs(correlation(here, there[i])) < 4 / std::sqrt(20000.));
  }
  row_type first, second;
  for (int t = 0; t < 20000; ++t) {
    random_draw const d = stream.at(t, 0, p);
    first.push_back(d.uniform<double>() - .5);
    second.push_back(random_draw{d.second, d.first}.uniform<double>() - .5);
  }
  REQUIRE(std::abs(correlation(first, second)) < 4 / std::sqrt(20000.));
}

TEST_CASE("ranks continue the tokens of others", "[router]") {
  random_stream const whole{.seed = 9, .step = 4}, part{.seed = 9, .step = 4, .first_token = 7};
  for (int t = 0; t < 9; ++t)
    REQUIRE(part.at(t, 3, random_purpose::drop_order).first ==
            whole.at(t + 7, 3, random_purpose::drop_order).first);
}

TEST_CASE("sources give numbers of their stream, or those of the caller", "[router]") {
  random_stream const stream{.seed = 3, .layer = 9};
  auto const draw = [&](random_purpose p) { return stream.at(5, 2, p); };
  REQUIRE(expar::uniforms{stream}.at(5).of<double>(2) ==
          draw(random_purpose::uniform_noise).uniform<double>());
  REQUIRE(expar::normals{stream}.at(5).of<float>(2) ==
          draw(random_purpose::normal_noise).normal<float>());
  REQUIRE(expar::gumbels{stream}.at(5).of<double>(2) ==
          draw(random_purpose::gumbel_noise).gumbel<double>());
  REQUIRE(expar::normals{stream, random_purpose{200}}.at(5).of<double>(2) ==
          draw(random_purpose{200}).normal<double>());
  std::vector<float> const mine{1, 2, 3, 4, 5, 6};
  expar::given_numbers const given{expar::make_view(mine.data(), 2, 3)};
  REQUIRE(given.at(1).of<double>(2) == 6);
  expar::detail::argument_table a("route");
  REQUIRE(sentence_of([&] { given.validate(a, 3, 2); }) == "nothing was thrown");
  REQUIRE(sentence_of([&] { given.validate(a, 3, 1); }) ==
          "expar: route: given numbers has extent 2 in dimension 0, but the number of tokens is 1");
}

TEST_CASE("a stream refuses what it cannot count", "[router]") {
  auto const sentence = [](random_stream const& s, expar::index_t n) {
    return sentence_of([&] { expar::uniforms{s}.validate("route", 8, n); });
  };
  expar::index_t const most = expar::index_t{1} << 40;
  REQUIRE(sentence({1, (std::int64_t{1} << 32) - 1, 65535, most - 4}, 4) == "nothing was thrown");
  REQUIRE(sentence({.step = -1}, 4) == "expar: route: step is -1; it is 0 to 4294967295");
  REQUIRE(sentence({.step = std::int64_t{1} << 32}, 4) ==
          "expar: route: step is 4294967296; it is 0 to 4294967295");
  REQUIRE(sentence({.layer = -1}, 4) == "expar: route: layer is -1; it is 0 to 65535");
  REQUIRE(sentence({.layer = 65536}, 4) == "expar: route: layer is 65536; it is 0 to 65535");
  REQUIRE(sentence({.first_token = -1}, 4) ==
          "expar: route: first_token is -1; with 4 tokens it is 0 to 1099511627772");
  REQUIRE(sentence({.first_token = most - 3}, 4) ==
          "expar: route: first_token is 1099511627773; with 4 tokens it is 0 to 1099511627772");
}
