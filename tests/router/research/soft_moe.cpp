// SPDX-License-Identifier: Apache-2.0
#include <expar/router/research/soft_moe.hpp>

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

bool masked(double x) {
  return std::isnan(x) || x == -inf;
}

struct mixes {
  std::vector<row_type> dispatch, combine;
};

mixes by_definition(std::vector<row_type> const& z) {
  mixes out{z, z};
  for (std::size_t t = 0; t < z.size(); ++t)
    for (std::size_t s = 0; s < z[t].size(); ++s) {
      double over_tokens = 0, over_slots = 0;
      if (masked(z[t][s])) {
        out.dispatch[t][s] = out.combine[t][s] = 0;
        continue;
      }
      for (auto const& row : z)
        if (!masked(row[s])) over_tokens += std::exp(row[s] - z[t][s]);
      for (double x : z[t])
        if (!masked(x)) over_slots += std::exp(x - z[t][s]);
      out.dispatch[t][s] = 1 / over_tokens;
      out.combine[t][s] = 1 / over_slots;
    }
  return out;
}

}  // namespace

TEMPLATE_TEST_CASE("Soft MoE: dispatch and combine weights", "[router][cases]", double, float) {
  matrix<TestType> z(
      std::vector<row_type>{{0.5, 1.0, -0.5, 0.25}, {1.5, 0.0, 0.75, -1.0}, {0.0, 0.5, 1.0, 2.0}});
  matrix<TestType> dispatch(3, 4, 1), combine(3, 4, 2);
  expar::soft_moe_weights(ctx, z.view(), dispatch.view(), combine.view());
  double const expected_dispatch[3][4] = {
      {0.23122389762214907, 0.506480391055654, 0.11145747105020276, 0.14202311267846238},
      {0.6285317192117624, 0.1863237232258476, 0.38902479913658233, 0.040690303047394745},
      {0.14024438316608848, 0.3071958857184984, 0.499517729813215, 0.8172865842741428}};
  double const expected_combine[3][4] = {
      {0.26347673660676174, 0.43439969997822314, 0.0969276746245708, 0.20519588879044431},
      {0.5625620434340823, 0.12552455884487473, 0.2657354931598985, 0.04617790456114435},
      {0.07839411721683971, 0.12925004855316274, 0.21309730428862378, 0.5792585299413737}};
  double const precision = std::is_same_v<TestType, double> ? 1e-12 : 1e-5;
  for (int t = 0; t < 3; ++t)
    for (int s = 0; s < 4; ++s) {
      REQUIRE_THAT(dispatch.get(t, s), WithinAbs(expected_dispatch[t][s], precision));
      REQUIRE_THAT(combine.get(t, s), WithinAbs(expected_combine[t][s], precision));
    }
}

TEST_CASE("Soft MoE agrees with the definition, and its gradient with differences", "[router]") {
  router_test::random rng(191);
  for (int round = 0; round < 60; ++round) {
    int const tokens = static_cast<int>(rng.integer(0, round < 55 ? 6 : 150));
    int const slots = static_cast<int>(rng.integer(1, 6));
    std::vector<row_type> rows;
    for (int t = 0; t < tokens; ++t) {
      rows.emplace_back();
      for (int s = 0; s < slots; ++s)
        rows.back().push_back(rng.chance(.1) ? (rng.chance(.5) ? qnan : -inf) : rng.normal());
    }
    matrix<double> z(tokens, slots, 1), dispatch(tokens, slots, 2), combine(tokens, slots);
    matrix<double> dd(tokens, slots, 1), dc(tokens, slots, 3), dz(tokens, slots, 2);
    for (double& x : dd.data) x = rng.normal();
    for (double& x : dc.data) x = rng.normal();
    for (int t = 0; t < tokens; ++t)
      for (int s = 0; s < slots; ++s)
        z.set(t, s, rows[static_cast<std::size_t>(t)][static_cast<std::size_t>(s)]);
    expar::soft_moe_weights(ctx, z.view(), dispatch.view(), combine.view());
    expar::soft_moe_weights_backward(ctx, z.view(), dd.view(), dc.view(), dz.view());
    auto const expected = by_definition(rows);
    auto const loss = [&] {
      auto const moved = by_definition(rows);
      double sum = 0;
      for (int t = 0; t < tokens; ++t)
        for (int s = 0; s < slots; ++s)
          sum += dd.get(t, s) *
                     moved.dispatch[static_cast<std::size_t>(t)][static_cast<std::size_t>(s)] +
                 dc.get(t, s) *
                     moved.combine[static_cast<std::size_t>(t)][static_cast<std::size_t>(s)];
      return sum;
    };
    for (int t = 0; t < tokens; ++t)
      for (int s = 0; s < slots; ++s) {
        auto const tt = static_cast<std::size_t>(t), ss = static_cast<std::size_t>(s);
        REQUIRE_THAT(dispatch.get(t, s), WithinAbs(expected.dispatch[tt][ss], 1e-14));
        REQUIRE_THAT(combine.get(t, s), WithinAbs(expected.combine[tt][ss], 1e-14));
        double& x = rows[tt][ss];
        if (masked(x)) {
          REQUIRE(dz.get(t, s) == 0);
          continue;
        }
        if (tokens > 6 && !rng.chance(.02)) continue;
        double const at = x;
        x = at + 1e-5;
        double slope = loss();
        x = at - 1e-5;
        slope = (slope - loss()) / 2e-5;
        x = at;
        REQUIRE_THAT(dz.get(t, s), WithinAbs(slope, 1e-8));
      }
  }
}

