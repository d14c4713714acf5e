// SPDX-License-Identifier: Apache-2.0
#include <expar/plan/reroute.hpp>

#include <array>

#include <expar/plan/drop.hpp>
#include <expar/router/route.hpp>

#include "../support/catch.hpp"
#include "support.hpp"

using namespace drop_test;
using Catch::Matchers::WithinAbs;
using router_test::sentence_of;

namespace {

expar::host_context const ctx;

/// Mesh TensorFlow's loop over choices, on masks: an inclusive sum over the tokens that are left,
/// behind what each expert holds.
id_rows no_token_left_behind(problem const& p) {
  id_rows kept(at(p.tokens), std::vector<std::int32_t>(at(p.k), -1));
  std::vector<double> cum_tokens(at(p.experts)), left(at(p.tokens), 1);
  for (int i = 0; i < p.k; ++i) {
    rows output(at(p.tokens), std::vector<double>(at(p.experts)));
    for (int e = 0; e < p.experts; ++e) {
      double sum = cum_tokens[at(e)];
      for (std::int64_t t = 0; t < p.tokens; ++t) {
        double const mask = p.ids[at(t)][at(i)] == e && p.valid[at(t)] != 0 ? left[at(t)] : 0;
        sum += mask;
        output[at(t)][at(e)] = sum <= static_cast<double>(p.capacity) ? mask : 0;
      }
    }
    for (std::int64_t t = 0; t < p.tokens; ++t)
      for (int e = 0; e < p.experts; ++e)
        if (output[at(t)][at(e)] != 0) {
          ++cum_tokens[at(e)], --left[at(t)];
          kept[at(t)][at(i)] = e;
        }
  }
  return kept;
}

/// Draws from the list of free places, one entry per place, which lose what was drawn.
std::int64_t place_dropped(problem const& p, rows const& uniform, id_rows& kept) {
  counts held(at(p.experts));
  for (auto const& row : kept)
    for (auto const e : row)
      if (e >= 0) ++held[at(e)];
  std::vector<std::int32_t> places;
  for (int e = 0; e < p.experts; ++e)
    for (std::int64_t i = held[at(e)]; i < p.capacity; ++i) places.push_back(e);
  std::int64_t dropped = 0;
  for (std::int64_t t = 0; t < p.tokens; ++t)
    for (int j = 0; j < p.k; ++j) {
      if (p.ids[at(t)][at(j)] < 0 || kept[at(t)][at(j)] >= 0 || p.valid[at(t)] == 0) continue;
      if (places.empty()) {
        ++dropped;
        continue;
      }
      auto const which =
          static_cast<std::ptrdiff_t>(uniform[at(t)][at(j)] * static_cast<double>(places.size()));
      kept[at(t)][at(j)] = places[at(which)];
      places.erase(places.begin() + which);
    }
  return dropped;
}

}  // namespace

TEST_CASE("each token takes the first of its choices that is free", "[plan]") {
  drop_test::random rng(51);
  for (int round = 0; round < 300; ++round) {
    problem const p(rng, round < 250 ? 24 : 120);
    CAPTURE(round, p.tokens, p.k, p.experts, p.capacity);
    id_matrix ids(p.ids, at(p.k)), kept(p.tokens, p.k, 2);
    auto const before = ids.data;
    auto const left = expar::take_first_free(ctx, expar::only(p.valid, ids.view()), p.experts,
                                             p.capacity, kept.view());
    REQUIRE(ids.data == before);
    REQUIRE(kept.rows() == no_token_left_behind(p));
    counts held(at(p.experts));
    std::int64_t without = 0;
    for (std::int64_t t = 0; t < p.tokens; ++t) {
      int taken = 0;
      bool named = false;
      for (int j = 0; j < p.k; ++j) {
        named = named || p.ids[at(t)][at(j)] >= 0;
        if (auto const e = kept.rows()[at(t)][at(j)]; e >= 0) ++taken, ++held[at(e)];
      }
      REQUIRE(taken <= 1);
      without += static_cast<int>(p.valid[at(t)] != 0 && named && taken == 0);
    }
    REQUIRE(left == without);
    // An expert that a token did not get although it named it is full.
    for (std::int64_t t = 0; t < p.tokens; ++t)
      for (int j = 0; j < p.k && p.valid[at(t)] != 0; ++j) {
        if (kept.rows()[at(t)][at(j)] >= 0) break;
        if (auto const e = p.ids[at(t)][at(j)]; e >= 0) REQUIRE(held[at(e)] == p.capacity);
      }
    expar::take_first_free(ctx, expar::only(p.valid, ids.view()), p.experts, p.capacity,
                           ids.view());
    REQUIRE(ids.rows() == kept.rows());
  }
}

