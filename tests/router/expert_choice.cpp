// SPDX-License-Identifier: Apache-2.0
#include <expar/router/expert_choice.hpp>

#include "../support/adds.hpp"
#include "../support/catch.hpp"
#include "../support/exhausted_resource.hpp"
#include "support.hpp"

using Catch::Matchers::WithinAbs;
using router_test::inf;
using router_test::matrix;
using router_test::qnan;
using router_test::row_type;
using router_test::sentence_of;

namespace {

expar::host_context const ctx;

using softmax = expar::expert_choice::softmax;
using mask = std::vector<std::uint8_t>;
using id_matrix = std::vector<std::vector<std::int32_t>>;

template <class T>
constexpr double accuracy = std::is_same_v<T, double> ? 1e-12 : 1e-5;

std::vector<row_type> const logits{{2.0, 1.0, 0.5, -1.0},
                                   {1.5, 2.5, 0.0, 0.25},
                                   {3.0, 0.75, 1.25, -0.5},
                                   {1.75, 0.875, 2.25, 0.125}};

constexpr expar::expert_choice flaxformer(int experts, int capacity) {
  return {experts, capacity, softmax::over_experts, false};
}

bool masked(double z) {
  return std::isnan(z) || z == -inf;
}

/// The scores [T][experts], by definition.
std::vector<row_type> scores_by_definition(expar::expert_choice const& c,
                                           std::vector<row_type> const& z, mask const& valid) {
  std::vector<row_type> s(z.size(), row_type(static_cast<std::size_t>(c.experts), 0));
  auto const counts = [&](std::size_t t, std::size_t e) { return valid[t] && !masked(z[t][e]); };
  auto const n = static_cast<std::size_t>(c.experts);
  for (std::size_t t = 0; t < z.size(); ++t)
    for (std::size_t e = 0; e < n; ++e) {
      if (!counts(t, e)) continue;
      double sum = 0;  // of exp(z' - z)
      if (c.axis == softmax::over_experts) {
        for (std::size_t f = 0; f < n; ++f)
          if (counts(t, f)) sum += std::exp(z[t][f] - z[t][e]);
      } else {
        for (std::size_t u = 0; u < z.size(); ++u)
          if (counts(u, e)) sum += std::exp(z[u][e] - z[t][e]);
      }
      s[t][e] = 1 / sum;
    }
  return s;
}

template <class T>
void require_chosen(expar::routes<T> const& got, id_matrix const& ids,
                    std::vector<row_type> const& gates) {
  for (std::size_t e = 0; e < ids.size(); ++e)
    for (std::size_t c = 0; c < ids[e].size(); ++c) {
      REQUIRE(got.ids(e, c) == ids[e][c]);
      REQUIRE_THAT(static_cast<double>(got.weights(e, c)), WithinAbs(gates[e][c], accuracy<T>));
    }
}

std::vector<row_type> rows_of(matrix<double>& m) {
  std::vector<row_type> out;
  for (expar::index_t r = 0; r < m.rows; ++r) out.push_back(m.row(r));
  return out;
}

/// Distinct logits of which some are masked.
matrix<double> random_logits(router_test::random& rng, int tokens, int experts, int gap) {
  matrix<double> z(tokens, experts, gap);
  for (int t = 0; t < tokens; ++t)
    for (int e = 0; e < experts; ++e)
      z.set(t, e, rng.chance(.1) ? (rng.chance(.5) ? qnan : -inf) : rng.normal());
  return z;
}

}  // namespace

TEMPLATE_TEST_CASE("flaxformer, V-MoE: experts choose by a softmax over experts", "[router][cases]",
                   double, float) {
  matrix<TestType> z(logits, 1);
  expar::routes<TestType> chosen(4, 2);
  expar::choose_tokens(ctx, flaxformer(4, 2), z.view(), chosen);
  require_chosen(chosen, {{2, 0}, {1, 0}, {3, 0}, {1, 3}},
                 {{0.7637257450951053, 0.6094600375988771},
                  {0.642936454615761, 0.22420781804820114},
                  {0.5053559585817142, 0.1359889157935055},
                  {0.06776500375905549, 0.060356162164687546}});
  expar::variable_routes<TestType> routes;
  expar::routes_of_tokens(ctx, chosen, 4, routes);
  expar::index_t const experts_per_token[] = {3, 2, 1, 2};
  for (int t = 0; t < 4; ++t)
    REQUIRE(routes.offsets(t + 1) - routes.offsets(t) == experts_per_token[t]);
}