TEST_CASE("Soft MoE where logits are special", "[router]") {
  matrix<float> z(std::vector<row_type>{{inf, -inf, 1e30}, {inf, qnan, 0}, {3, -inf, qnan}});
  matrix<expar::bfloat16> dispatch(3, 3), combine(3, 3);
  expar::soft_moe_weights(ctx, z.view(), dispatch.view(), combine.view());
  REQUIRE(dispatch.row(0) == row_type{.5, 0, 1});
  REQUIRE(dispatch.row(1) == row_type{.5, 0, 0});
  REQUIRE(dispatch.row(2) == row_type{0, 0, 0});
  REQUIRE(combine.row(0) == row_type{1, 0, 0});
  REQUIRE(combine.row(2) == row_type{1, 0, 0});
}

TEST_CASE("the number of threads does not show in Soft MoE", "[router]") {
  router_test::random rng(192);
  matrix<float> z(1000, 30), a(1000, 30), b(1000, 30), c(1000, 30), d(1000, 30);
  for (float& x : z.data) x = static_cast<float>(rng.normal());
  expar::host_context const threads(3);
  expar::soft_moe_weights(ctx, z.view(), a.view(), b.view());
  expar::soft_moe_weights(threads, z.view(), c.view(), d.view());
  REQUIRE(a.data == c.data);
  REQUIRE(b.data == d.data);
  expar::soft_moe_weights_backward(ctx, z.view(), z.view(), z.view(), a.view());
  expar::soft_moe_weights_backward(threads, z.view(), z.view(), z.view(), b.view());
  REQUIRE(a.data == b.data);
}

TEST_CASE("the gradient of Soft MoE may be written over what it reads", "[router]") {
  router_test::random rng(92);
  matrix<float> z(70, 5), dd(70, 5), dc(70, 5), apart(70, 5);
  for (auto* m : {&z, &dd, &dc})
    for (float& x : m->data) x = static_cast<float>(rng.normal());
  expar::soft_moe_weights_backward(ctx, z.view(), dd.view(), dc.view(), apart.view());
  auto a = z, b = dd, c = dc;
  expar::soft_moe_weights_backward(ctx, a.view(), dd.view(), dc.view(), a.view());
  expar::soft_moe_weights_backward(ctx, z.view(), b.view(), dc.view(), b.view());
  expar::soft_moe_weights_backward(ctx, z.view(), dd.view(), c.view(), c.view());
  REQUIRE(a.data == apart.data);
  REQUIRE(b.data == apart.data);
  REQUIRE(c.data == apart.data);
}

TEST_CASE("Soft MoE refuses what does not fit", "[router]") {
  matrix<float> z(2, 3), a(2, 3), b(2, 3), wide(2, 4);
  auto const mix = [&](auto& dispatch, auto& combine) {
    return sentence_of(
        [&] { expar::soft_moe_weights(ctx, z.view(), dispatch.view(), combine.view()); });
  };
  REQUIRE(mix(wide, b) ==
          "expar: soft_moe_weights: dispatch has extent 4 in dimension 1, but the number of slots "
          "is 3");
  REQUIRE(mix(a, wide) ==
          "expar: soft_moe_weights: combine has extent 4 in dimension 1, but the number of slots "
          "is 3");
  REQUIRE(mix(a, a) ==
          "expar: soft_moe_weights: combine overlaps dispatch in memory; the operation cannot work "
          "in place");
  REQUIRE(mix(z, b) ==
          "expar: soft_moe_weights: dispatch overlaps logits in memory; the operation cannot work "
          "in place");
  REQUIRE(sentence_of([&] {
            expar::soft_moe_weights_backward(ctx, z.view(), a.view(), wide.view(), b.view());
          }) ==
          "expar: soft_moe_weights_backward: d_combine has extent 4 in dimension 1, but the number "
          "of slots is 3");
  matrix<float> three(3, 3);
  auto const first = expar::make_view(three.data.data(), 2, 3),
             later = expar::make_view(three.data.data() + 3, 2, 3);
  auto const backward = [&](auto const& logits, auto const& dd, auto const& dc) {
    return sentence_of([&] { expar::soft_moe_weights_backward(ctx, logits, dd, dc, later); });
  };
  std::string const f = "expar: soft_moe_weights_backward: d_logits overlaps ",
                    beside = " in memory; it is that very tensor, or apart from it";
  REQUIRE(backward(first, a.view(), b.view()) == f + "logits" + beside);
  REQUIRE(backward(z.view(), first, b.view()) == f + "d_dispatch" + beside);
  REQUIRE(backward(z.view(), a.view(), first) == f + "d_combine" + beside);
}

TEST_CASE("the gradient of Soft MoE is added where the caller says so", "[router]") {
  router_test::random rng(193);
  matrix<float> z(70, 5), dd(70, 5), dc(70, 5);
  for (auto* m : {&z, &dd, &dc})
    for (float& x : m->data) x = static_cast<float>(rng.normal());
  z.set(4, 2, qnan);
  expar_test::require_adds<float>(70, 5, [&](auto&& to) {
    expar::soft_moe_weights_backward(ctx, z.view(), dd.view(), dc.view(), to);
  });
}
