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