TEMPLATE_TEST_CASE("Mesh TensorFlow: experts choose by a softmax over tokens", "[router][cases]",
                   double, float) {
  matrix<TestType> z(logits);
  expar::routes<TestType> chosen(4, 2);
  id_matrix const ids{{2, 0}, {1, 0}, {3, 2}, {1, 3}};
  expar::choose_tokens(ctx, {4, 2, softmax::over_tokens, false}, z.view(), chosen);
  require_chosen(chosen, ids,
                 {{0.5326190845563333, 0.1959396111838291},
                  {0.6274250846926516, 0.13999745962861349},
                  {0.6071451478988161, 0.22335621771896919},
                  {0.3785916633064982, 0.3341059702123347}});
  expar::choose_tokens(ctx, {4, 2, softmax::over_tokens, true}, z.view(), chosen);
  require_chosen(chosen, ids,
                 {{0.26630954227816667, 0.09796980559191455},
                  {0.3137125423463258, 0.06999872981430674},
                  {0.30357257394940806, 0.11167810885948459},
                  {0.1892958316532491, 0.16705298510616734}});
}

TEST_CASE("what experts choose agrees with the definition, and so does its gradient", "[router]") {
  router_test::random rng(101);
  for (int round = 0; round < 200; ++round) {
    int const tokens = static_cast<int>(rng.integer(0, 12));
    int const experts = static_cast<int>(rng.integer(1, 6));
    expar::expert_choice const c{experts, static_cast<int>(rng.integer(1, 15)),
                                 rng.chance(.5) ? softmax::over_experts : softmax::over_tokens,
                                 rng.chance(.5)};
    auto z = random_logits(rng, tokens, experts, 1);
    mask valid;
    bool const all = rng.chance(.3);
    for (int t = 0; t < tokens; ++t) valid.push_back(all || rng.chance(.8));
    expar::routes<double> chosen(experts, c.capacity);
    if (all)
      expar::choose_tokens(ctx, c, z.view(), chosen);
    else
      expar::choose_tokens(ctx, c, expar::only(valid, z.view()), chosen);

    auto const s = scores_by_definition(c, rows_of(z), valid);
    std::vector<int> takers(static_cast<std::size_t>(tokens), 0);
    for (int e = 0; e < experts; ++e) {
      std::vector<std::int32_t> order;
      for (int t = 0; t < tokens; ++t)
        if (valid[static_cast<std::size_t>(t)] && !masked(z.get(t, e))) order.push_back(t);
      auto const score = [&](std::int32_t t) {
        return s[static_cast<std::size_t>(t)][static_cast<std::size_t>(e)];
      };
      std::sort(order.begin(), order.end(), [&](auto a, auto b) { return score(a) > score(b); });
      order.resize(static_cast<std::size_t>(c.capacity), -1);
      for (int i = 0; i < c.capacity; ++i) {
        REQUIRE(chosen.ids(e, i) == order[static_cast<std::size_t>(i)]);
        if (chosen.ids(e, i) >= 0) ++takers[static_cast<std::size_t>(chosen.ids(e, i))];
      }
    }
    auto const gate = [&](std::vector<row_type> const& from, int e, int i) {
      auto const t = static_cast<std::size_t>(chosen.ids(e, i));
      return chosen.ids(e, i) < 0
                 ? 0
                 : from[t][static_cast<std::size_t>(e)] / (c.divide_by_experts ? takers[t] : 1);
    };
    matrix<double> dw(experts, c.capacity, 1), dz(tokens, experts, 2);
    for (double& x : dw.data) x = rng.normal();
    for (int e = 0; e < experts; ++e)
      for (int i = 0; i < c.capacity; ++i)
        REQUIRE_THAT(chosen.weights(e, i), WithinAbs(gate(s, e, i), 1e-13));

    for (double& x : dz.data) x = 77;
    if (all)
      expar::choose_tokens_backward(ctx, c, z.view(), chosen, dw.view(), dz.view());
    else
      expar::choose_tokens_backward(ctx, c, expar::only(valid, z.view()), chosen, dw.view(),
                                    dz.view());
    auto const loss = [&] {
      auto const moved = scores_by_definition(c, rows_of(z), valid);
      double sum = 0;
      for (int e = 0; e < experts; ++e)
        for (int i = 0; i < c.capacity; ++i) sum += dw.get(e, i) * gate(moved, e, i);
      return sum;
    };
    for (int t = 0; t < tokens; ++t)
      for (int e = 0; e < experts; ++e) {
        double const at = z.get(t, e);
        if (masked(at)) {
          REQUIRE(dz.get(t, e) == 0);
          continue;
        }
        z.set(t, e, at + 1e-5);
        double slope = loss();
        z.set(t, e, at - 1e-5);
        slope = (slope - loss()) / 2e-5;
        z.set(t, e, at);
        REQUIRE_THAT(dz.get(t, e), WithinAbs(slope, 1e-8));
      }
  }
}

