// SPDX-License-Identifier: Apache-2.0
#include <expar/plan/drop.hpp>

#include <expar/permute/weights.hpp>
#include <expar/plan/capacity.hpp>
#include <expar/router/route.hpp>

#include <array>
#include <memory_resource>
#include <tuple>

#include "../support/catch.hpp"
#include "../support/exhausted_resource.hpp"
#include "support.hpp"

using namespace drop_test;
using Catch::Matchers::WithinAbs;
using expar_test::exhausted_resource;
using router_test::sentence_of;

namespace {

expar::host_context const ctx;

/// The laws of dropping by an order, whose meaning is `key`: the route with the smaller key first.
template <class Order, class Key>
void check_laws(problem const& p, Order const& order, Key key) {
  id_matrix ids(p.ids, at(p.k)), kept(p.tokens, p.k, 2);
  auto const before = ids.data;
  std::vector<std::int32_t> dropped(at(p.experts), -5);
  auto const needed = expar::drop_to_capacity(ctx, expar::only(p.valid, ids.view()), p.experts,
                                              p.capacity, order, kept.view(), dropped);
  REQUIRE(ids.data == before);
  REQUIRE(needed == *std::max_element(p.routes.begin(), p.routes.end()));
  id_rows const out = kept.rows();
  counts held(at(p.experts));
  for (std::int64_t t = 0; t < p.tokens; ++t)
    for (int j = 0; j < p.k; ++j) {
      auto const id = p.ids[at(t)][at(j)], now = out[at(t)][at(j)];
      REQUIRE((now == id || now == -1));
      if (p.valid[at(t)] == 0) REQUIRE(now == -1);
      if (now >= 0) ++held[at(now)];
    }
  for (int e = 0; e < p.experts; ++e) {
    REQUIRE(held[at(e)] == std::min(p.routes[at(e)], p.capacity));
    REQUIRE(held[at(e)] + dropped[at(e)] == p.routes[at(e)]);
  }
  // Of one expert, what is kept comes before what is dropped.
  for (int e = 0; e < p.experts; ++e) {
    using key_type = decltype(key(std::int64_t{}, 0));
    std::vector<key_type> in, gone;
    for (std::int64_t t = 0; t < p.tokens; ++t)
      for (int j = 0; j < p.k; ++j)
        if (p.ids[at(t)][at(j)] == e && p.valid[at(t)] != 0)
          (out[at(t)][at(j)] == e ? in : gone).push_back(key(t, j));
    if (!in.empty() && !gone.empty())
      REQUIRE(*std::max_element(in.begin(), in.end()) <
              *std::min_element(gone.begin(), gone.end()));
  }
  // What would have sufficed suffices, and with one place more nothing more is dropped.
  id_matrix all(p.tokens, p.k), more(p.tokens, p.k);
  expar::drop_to_capacity(ctx, expar::only(p.valid, ids.view()), p.experts, needed, order,
                          all.view(), dropped);
  REQUIRE(std::count(dropped.begin(), dropped.end(), 0) == p.experts);
  for (std::int64_t t = 0; t < p.tokens; ++t)
    if (p.valid[at(t)] != 0) REQUIRE(all.rows()[at(t)] == p.ids[at(t)]);
  expar::drop_to_capacity(ctx, expar::only(p.valid, ids.view()), p.experts, p.capacity + 1, order,
                          more.view(), dropped);
  for (std::int64_t t = 0; t < p.tokens; ++t)
    for (int j = 0; j < p.k; ++j)
      if (out[at(t)][at(j)] >= 0) REQUIRE(more.rows()[at(t)][at(j)] >= 0);
  // A plan of what is kept drops nothing, and its layout pads.
  auto const plan =
      expar::make_plan(ctx, kept.view(), p.experts, expar::fixed_capacity{.rows = p.capacity + 1});
  REQUIRE(plan.dropped() == 0);
  REQUIRE(plan.rows() == p.experts * (p.capacity + 1));
  // In place.
  expar::drop_to_capacity(ctx, expar::only(p.valid, ids.view()), p.experts, p.capacity, order,
                          ids.view(), dropped);
  REQUIRE(ids.rows() == out);
}

}  // namespace