TEMPLATE_TEST_CASE("no token is left behind", "[plan]", double, float) {
  double const tolerance = sizeof(TestType) == 8 ? 1e-12 : 1e-5;
  matrix<TestType> logits(std::vector<router_test::row_type>{
      {3.0, 1.0, 0.0}, {2.5, 2.0, 0.5}, {2.0, 0.5, 1.5}, {1.75, 1.5, -1.0}});
  expar::routes<TestType> routes(4, 2);
  expar::route(ctx, expar::router({.experts = 3, .top_k = 2}, expar::softmax_score{}),
               logits.view(), routes);
  id_matrix kept(4, 2);
  CHECK(expar::take_first_free(ctx, routes.ids, 3, 2, kept.view()) == 0);
  CHECK(kept.rows() == id_rows{{0, -1}, {0, -1}, {-1, 2}, {-1, 1}});
  double const weights[] = {0.8437947344813395, 0.5740969929676946, 0.3314989604240915,
                            0.42263454550927626};
  int const used[] = {0, 0, 1, 1};
  for (int t = 0; t < 4; ++t)
    CHECK_THAT(static_cast<double>(routes.weights(t, used[t])), WithinAbs(weights[t], tolerance));
}

TEST_CASE("dropped routes draw from the places that are free", "[plan]") {
  drop_test::random rng(52);
  for (int round = 0; round < 300; ++round) {
    problem const p(rng, round < 250 ? 24 : 120);
    CAPTURE(round, p.tokens, p.k, p.experts, p.capacity);
    id_matrix ids(p.ids, at(p.k)), kept(p.tokens, p.k, 2);
    counts dropped(at(p.experts));
    expar::drop_to_capacity(ctx, expar::only(p.valid, ids.view()), p.experts, p.capacity,
                            expar::by_choice{}, kept.view(), dropped);
    rows numbers(at(p.tokens), std::vector<double>(at(p.k)));
    for (auto& row : numbers)
      for (double& u : row) u = rng.chance(.1) ? 0 : rng.uniform();
    auto uniform = matrix_of<double>(numbers, p.k, 1);
    id_rows expected = kept.rows();
    auto const missing = place_dropped(p, numbers, expected);
    auto const before = kept.rows();
    REQUIRE(expar::reroute_dropped(ctx, expar::only(p.valid, ids.view()), p.experts, p.capacity,
                                   uniform.view(), kept.view()) == missing);
    REQUIRE(kept.rows() == expected);
    counts held(at(p.experts));
    std::int64_t routes = 0, placed = 0;
    for (std::int64_t t = 0; t < p.tokens; ++t)
      for (int j = 0; j < p.k; ++j) {
        auto const e = kept.rows()[at(t)][at(j)];
        routes += static_cast<int>(p.valid[at(t)] != 0 && p.ids[at(t)][at(j)] >= 0);
        if (e >= 0) ++held[at(e)], ++placed;
        if (before[at(t)][at(j)] >= 0) REQUIRE(e == before[at(t)][at(j)]);
      }
    REQUIRE(*std::max_element(held.begin(), held.end()) <= p.capacity);
    REQUIRE(placed == std::min(routes, p.experts * p.capacity));
    REQUIRE(missing == routes - placed);
  }
}

TEST_CASE("all free places are equally likely", "[plan]") {
  drop_test::random rng(53);
  std::array<int, 3> first{}, second{};
  for (int round = 0; round < 6000; ++round) {
    // Expert 0 is full, expert 1 has one place and expert 2 has two.
    id_matrix ids(id_rows{{0}, {0}, {0}, {1}, {0}});
    id_matrix kept(id_rows{{0}, {0}, {-1}, {1}, {-1}});
    matrix<float> u(5, 1);
    for (float& x : u.data) x = static_cast<float>(rng.integer(0, (1 << 24) - 1)) * 0x1p-24f;
    REQUIRE(expar::reroute_dropped(ctx, ids.view(), 3, 2, u.view(), kept.view()) == 0);
    ++first[at(kept.rows()[2][0])], ++second[at(kept.rows()[4][0])];
  }
  for (auto const& n : {first, second}) {
    CHECK(n[0] == 0);
    CHECK(std::abs(n[1] - 2000) < 200);
    CHECK(std::abs(n[2] - 4000) < 200);
  }
}