TEST_CASE("equal scores go to the lower token, and +inf to the front", "[router]") {
  matrix<float> z(std::vector<row_type>{{1, 1}, {1, 1}, {1, inf}, {1, 1}});
  expar::routes<expar::bfloat16> chosen(2, 3);
  expar::choose_tokens(ctx, {2, 3, softmax::over_tokens, false}, z.view(), chosen);
  std::int32_t const ids[2][3] = {{0, 1, 2}, {2, 0, 1}};
  float const gates[2][3] = {{.25, .25, .25}, {1, 0, 0}};
  for (int e = 0; e < 2; ++e)
    for (int c = 0; c < 3; ++c) {
      REQUIRE(chosen.ids(e, c) == ids[e][c]);
      REQUIRE(expar::widen(chosen.weights(e, c)) == gates[e][c]);
    }
}

TEST_CASE("experts choose in bfloat16", "[router]") {
  using bf16 = expar::bfloat16;
  matrix<bf16> z(std::vector<row_type>{{0, 0}, {0, 0}, {qnan, -inf}}, 1), dz(3, 2, 2), dw(2, 1, 1);
  expar::routes<bf16> chosen(2, 1);
  expar::choose_tokens(ctx, {2, 1, softmax::over_tokens, true}, z.view(), chosen);
  REQUIRE((chosen.ids(0, 0) == 0 && chosen.ids(1, 0) == 0));
  REQUIRE(expar::widen(chosen.weights(0, 0)) == .25f);  // 1/2 of a token that two experts took
  dw.set(0, 0, 1), dw.set(1, 0, 2);
  expar::choose_tokens_backward(ctx, {2, 1, softmax::over_tokens, true}, z.view(), chosen,
                                dw.view(), dz.view());
  REQUIRE(dz.row(0) == row_type{.125, .25});
  REQUIRE(dz.row(1) == row_type{-.125, -.25});
  REQUIRE(dz.row(2) == row_type{0, 0});
}

TEST_CASE("a softmax over tokens orders logits that its scores cannot tell apart", "[router]") {
  matrix<float> z(std::vector<row_type>{{-200}, {0}, {-199}});
  expar::routes<float> chosen(1, 3);
  expar::choose_tokens(ctx, {1, 3, softmax::over_tokens, false}, z.view(), chosen);
  REQUIRE(chosen.ids(0, 0) == 1);
  REQUIRE(chosen.ids(0, 1) == 2);
  REQUIRE(chosen.ids(0, 2) == 0);
  REQUIRE(chosen.weights(0, 2) == 0);
}

TEST_CASE("the number of threads does not show in what experts choose", "[router]") {
  router_test::random rng(102);
  matrix<float> z(3000, 17), one(3000, 17), three(3000, 17);
  for (float& x : z.data) x = static_cast<float>(rng.integer(-8, 8)) / 4;
  expar::host_context const threads(3);
  for (auto const axis : {softmax::over_experts, softmax::over_tokens}) {
    expar::expert_choice const c{17, 500, axis, true};
    expar::routes<float> a(17, 500), b(17, 500);
    expar::choose_tokens(ctx, c, z.view(), a);
    expar::choose_tokens(threads, c, z.view(), b);
    for (int e = 0; e < 17; ++e)
      for (int i = 0; i < 500; ++i)
        REQUIRE((a.ids(e, i) == b.ids(e, i) && a.weights(e, i) == b.weights(e, i)));
    expar::choose_tokens_backward(ctx, c, z.view(), a, a.weights, one.view());
    expar::choose_tokens_backward(threads, c, z.view(), b, b.weights, three.view());
    REQUIRE(one.data == three.data);
  }
}

TEST_CASE("where memory runs out, experts choose nothing", "[router]") {
  matrix<float> z(std::vector<row_type>{{1, 2}, {3, 4}, {5, 6}});
  int failed = 0;
  for (int allowed = 0; failed == allowed; ++allowed) {
    expar_test::exhausted_resource memory(allowed);
    expar::routes<float> chosen(2, 2);
    chosen.ids(0, 0) = 77, chosen.weights(1, 1) = 7;
    try {
      expar::choose_tokens(
          expar::host_context(1, &memory),
          {2, 2, expar::expert_choice::softmax::over_tokens, /*divide_by_experts=*/true}, z.view(),
          chosen);
    } catch (std::bad_alloc const&) {
      ++failed;
      REQUIRE(chosen.ids(0, 0) == 77);
      REQUIRE(chosen.weights(1, 1) == 7);
    }
  }
  REQUIRE(failed == 3);
}