TEST_CASE("experts keep the first of their routes, up to the capacity", "[plan]") {
  drop_test::random rng(41);
  for (int round = 0; round < 150; ++round) {
    problem p(rng, round < 120 ? 20 : 90);
    if (p.tokens > 0 && p.k > 1 && rng.chance(.3)) {  // routes that repeat an expert
      auto& row = p.ids[at(rng.integer(0, p.tokens - 1))];
      row[1] = row[0];
      p.routes.assign(at(p.experts), 0);
      for (std::int64_t t = 0; t < p.tokens; ++t)
        for (auto const e : p.ids[at(t)])
          if (e >= 0 && p.valid[at(t)] != 0) ++p.routes[at(e)];
    }
    auto values = matrix_of<float>(p.values, p.k, 1);
    auto scores = matrix_of<double>(p.scores, 1);
    CAPTURE(round, p.tokens, p.k, p.experts, p.capacity);
    check_laws(p, expar::by_choice{}, [](auto t, int j) { return std::tuple(j, t); });
    check_laws(p, expar::by_token{}, [](auto t, int j) { return std::tuple(t, j); });
    check_laws(p, expar::by_value{values.view()},
               [&](auto t, int j) { return std::tuple(-p.values[at(t)][at(j)], t, j); });
    check_laws(p, expar::by_choice_and_score{scores.view()},
               [&](auto t, int j) { return std::tuple(j, -p.scores[at(t)][0], t); });
  }
}

TEST_CASE("without a mask all tokens count", "[plan]") {
  drop_test::random rng(42);
  for (int round = 0; round < 20; ++round) {
    problem p(rng, 20);
    id_matrix ids(p.ids, at(p.k)), some(p.tokens, p.k), all(p.tokens, p.k);
    counts a(at(p.experts)), b(at(p.experts));
    p.valid.assign(at(p.tokens), 1);
    auto const n = expar::drop_to_capacity(ctx, expar::only(p.valid, ids.view()), p.experts,
                                           p.capacity, expar::by_choice{}, some.view(), a);
    REQUIRE(expar::drop_to_capacity(ctx, ids.view(), p.experts, p.capacity, expar::by_choice{},
                                    all.view(), b) == n);
    REQUIRE(all.data == some.data);
    REQUIRE(a == b);
  }
  id_matrix ids(id_rows{{0}, {0}, {0}}), kept(3, 1);
  counts dropped(1);
  std::array<bool, 3> const valid{false, true, true};
  expar::drop_to_capacity(ctx, expar::only(valid, ids.view()), 1, 1, expar::by_choice{},
                          kept.view(), dropped);
  REQUIRE(kept.rows() == id_rows{{-1}, {0}, {-1}});
}

TEST_CASE("the number of threads does not show in what is dropped", "[plan]") {
  drop_test::random rng(43);
  expar::index_t const tokens = 40000;
  matrix<float> values(tokens, 3);
  for (float& x : values.data) x = static_cast<float>(rng.integer(0, 500));
  for (int experts : {1, 7, 64}) {
    id_matrix ids(tokens, 3);
    for (auto& e : ids.data) e = static_cast<std::int32_t>(rng.integer(-1, experts - 1));
    for (expar::index_t const capacity : {0, 900, 30000}) {
      auto const same = [&](auto const& order) {
        std::vector<std::int32_t> first;
        for (int threads : {1, 2, 3}) {
          id_matrix kept(tokens, 3);
          counts dropped(at(experts));
          expar::drop_to_capacity(expar::host_context(threads), ids.view(), experts, capacity,
                                  order, kept.view(), dropped);
          if (threads == 1) first = kept.data;
          if (kept.data != first) return false;
        }
        return true;
      };
      CHECK(same(expar::by_choice{}));
      CHECK(same(expar::by_token{}));
      CHECK(same(expar::by_value{values.view()}));
      CHECK(same(expar::by_choice_and_score{values.view()}));
    }
  }
}