TEST_CASE("a rerouted token has the weight of its new expert", "[plan]") {
  matrix<double> logits(std::vector<router_test::row_type>{{2, 1, 0}, {3, 1, 0}});
  expar::routes<double> routes(2, 1), again(2, 1);
  expar::router const r({.experts = 3, .top_k = 1}, expar::softmax_score{});
  expar::route(ctx, r, logits.view(), routes);
  id_matrix kept(2, 1);
  counts dropped(3);
  matrix<double> uniform(std::vector<router_test::row_type>{{0}, {.75}});
  expar::drop_to_capacity(ctx, routes.ids, 3, 1, expar::by_choice{}, kept.view(), dropped);
  expar::reroute_dropped(ctx, routes.ids, 3, 1, uniform.view(), kept.view());
  REQUIRE(kept.rows() == id_rows{{0}, {2}});
  expar::route(ctx,
               expar::router({.experts = 3, .top_k = 1}, expar::softmax_score{},
                             expar::given_ids{kept.view()}),
               logits.view(), again);
  CHECK_THAT(again.weights(1, 0), WithinAbs(1 / (std::exp(3.) + std::exp(1.) + 1), 1e-14));
}

TEST_CASE("ids of tokens that are not valid can be anything, where routes are sent", "[plan]") {
  id_matrix ids(id_rows{{0, 1}, {1 << 30, -77}, {0, 1}}), kept(3, 2);
  flags const valid{1, 0, 1};
  CHECK(expar::take_first_free(ctx, expar::only(valid, ids.view()), 2, 1, kept.view()) == 0);
  CHECK(kept.rows() == id_rows{{0, -1}, {-1, -1}, {-1, 1}});
  kept = id_matrix(id_rows{{0, 1}, {9, -5}, {-1, -1}});
  matrix<float> uniform(3, 2);
  CHECK(expar::reroute_dropped(ctx, expar::only(valid, ids.view()), 2, 2, uniform.view(),
                               kept.view()) == 0);
  CHECK(kept.rows() == id_rows{{0, 1}, {9, -5}, {0, 1}});
}

TEST_CASE("places may be more than can be counted", "[plan]") {
  id_matrix ids(id_rows{{0}, {0}, {0}}), kept(id_rows{{0}, {-1}, {-1}});
  matrix<double> uniform(std::vector<router_test::row_type>{{0}, {.49}, {1 - 0x1p-53}});
  expar::index_t const most = std::numeric_limits<expar::index_t>::max();
  CHECK(expar::reroute_dropped(ctx, ids.view(), 3, most, uniform.view(), kept.view()) == 0);
  CHECK(kept.rows() == id_rows{{0}, {1}, {2}});
  CHECK(expar::take_first_free(ctx, ids.view(), 3, most, kept.view()) == 0);
  CHECK(kept.rows() == id_rows{{0}, {0}, {0}});
}