TEST_CASE("experts that choose refuse what does not fit", "[router]") {
  matrix<float> z(std::vector<row_type>{{1, 2}, {3, 4}, {5, 6}}), dz(3, 2), dw(2, 2);
  expar::routes<float> chosen(2, 2), other(2, 3);
  chosen.ids(0, 0) = 77;
  auto const choose = [&](expar::expert_choice const& c, auto& to) {
    return sentence_of([&] { expar::choose_tokens(ctx, c, z.view(), to); });
  };
  auto const backward = [&](auto const& d_weights, auto const& d_logits) {
    return sentence_of([&] {
      expar::choose_tokens_backward(ctx, flaxformer(2, 2), z.view(), chosen, d_weights, d_logits);
    });
  };
  REQUIRE(choose(flaxformer(0, 2), chosen) ==
          "expar: choose_tokens: experts is 0; it is at least 1");
  REQUIRE(choose(flaxformer(2, 0), chosen) ==
          "expar: choose_tokens: capacity is 0; it is at least 1");
  REQUIRE(choose(flaxformer(3, 2), chosen) ==
          "expar: choose_tokens: logits has extent 2 in dimension 1, but the number of experts is "
          "3");
  REQUIRE(choose(flaxformer(2, 2), other) ==
          "expar: choose_tokens: ids has extent 3 in dimension 1, but the capacity is 2");
  expar::routes_view const uneven{chosen.ids, other.weights};
  REQUIRE(choose(flaxformer(2, 2), uneven) ==
          "expar: choose_tokens: weights has extent 3 in dimension 1, but the capacity is 2");
  REQUIRE(sentence_of([&] {
            expar::choose_tokens(ctx, flaxformer(2, 2), expar::only(mask{1, 1}, z.view()), chosen);
          }) ==
          "expar: choose_tokens: valid has extent 2 in dimension 0, but the number of tokens is 3");
  REQUIRE(chosen.ids(0, 0) == 77);
  REQUIRE(backward(dw.view(), dz.view()) ==
          "expar: choose_tokens_backward: ids(0, 0) is 77; a token id is -1 (no token) or 0 to 2");
  chosen.ids(0, 0) = -1;
  REQUIRE(backward(z.view(), dz.view()) ==
          "expar: choose_tokens_backward: d_weights has extent 3 in dimension 0, but the number of "
          "experts is 2");
  REQUIRE(backward(dw.view(), dw.view()) ==
          "expar: choose_tokens_backward: d_logits has extent 2 in dimension 0, but the number of "
          "tokens is 3");
  std::string const in_place = " in memory; the operation cannot work in place";
  auto const as_weights = expar::make_view(z.data.data() + 1, 2, 2);
  expar::routes_view const over_logits{chosen.ids, as_weights};
  REQUIRE(choose(flaxformer(2, 2), over_logits) ==
          "expar: choose_tokens: weights overlaps logits" + in_place);
}

TEST_CASE("the gradient of what experts choose is added, or written over the logits", "[router]") {
  router_test::random rng(103);
  matrix<float> z(9, 4), dw(4, 3), dz(9, 4);
  for (auto* m : {&z, &dw})
    for (float& x : m->data) x = static_cast<float>(rng.normal());
  z.set(4, 2, qnan);
  expar::expert_choice const c{4, 3, softmax::over_tokens, true};
  mask const valid{1, 1, 0, 1, 1, 1, 1, 0, 1};
  expar::routes<float> chosen(4, 3);
  expar::choose_tokens(ctx, c, expar::only(valid, z.view()), chosen);
  expar_test::require_adds<float>(9, 4, [&](auto&& to) {
    expar::choose_tokens_backward(ctx, c, expar::only(valid, z.view()), chosen, dw.view(), to);
  });
  expar::choose_tokens_backward(ctx, c, expar::only(valid, z.view()), chosen, dw.view(), dz.view());
  expar::choose_tokens_backward(ctx, c, expar::only(valid, z.view()), chosen, dw.view(), z.view());
  REQUIRE(z.data == dz.data);
}

TEST_CASE("token ids are of any signed integer type", "[router]") {
  router_test::random rng(104);
  matrix<float> z(300, 4), dw(4, 3), one(300, 4), other(300, 4);
  for (auto* m : {&z, &dw})
    for (float& x : m->data) x = static_cast<float>(rng.normal());
  auto const c = flaxformer(4, 3);
  expar::routes<float> chosen(4, 3);
  router_test::wide_routes wide(4, 3);
  expar::choose_tokens(ctx, c, z.view(), chosen);
  expar::choose_tokens(ctx, c, z.view(), wide);
  REQUIRE(wide.same_as(chosen));
  expar::choose_tokens_backward(ctx, c, z.view(), chosen, dw.view(), one.view());
  expar::choose_tokens_backward(ctx, c, z.view(), wide, dw.view(), other.view());
  REQUIRE(one.data == other.data);
}