TEST_CASE("what dropping needs comes from the context", "[plan]") {
  std::pmr::memory_resource* const usual =
      std::pmr::set_default_resource(std::pmr::null_memory_resource());
  drop_test::random rng(44);
  problem const p(rng, 30);
  id_matrix ids(p.ids, at(p.k)), kept(p.tokens, p.k);
  counts dropped(at(p.experts));
  expar::host_context const own(1, std::pmr::new_delete_resource());
  CHECK_NOTHROW(expar::drop_to_capacity(own, ids.view(), p.experts, 0, expar::by_choice{},
                                        kept.view(), dropped));
  std::pmr::set_default_resource(usual);
}

TEMPLATE_TEST_CASE("Switch keeps the first tokens of an expert", "[plan]", double, float) {
  double const tolerance = sizeof(TestType) == 8 ? 1e-12 : 1e-5;
  matrix<TestType> logits(std::vector<router_test::row_type>{{2.0, 1.0, 0.5, -1.0},
                                                             {1.5, 2.5, 0.0, 0.25},
                                                             {3.0, 0.75, 1.25, -0.5},
                                                             {1.75, 0.875, 2.25, 0.125}});
  expar::router const r({.experts = 4, .top_k = 1}, expar::softmax_score{});
  expar::routes<TestType> routes(4, 1);
  expar::route(ctx, r, logits.view(), routes);
  id_matrix kept(4, 1);
  counts dropped(4);
  expar::drop_to_capacity(ctx, routes.ids, 4, 1, expar::by_choice{}, kept.view(), dropped);
  CHECK(kept.rows() == id_rows{{0}, {1}, {-1}, {2}});
  CHECK(dropped == counts{1, 0, 0, 0});
  // The weights that rows get, and the gradients that come back.
  auto const plan = expar::make_plan(ctx, kept.view(), 4);
  std::vector<TestType> by_row(3);
  expar::encode_weights(ctx, plan, routes.weights, by_row);
  double const weights[] = {0.6094600375988771, 0.642936454615761, 0.5053559585817142};
  for (int i = 0; i < 3; ++i)
    CHECK_THAT(static_cast<double>(by_row[at(i)]), WithinAbs(weights[i], tolerance));
  matrix<TestType> d_weights(4, 1), d_logits(4, 4);
  expar::encode_weights_backward(ctx, plan, std::vector<TestType>{1, 1, 1}, d_weights.view());
  CHECK(d_weights.data == std::vector<TestType>{1, 1, 0, 1});
  expar::route_backward(ctx, r, logits.view(), routes, d_weights.view(), d_logits.view());
  for (int e = 0; e < 4; ++e) CHECK(d_logits.get(2, e) == 0);
  CHECK(d_logits.get(0, 0) > 0);
}

TEMPLATE_TEST_CASE("Tutel keeps first choices before second choices", "[plan]", double, float) {
  double const tolerance = sizeof(TestType) == 8 ? 1e-12 : 1e-5;
  matrix<TestType> logits(std::vector<router_test::row_type>{{2.0, 1.0, 0.5, -1.0},
                                                             {1.5, 2.5, 0.0, 0.25},
                                                             {3.0, 0.75, 1.25, -0.5},
                                                             {2.5, 2.0, 0.5, 0.125}});
  expar::routes<TestType> routes(4, 2);
  expar::route(ctx,
               expar::router({.experts = 4, .top_k = 2}, expar::softmax_score{},
                             expar::renormalize{2.3e-16, expar::renormalize::guard::at_least}),
               logits.view(), routes);
  auto const capacity = expar::capacity_of({.factor = 1}, 4, 4, 2, 0);
  CHECK(capacity == 2);
  id_matrix kept(4, 2);
  counts dropped(4);
  auto const needed = expar::drop_to_capacity(ctx, routes.ids, 4, capacity, expar::by_choice{},
                                              kept.view(), dropped);
  CHECK(kept.rows() == id_rows{{0, 1}, {1, -1}, {0, 2}, {-1, -1}});
  CHECK(dropped == counts{2, 1, 0, 0});
  CHECK(needed == 4);
  double const weights[4][2] = {{0.7310585786300049, 0.2689414213699951},
                                {0.7310585786300048, 0.2689414213699951},
                                {0.8519528019683106, 0.14804719803168948},
                                {0.6224593312018546, 0.3775406687981454}};
  for (int t = 0; t < 4; ++t)
    for (int j = 0; j < 2; ++j)
      CHECK_THAT(static_cast<double>(routes.weights(t, j)), WithinAbs(weights[t][j], tolerance));
  // The fixed layout drops the same by itself.
  auto const fixed = expar::make_plan(ctx, routes.ids, 4, expar::fixed_capacity{1});
  for (int t = 0; t < 4; ++t)
    for (int j = 0; j < 2; ++j) CHECK((fixed.row(t, j) >= 0) == (kept.rows()[at(t)][at(j)] >= 0));
}

