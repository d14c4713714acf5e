// SPDX-License-Identifier: Apache-2.0
#include <expar/router/transform_logits.hpp>

#include "../support/adds.hpp"
#include "../support/catch.hpp"
#include "support.hpp"

using Catch::Matchers::WithinAbs;
using router_test::inf;
using router_test::matrix;
using router_test::qnan;
using router_test::row_type;
using router_test::sentence_of;

namespace {

expar::host_context const ctx;
expar::soft_cap const cap{2};

}  // namespace

TEST_CASE("transformed logits and their gradient follow the formula", "[router]") {
  router_test::random rng(31);
  for (int tokens : {0, 1, 70})
    for (int experts : {1, 9}) {
      matrix<double> z(tokens, experts, 1), x(tokens, experts, 2), dx(tokens, experts, 3),
          dz(tokens, experts);
      for (double& a : z.data) a = rng.normal();
      for (double& a : dx.data) a = rng.normal();
      for (double& a : x.data) a = 77;
      expar::transform_logits(ctx, cap, z.view(), x.view());
      expar::transform_logits_backward(ctx, cap, z.view(), dx.view(), dz.view());
      auto const by_definition = [](double a) { return 2 * std::tanh(a / 2); };
      for (int t = 0; t < tokens; ++t) {
        for (int e = 0; e < experts; ++e) {
          double const a = z.get(t, e);
          REQUIRE_THAT(x.get(t, e), WithinAbs(by_definition(a), 1e-14));
          double const slope = (by_definition(a + 1e-5) - by_definition(a - 1e-5)) / 2e-5;
          REQUIRE_THAT(dz.get(t, e), WithinAbs(dx.get(t, e) * slope, 1e-9));
        }
        REQUIRE(x.at(t, experts) == 77);
      }
    }
}

TEST_CASE("masked logits stay masked in every transform", "[router]") {
  matrix<float> z(std::vector<row_type>{{qnan, -inf, inf, 4}}),
      dx(std::vector<row_type>{{1, 1, 1, 1}});
  expar::temperature const half{.5};
  expar::transform_logits_backward(ctx, half, z.view(), dx.view(), dx.view());
  REQUIRE(dx.row(0) == row_type{0, 0, 2, 2});
  expar::transform_logits(ctx, half, z.view(), z.view());
  REQUIRE(z.row(0) == row_type{-inf, -inf, inf, 8});
}

TEST_CASE("transformed logits are rounded once", "[router]") {
  matrix<expar::bfloat16> z(std::vector<row_type>{{1, -2.5, 3}}), x(1, 3);
  matrix<router_test::fixed16> fixed(1, 3);
  expar::transform_logits(ctx, expar::temperature{3}, z.view(), x.view());
  expar::transform_logits(ctx, expar::temperature{3}, z.view(), fixed.view());
  for (int e = 0; e < 3; ++e) {
    float const exact = static_cast<float>(z.get(0, e)) / 3;
    REQUIRE(x.at(0, e).bits == expar::narrow<expar::bfloat16>(exact).bits);
    REQUIRE(fixed.at(0, e).ticks == expar::narrow<router_test::fixed16>(exact).ticks);
  }
}

TEST_CASE("the number of threads does not show in transformed logits", "[router]") {
  router_test::random rng(32);
  for (int experts : {17, 9000}) {
    int const tokens = experts == 17 ? 3333 : 5;
    matrix<float> z(tokens, experts), one(tokens, experts), three(tokens, experts);
    for (float& a : z.data) a = static_cast<float>(rng.normal());
    expar::host_context const threads(3);
    expar::transform_logits(ctx, cap, z.view(), one.view());
    expar::transform_logits(threads, cap, z.view(), three.view());
    REQUIRE(one.data == three.data);
    expar::transform_logits_backward(ctx, cap, z.view(), z.view(), one.view());
    expar::transform_logits_backward(threads, cap, z.view(), z.view(), three.view());
    REQUIRE(one.data == three.data);
  }
}

TEST_CASE("the gradient of transformed logits may be written over the logits", "[router]") {
  router_test::random rng(91);
  matrix<float> z(30, 5), d(30, 5), apart(30, 5);
  for (float& x : z.data) x = static_cast<float>(rng.normal());
  for (float& x : d.data) x = static_cast<float>(rng.normal());
  expar::transform_logits_backward(ctx, cap, z.view(), d.view(), apart.view());
  auto over = z;
  expar::transform_logits_backward(ctx, cap, over.view(), d.view(), over.view());
  REQUIRE(over.data == apart.data);
}

