// SPDX-License-Identifier: Apache-2.0
#include <expar/router/draw_numbers.hpp>

#include "../support/catch.hpp"
#include "support.hpp"

using router_test::matrix;

TEST_CASE("numbers are drawn into tensors, whatever draws them", "[router]") {
  expar::random_stream const stream{.seed = 5, .step = 7, .layer = 2, .first_token = 100};
  expar::uniforms const source{stream, expar::random_purpose::drop_order};
  matrix<float> one(301, 3, 2), three(301, 3, 2), later(201, 3);
  expar::draw_numbers(expar::host_context(), source, one.view());
  expar::draw_numbers(expar::host_context(3), source, three.view());
  REQUIRE(one.data == three.data);
  for (int t = 0; t < 301; ++t)
    for (int i = 0; i < 3; ++i) REQUIRE(one.at(t, i) == source.at(t).of<float>(i));
  // A rank that begins at another token has the numbers of its tokens.
  expar::random_stream moved = stream;
  moved.first_token += 100;
  expar::draw_numbers(expar::host_context(),
                      expar::uniforms{moved, expar::random_purpose::drop_order}, later.view());
  for (int t = 0; t < 201; ++t)
    for (int i = 0; i < 3; ++i) REQUIRE(later.at(t, i) == one.at(t + 100, i));
  matrix<expar::bfloat16> rounded(4, 2);
  expar::draw_numbers(expar::host_context(), expar::normals{stream}, rounded.view());
  REQUIRE(rounded.get(1, 1) == static_cast<double>(expar::widen(expar::narrow<expar::bfloat16>(
                                   expar::normals{stream}.at(1).of<float>(1)))));
}

TEMPLATE_TEST_CASE("uniform numbers are below 1 in every element type", "[router]", expar::bfloat16,
                   expar::half, expar::float8_e4m3, router_test::fixed16, float, double) {
  using A = expar::accumulator_t<TestType>;
  auto const next_is_above = [](A below, A x) {
    // The numbers above `below` are those that narrow() gives for all that lie above it.
    A y = below, step = A(0x1p-30);
    while (!(y > below)) y = expar::widen(expar::narrow<TestType>(below + step)), step *= 2;
    return y > x;
  };
  auto const check = [&](A x) {
    A const down = expar::widen(expar::detail::narrow_down<TestType>(x));
    REQUIRE(down >= 0);
    REQUIRE(down <= x);
    REQUIRE(down < 1);
    if constexpr (sizeof(TestType) < 4)
      REQUIRE(next_is_above(down, x));
    else
      REQUIRE(down == x);
  };
  for (A x : {A(0), A(0x1p-24), A(.5), A(1) - A(0x1p-24), A(1) - A(0x1p-12), A(1) / 3}) check(x);
  router_test::random rng(5);
  for (int i = 0; i < 2000; ++i) {
    auto const n = static_cast<A>(rng.integer(0, (1 << 24) - 1)) * A(0x1p-24);
    check(n);
    check(n * A(0x1p-10));
  }
  // One number in 512 would be rounded to 1 in bfloat16.
  expar::uniforms const source{{.seed = 3}};
  matrix<TestType> out(100, 100);
  expar::draw_numbers(expar::host_context(), source, out.view());
  double most = 0, sum = 0;
  for (int t = 0; t < 100; ++t)
    for (int i = 0; i < 100; ++i) most = std::max(most, out.get(t, i)), sum += out.get(t, i);
  CHECK(most < 1);
  CHECK(most > .9);
  CHECK(std::abs(sum / 10000 - .5) < .05);
}

TEST_CASE("given numbers are drawn in place, or apart", "[router]") {
  matrix<float> numbers(std::vector<router_test::row_type>{{.25, .5}, {1, -3}, {7, 7}});
  auto const out = expar::make_view(numbers.data.data(), 2, 2);
  expar::given_numbers const given{out};
  expar::draw_numbers(expar::host_context(), given, out);
  CHECK(numbers.data == std::vector<float>{.25, .5, 1, -3, 7, 7});
  CHECK(router_test::sentence_of([&] {
          expar::draw_numbers(expar::host_context(), given,
                              expar::make_view(numbers.data.data() + 2, 2, 2));
        }) ==
        "expar: draw_numbers: out overlaps given numbers in memory; it is that very tensor, or "
        "apart from it");
  CHECK(numbers.data == std::vector<float>{.25, .5, 1, -3, 7, 7});
}

TEST_CASE("what cannot be drawn is said", "[router]") {
  matrix<float> out(4, 2);
  expar::random_stream const stream{.seed = 1, .step = -1};
  REQUIRE(router_test::sentence_of([&] {
            expar::draw_numbers(expar::host_context(), expar::normals{stream}, out.view());
          }) == "expar: draw_numbers: step is -1; it is 0 to 4294967295");
  std::vector<float> const few(6);
  expar::given_numbers const given{expar::make_view(few.data(), 3, 2)};
  REQUIRE(router_test::sentence_of([&] {
            expar::draw_numbers(expar::host_context(), given, out.view());
          }).find("expar: draw_numbers: ") == 0);
}