TEMPLATE_TEST_CASE("Megatron keeps the largest weights, or the first tokens", "[plan]", double,
                   float) {
  matrix<TestType> logits(std::vector<router_test::row_type>{{2.0, 1.0, 0.5, -1.0},
                                                             {1.5, 2.5, 0.0, 0.25},
                                                             {3.0, 0.75, 1.25, -0.5},
                                                             {1.75, 0.875, 2.25, 0.125}});
  expar::routes<TestType> routes(4, 2);
  expar::route(
      ctx,
      expar::router({.experts = 4, .top_k = 2}, expar::logit_score{}, expar::softmax_weights{}),
      logits.view(), routes);
  auto const capacity = expar::capacities::megatron(4, 4, 2, .5);
  CHECK(capacity == 1);
  id_matrix kept(4, 2);
  counts dropped(4);
  expar::drop_to_capacity(ctx, routes.ids, 4, capacity, expar::by_value{routes.weights},
                          kept.view(), dropped);
  CHECK(kept.rows() == id_rows{{-1, -1}, {1, -1}, {0, -1}, {2, -1}});
  CHECK(dropped == counts{3, 1, 1, 0});
  expar::drop_to_capacity(ctx, routes.ids, 4, capacity, expar::by_token{}, kept.view(), dropped);
  CHECK(kept.rows() == id_rows{{0, 1}, {-1, -1}, {-1, 2}, {-1, -1}});
  // Padded to the capacity, every expert has that many rows, and to a multiple, a multiple.
  auto const padded =
      expar::make_plan(ctx, kept.view(), 4, expar::fixed_capacity{.rows = capacity});
  CHECK(padded.capacity() == 1);
  CHECK(padded.rows() == 4);
  CHECK(expar::make_plan(ctx, kept.view(), 4, expar::ragged{16}).rows() == 3 * 16);
}

TEST_CASE("ids of tokens that are not valid can be anything", "[plan]") {
  id_matrix ids(id_rows{{0, 1}, {1 << 30, -77}, {0, 1}, {3, INT32_MIN}}), kept(4, 2);
  counts dropped(2);
  flags const valid{1, 0, 1, 0};
  CHECK(expar::drop_to_capacity(ctx, expar::only(valid, ids.view()), 2, 1, expar::by_token{},
                                kept.view(), dropped) == 2);
  CHECK(kept.rows() == id_rows{{0, 1}, {-1, -1}, {-1, -1}, {-1, -1}});
  CHECK(dropped == counts{1, 1});
}

TEST_CASE("where memory runs out, nothing is dropped", "[plan]") {
  id_matrix ids(id_rows{{0, 1}, {0, 7}, {0, 1}}), kept(3, 2);
  auto const before = ids.data;
  flags const valid{1, 0, 1};
  bool done = false;
  int failed = 0;
  for (int allowed = 0; !done; ++allowed) {
    exhausted_resource memory(allowed);
    expar::host_context const own(1, &memory);
    counts dropped(2, 9);
    try {
      expar::drop_to_capacity(own, expar::only(valid, ids.view()), 2, 1, expar::by_choice{},
                              ids.view(), dropped);
      done = true;
    } catch (std::bad_alloc const&) {
      ++failed;
      REQUIRE(ids.data == before);
      REQUIRE(dropped == counts{9, 9});
    }
  }
  CHECK(failed >= 3);
  CHECK(ids.rows() == id_rows{{0, 1}, {-1, -1}, {-1, -1}});
}

TEST_CASE("any capacity will do", "[plan]") {
  id_matrix ids(id_rows{{0}, {0}}), kept(2, 1);
  counts dropped(1);
  CHECK(expar::drop_to_capacity(ctx, ids.view(), 1, PTRDIFF_MAX, expar::by_choice{}, kept.view(),
                                dropped) == 2);
  CHECK(kept.rows() == id_rows{{0}, {0}});
  CHECK(dropped == counts{0});
}