TEST_CASE("transform_logits refuses what does not fit", "[router]") {
  matrix<float> z(2, 3), out(2, 3);
  auto const null = expar::make_view<float>(nullptr, 2, 3);
  auto const small = expar::make_view(out.data.data(), 1, 3);
  auto const narrow = expar::make_view(out.data.data(), 2, 2);
  auto const overlapping = expar::make_view(out.data.data(), 2, 3, 1);
  auto const forward = [](auto const&... arguments) {
    return sentence_of([&] { expar::transform_logits(ctx, arguments...); });
  };
  auto const backward = [](auto const&... arguments) {
    return sentence_of([&] { expar::transform_logits_backward(ctx, arguments...); });
  };
  REQUIRE(forward(cap, null, out.view()) ==
          "expar: transform_logits: logits has 6 elements but its data is null");
  REQUIRE(forward(cap, z.view(), null) ==
          "expar: transform_logits: out has 6 elements but its data is null");
  REQUIRE(forward(cap, z.view(), overlapping) ==
          "expar: transform_logits: out has rows of 3 elements only 1 elements apart; rows that "
          "are written must not overlap");
  REQUIRE(forward(cap, z.view(), small) ==
          "expar: transform_logits: out has extent 1 in dimension 0, but the number of tokens is "
          "2");
  REQUIRE(forward(cap, z.view(), narrow) ==
          "expar: transform_logits: out has extent 2 in dimension 1, but the number of experts is "
          "3");
  matrix<float> tall(3, 3);
  expar::add_rows const add{tall.view()};
  REQUIRE(
      forward(add, z.view(), out.view()) ==
      "expar: transform_logits: addend has extent 3 in dimension 0, but the number of tokens is "
      "2");
  REQUIRE(backward(cap, null, z.view(), out.view()) ==
          "expar: transform_logits_backward: logits has 6 elements but its data is null");
  REQUIRE(backward(cap, z.view(), null, out.view()) ==
          "expar: transform_logits_backward: d_out has 6 elements but its data is null");
  REQUIRE(backward(cap, z.view(), small, out.view()) ==
          "expar: transform_logits_backward: d_out has extent 1 in dimension 0, but the number of "
          "tokens is 2");
  REQUIRE(backward(cap, z.view(), narrow, out.view()) ==
          "expar: transform_logits_backward: d_out has extent 2 in dimension 1, but the number of "
          "experts is 3");
  REQUIRE(backward(cap, z.view(), z.view(), overlapping) ==
          "expar: transform_logits_backward: d_logits has rows of 3 elements only 1 elements "
          "apart; rows that are written must not overlap");
  REQUIRE(backward(cap, z.view(), z.view(), small) ==
          "expar: transform_logits_backward: d_logits has extent 1 in dimension 0, but the number "
          "of tokens is 2");
  REQUIRE(backward(add, z.view(), z.view(), out.view()) ==
          "expar: transform_logits_backward: addend has extent 3 in dimension 0, but the number of "
          "tokens is 2");
  // One row behind.
  matrix<float> three(3, 3);
  auto const first = expar::make_view(three.data.data(), 2, 3),
             later = expar::make_view(three.data.data() + 3, 2, 3);
  std::string const beside = " in memory; it is that very tensor, or apart from it";
  REQUIRE(forward(cap, first, later) == "expar: transform_logits: out overlaps logits" + beside);
  REQUIRE(backward(cap, first, z.view(), later) ==
          "expar: transform_logits_backward: d_logits overlaps logits" + beside);
  REQUIRE(backward(cap, z.view(), first, later) ==
          "expar: transform_logits_backward: d_logits overlaps d_out" + beside);
}

TEST_CASE("the gradient of transformed logits is added where the caller says so", "[router]") {
  router_test::random rng(33);
  matrix<float> z(9, 5), d(9, 5);
  for (auto* m : {&z, &d})
    for (float& x : m->data) x = static_cast<float>(rng.normal());
  z.set(4, 2, qnan);
  expar_test::require_adds<float>(
      9, 5, [&](auto&& to) { expar::transform_logits_backward(ctx, cap, z.view(), d.view(), to); });
}

TEST_CASE("what the tensors of a transform hold is checked", "[router]") {
  std::vector<std::int32_t> const classes{0, 2}, bounds{0, 1, 3};
  matrix<float> z(2, 3), out(2, 3);
  expar::experts_of_class const by{expar::make_view(classes.data(), 2),
                                   expar::make_view(bounds.data(), 3)};
  REQUIRE(sentence_of([&] { expar::transform_logits(ctx, by, z.view(), out.view()); }) ==
          "expar: transform_logits: classes(1) is 2; a class is -1 (all experts) or 0 to 1");
}