TEST_CASE("rerouting refuses what does not fit", "[plan]") {
  id_matrix ids(id_rows{{0, 1}, {1, 2}}), kept(2, 2);
  matrix<float> uniform(2, 2);
  flags const valid{1};
  using expar::make_view;
  auto* const data = kept.data.data();
  auto const first = [&](auto const& i, int experts, expar::index_t capacity, auto const& k) {
    return sentence_of([&] { expar::take_first_free(ctx, i, experts, capacity, k); });
  };
  CHECK(first(make_view<std::int32_t>(nullptr, 2, 2), 3, 1, kept.view()) ==
        "expar: take_first_free: ids has 4 elements but its data is null");
  CHECK(first(ids.view(), 3, 1, make_view(data, 1, 2)) ==
        "expar: take_first_free: kept has extent 1 in dimension 0, but the number of tokens is 2");
  CHECK(first(ids.view(), 0, 1, kept.view()) ==
        "expar: take_first_free: experts is 0; at least 1 is needed");
  CHECK(first(ids.view(), 3, -1, kept.view()) ==
        "expar: take_first_free: capacity is -1; it is at least 0");
  CHECK(first(ids.view(), 2, 1, kept.view()) ==
        "expar: take_first_free: ids(1, 1) is 2; an expert id is -1 (no expert) or 0 to 1");
  CHECK(sentence_of([&] {
          expar::take_first_free(ctx, expar::only(valid, ids.view()), 3, 1, kept.view());
        }) ==
        "expar: take_first_free: valid has extent 1 in dimension 0, but the number of tokens is 2");
  CHECK(kept.data == std::vector<std::int32_t>(4, -7));

  auto const again = [&](auto const& i, int experts, expar::index_t capacity, auto const& u,
                         auto const& k) {
    return sentence_of([&] { expar::reroute_dropped(ctx, i, experts, capacity, u, k); });
  };
  CHECK(again(ids.view(), 3, 1, uniform.view(), kept.view()) ==
        "expar: reroute_dropped: kept(0, 0) is -7; an expert id is -1 (no expert) or 0 to 2");
  kept.data = {-1, -1, -1, -1};
  CHECK(again(make_view<std::int32_t>(nullptr, 2, 2), 3, 1, uniform.view(), kept.view()) ==
        "expar: reroute_dropped: ids has 4 elements but its data is null");
  CHECK(again(ids.view(), 3, 1, uniform.view(), make_view(data, 2, 1)) ==
        "expar: reroute_dropped: kept has extent 1 in dimension 1, but the number of choices per "
        "token is 2");
  CHECK(again(ids.view(), 3, 1, make_view<float>(nullptr, 2, 2), kept.view()) ==
        "expar: reroute_dropped: uniform has 4 elements but its data is null");
  CHECK(again(ids.view(), 3, 1, make_view(uniform.data.data(), 1, 2), kept.view()) ==
        "expar: reroute_dropped: uniform has extent 1 in dimension 0, but the number of tokens is "
        "2");
  CHECK(again(ids.view(), 3, 1, make_view(uniform.data.data(), 2, 1), kept.view()) ==
        "expar: reroute_dropped: uniform has extent 1 in dimension 1, but the number of choices "
        "per token is 2");
  CHECK(again(ids.view(), 0, 1, uniform.view(), kept.view()) ==
        "expar: reroute_dropped: experts is 0; at least 1 is needed");
  CHECK(again(ids.view(), 3, -1, uniform.view(), kept.view()) ==
        "expar: reroute_dropped: capacity is -1; it is at least 0");
  CHECK(again(ids.view(), 2, 1, uniform.view(), kept.view()) ==
        "expar: reroute_dropped: ids(1, 1) is 2; an expert id is -1 (no expert) or 0 to 1");
  CHECK(sentence_of([&] {
          expar::reroute_dropped(ctx, expar::only(valid, ids.view()), 3, 1, uniform.view(),
                                 kept.view());
        }) ==
        "expar: reroute_dropped: valid has extent 1 in dimension 0, but the number of tokens "
        "is 2");
  uniform.data = {0, 0, 0, 1};
  CHECK(again(ids.view(), 3, 1, uniform.view(), kept.view()) ==
        "expar: reroute_dropped: uniform(1, 1) is 1; it is at least 0 and less than 1");
  uniform.data = {0, -1, 0, 0};
  CHECK(again(ids.view(), 3, 1, uniform.view(), kept.view()) ==
        "expar: reroute_dropped: uniform(0, 1) is -1; it is at least 0 and less than 1");
  uniform.data = {std::numeric_limits<float>::quiet_NaN(), 0, 0, 0};
  CHECK(again(ids.view(), 3, 1, uniform.view(), kept.view()) ==
        "expar: reroute_dropped: uniform(0, 0) is nan; it is at least 0 and less than 1");
  CHECK(kept.data == std::vector<std::int32_t>(4, -1));
  auto const shared = make_view(ids.data.data(), 2, 2);
  CHECK(first(shared, 3, 1, make_view(ids.data.data() + 1, 2, 2)) ==
        "expar: take_first_free: kept overlaps ids in memory; it is that very tensor, or apart "
        "from it");
  // drop_to_capacity() in place leaves nothing that says what was dropped.
  CHECK(again(shared, 3, 1, uniform.view(), shared) ==
        "expar: reroute_dropped: kept overlaps ids in memory; the operation cannot work in place");
  CHECK(again(ids.view(), 3, 1, uniform.view(),
              make_view(reinterpret_cast<std::int32_t*>(uniform.data.data()), 2, 2)) ==
        "expar: reroute_dropped: kept overlaps uniform in memory; the operation cannot work in "
        "place");
}