TEST_CASE("dropping refuses what does not fit", "[plan]") {
  id_matrix ids(id_rows{{0, 1}, {1, 2}}), kept(2, 2);
  counts dropped(3, 9);
  auto const drop = [&](auto const& i, int experts, expar::index_t capacity, auto const& k,
                        auto& d) {
    return sentence_of(
        [&] { expar::drop_to_capacity(ctx, i, experts, capacity, expar::by_choice{}, k, d); });
  };
  using expar::make_view;
  auto* const data = kept.data.data();
  CHECK(drop(ids.view(), 3, -1, kept.view(), dropped) ==
        "expar: drop_to_capacity: capacity is -1; it is at least 0");
  CHECK(drop(make_view<std::int32_t>(nullptr, 2, 2), 3, 1, kept.view(), dropped) ==
        "expar: drop_to_capacity: ids has 4 elements but its data is null");
  CHECK(drop(ids.view(), 3, 1, make_view<std::int32_t>(nullptr, 2, 2), dropped) ==
        "expar: drop_to_capacity: kept has 4 elements but its data is null");
  CHECK(drop(ids.view(), 3, 1, make_view(data, 1, 2), dropped) ==
        "expar: drop_to_capacity: kept has extent 1 in dimension 0, but the number of tokens is 2");
  CHECK(drop(ids.view(), 3, 1, make_view(data, 2, 1), dropped) ==
        "expar: drop_to_capacity: kept has extent 1 in dimension 1, but the number of choices per "
        "token is 2");
  CHECK(drop(ids.view(), 3, 1, make_view(data, 2, 2, 1), dropped) ==
        "expar: drop_to_capacity: kept has rows of 2 elements only 1 elements apart; rows that are "
        "written must not overlap");
  counts none, two(2, 9);
  CHECK(drop(ids.view(), 0, 1, kept.view(), none) ==
        "expar: drop_to_capacity: experts is 0; at least 1 is needed");
  CHECK(drop(ids.view(), 3, 1, kept.view(), two) ==
        "expar: drop_to_capacity: dropped has extent 2 in dimension 0, but experts is 3");
  CHECK(drop(ids.view(), 2, 1, kept.view(), two) ==
        "expar: drop_to_capacity: ids(1, 1) is 2; an expert id is -1 (no expert) or 0 to 1");
  ids.data[0] = -2;
  CHECK(drop(ids.view(), 3, 1, kept.view(), dropped) ==
        "expar: drop_to_capacity: ids(0, 0) is -2; an expert id is -1 (no expert) or 0 to 2");
  auto const huge = make_view(data, expar::index_t{1} << 30, 2);
  CHECK(drop(huge, 3, 1, huge, dropped) ==
        "expar: drop_to_capacity: ids has 1073741824 x 2 routes; at most 2147483647 are possible");
  flags const valid{1};
  CHECK(sentence_of([&] {
          expar::drop_to_capacity(ctx, expar::only(valid, ids.view()), 3, 1, expar::by_choice{},
                                  kept.view(), dropped);
        }) ==
        "expar: drop_to_capacity: valid has extent 1 in dimension 0, but the number of "
        "tokens is 2");
  CHECK(kept.data == std::vector<std::int32_t>(4, -7));
  CHECK(dropped == counts{9, 9, 9});
  // One row behind the ids, and one where the counts are.
  std::vector<std::int32_t> shared{0, 1, 1, 2, -7, -7};
  CHECK(drop(make_view(shared.data(), 2, 2), 3, 1, make_view(shared.data() + 2, 2, 2), dropped) ==
        "expar: drop_to_capacity: kept overlaps ids in memory; it is that very tensor, or apart "
        "from it");
  auto const count = make_view(shared.data() + 3, 3);
  CHECK(drop(ids.view(), 3, 1, make_view(shared.data(), 2, 2), count) ==
        "expar: drop_to_capacity: dropped overlaps kept in memory; the operation cannot work in "
        "place");
  CHECK(shared == std::vector<std::int32_t>{0, 1, 1, 2, -7, -7});
}
