// SPDX-License-Identifier: Apache-2.0
#include <expar/plan/drop_order.hpp>

#include <expar/plan/drop.hpp>

#include "../support/catch.hpp"
#include "support.hpp"

using namespace drop_test;
using router_test::sentence_of;

namespace {

expar::host_context const ctx;

// The loops of published systems, on masks [T][E] of one rank of choices each, in float64.

using mask = std::vector<std::vector<int>>;

mask mask_of_rank(problem const& p, int j) {
  mask m(at(p.tokens), std::vector<int>(at(p.experts)));
  for (std::int64_t t = 0; t < p.tokens; ++t)
    if (auto const e = p.ids[at(t)][at(j)]; e >= 0 && p.valid[at(t)] != 0) m[at(t)][at(e)] = 1;
  return m;
}
std::vector<std::int64_t> sum_of(mask const& m, int experts) {
  std::vector<std::int64_t> sum(at(experts));
  for (auto const& row : m)
    for (int e = 0; e < experts; ++e) sum[at(e)] += row[at(e)];
  return sum;
}
/// kept ids, from masks of what is kept
id_rows ids_of(problem const& p, std::vector<mask> const& masks) {
  id_rows kept = p.ids;
  for (std::int64_t t = 0; t < p.tokens; ++t)
    for (int j = 0; j < p.k; ++j) {
      auto& e = kept[at(t)][at(j)];
      if (e >= 0 && masks[at(j)][at(t)][at(e)] == 0) e = -1;
    }
  return kept;
}

/// DeepSpeed top2gating, fairscale, NLLB: location = cumsum(mask) - 1, behind ALL routes of the
/// ranks before. `tokens`: in which order the sum goes over them.
id_rows behind_all(problem const& p, std::vector<std::int64_t> const& tokens) {
  std::vector<mask> masks;
  std::vector<std::int64_t> base(at(p.experts));
  for (int j = 0; j < p.k; ++j) {
    mask m = mask_of_rank(p, j);
    auto const sum = sum_of(m, p.experts);
    for (int e = 0; e < p.experts; ++e) {
      std::int64_t running = 0;
      for (auto const t : tokens) {
        running += m[at(t)][at(e)];
        if (running - 1 + base[at(e)] >= p.capacity) m[at(t)][at(e)] = 0;
      }
      base[at(e)] += sum[at(e)];
    }
    masks.push_back(m);
  }
  return ids_of(p, masks);
}
/// Mesh TensorFlow: an exclusive sum, behind the KEPT routes of the ranks before.
id_rows behind_kept(problem const& p) {
  std::vector<mask> masks;
  std::vector<std::int64_t> base(at(p.experts));
  for (int j = 0; j < p.k; ++j) {
    mask m = mask_of_rank(p, j);
    for (int e = 0; e < p.experts; ++e) {
      std::int64_t position = base[at(e)];
      for (std::int64_t t = 0; t < p.tokens; ++t) {
        bool const fits = position < p.capacity;
        position += m[at(t)][at(e)];
        if (!fits) m[at(t)][at(e)] = 0;
      }
    }
    auto const sum = sum_of(m, p.experts);
    for (int e = 0; e < p.experts; ++e) base[at(e)] += sum[at(e)];
    masks.push_back(m);
  }
  return ids_of(p, masks);
}
std::vector<std::int64_t> in_order(problem const& p) {
  std::vector<std::int64_t> tokens(at(p.tokens));
  std::iota(tokens.begin(), tokens.end(), 0);
  return tokens;
}
/// argsort(-score)
std::vector<std::int64_t> by_importance(problem const& p) {
  auto tokens = in_order(p);
  std::stable_sort(tokens.begin(), tokens.end(),
                   [&](auto a, auto b) { return p.scores[at(a)][0] > p.scores[at(b)][0]; });
  return tokens;
}
/// V-MoE: one sum over the one-hot matrix [k * T, E] of tokens in order of importance.
id_rows vmoe(problem const& p, bool batch_priority) {
  auto const tokens = batch_priority ? by_importance(p) : in_order(p);
  id_rows kept = p.ids;
  std::vector<std::int64_t> sum(at(p.experts));
  for (int j = 0; j < p.k; ++j)
    for (auto const t : tokens) {
      auto& e = kept[at(t)][at(j)];
      if (e < 0) continue;
      std::int64_t const buffer_index = p.valid[at(t)] != 0 ? sum[at(e)]++ : p.capacity;
      if (buffer_index >= p.capacity) e = -1;
    }
  return kept;
}
/// Megatron and DeepSpeed topkgating by probability: topk of each column of the dense
/// probabilities [T,E], of which only routes are kept.
id_rows columns_top(problem const& p, rows const& values) {
  rows dense(at(p.tokens), std::vector<double>(at(p.experts)));
  std::vector<mask> masks;
  for (int j = 0; j < p.k; ++j) masks.push_back(mask_of_rank(p, j));
  for (std::int64_t t = 0; t < p.tokens; ++t)
    for (int j = 0; j < p.k; ++j)
      if (auto const e = p.ids[at(t)][at(j)]; e >= 0 && p.valid[at(t)] != 0)
        dense[at(t)][at(e)] = values[at(t)][at(j)];
  for (int e = 0; e < p.experts; ++e) {
    auto order = in_order(p);
    std::stable_sort(order.begin(), order.end(),
                     [&](auto a, auto b) { return dense[at(a)][at(e)] > dense[at(b)][at(e)]; });
    for (std::int64_t i = p.capacity; i < p.tokens; ++i)
      for (auto& m : masks) m[at(order[at(i)])][at(e)] = 0;
  }
  return ids_of(p, masks);
}
/// Megatron and DeepSpeed topkgating by position: a sum over the column of the map [T,E].
id_rows columns_first(problem const& p) {
  std::vector<mask> masks;
  for (int j = 0; j < p.k; ++j) masks.push_back(mask_of_rank(p, j));
  for (int e = 0; e < p.experts; ++e) {
    std::int64_t sum = 0;
    for (std::int64_t t = 0; t < p.tokens; ++t)
      for (auto& m : masks) {
        sum += m[at(t)][at(e)];
        if (sum > p.capacity) m[at(t)][at(e)] = 0;
      }
  }
  return ids_of(p, masks);
}
/// fastmoe's prune_gate_by_capacity in one thread.
id_rows pruned(problem const& p) {
  std::vector<std::int64_t> left(at(p.experts), p.capacity);
  id_rows kept = p.ids;
  for (std::int64_t t = 0; t < p.tokens; ++t)
    for (auto& e : kept[at(t)]) {
      if (e < 0) continue;
      if (p.valid[at(t)] == 0 || left[at(e)]-- <= 0) e = -1;
    }
  return kept;
}

template <class Order>
id_rows kept_by(problem const& p, Order const& order) {
  id_matrix ids(p.ids, at(p.k)), kept(p.tokens, p.k, 2);
  counts dropped(at(p.experts));
  expar::drop_to_capacity(ctx, expar::only(p.valid, ids.view()), p.experts, p.capacity, order,
                          kept.view(), dropped);
  return kept.rows();
}

}  // namespace

TEMPLATE_TEST_CASE("the orders keep what published systems keep", "[plan]", float, double,
                   expar::bfloat16) {
  drop_test::random rng(31);
  for (int round = 0; round < 300; ++round) {
    problem const p(rng, round < 250 ? 24 : 120);
    CAPTURE(round, p.tokens, p.k, p.experts, p.capacity);
    auto values = matrix_of<TestType>(p.values, p.k, 1);
    auto scores = matrix_of<TestType>(p.scores, 1, 2);
    auto const first = kept_by(p, expar::by_choice{});
    REQUIRE(first == behind_all(p, in_order(p)));
    REQUIRE(first == behind_kept(p));
    REQUIRE(first == vmoe(p, false));
    auto const important = kept_by(p, expar::by_choice_and_score{scores.view()});
    REQUIRE(important == behind_all(p, by_importance(p)));
    REQUIRE(important == vmoe(p, true));
    auto const serial = kept_by(p, expar::by_token{});
    REQUIRE(serial == columns_first(p));
    REQUIRE(serial == pruned(p));
    REQUIRE(kept_by(p, expar::by_value{values.view()}) == columns_top(p, p.values));
  }
}

TEST_CASE("a random number per token selects tokens at random", "[plan]") {
  drop_test::random rng(32);
  std::vector<int> kept_count(6);
  for (int round = 0; round < 2000; ++round) {
    matrix<double> u(6, 1);
    for (double& x : u.data) x = rng.uniform();
    id_matrix ids(id_rows{{0}, {0}, {1}, {0}, {0}, {1}}), kept(6, 1);
    counts dropped(2);
    expar::drop_to_capacity(ctx, ids.view(), 2, 2, expar::by_value{u.view()}, kept.view(), dropped);
    REQUIRE(dropped == counts{2, 0});
    for (int t = 0; t < 6; ++t) kept_count[at(t)] += static_cast<int>(kept.rows()[at(t)][0] >= 0);
  }
  for (int t : {0, 1, 3, 4}) CHECK(std::abs(kept_count[at(t)] - 1000) < 120);
  for (int t : {2, 5}) CHECK(kept_count[at(t)] == 2000);
}

TEMPLATE_TEST_CASE("the score of a token is the largest of its row", "[plan]", float, double,
                   expar::bfloat16) {
  using router_test::inf;
  using router_test::qnan;
  id_matrix ids(id_rows{{0, 1}, {0, 1}, {0, 1}}), kept(3, 2);
  counts dropped(2);
  auto const best = [&](std::vector<router_test::row_type> const& rows) {
    matrix<TestType> scores(rows, 1);
    expar::drop_to_capacity(ctx, ids.view(), 2, 1, expar::by_choice_and_score{scores.view()},
                            kept.view(), dropped);
    for (int t = 0; t < 3; ++t)
      if (kept.rows()[at(t)][0] >= 0) return t;
    return -1;
  };
  // The scores of all experts, in the order of their ids.
  CHECK(best({{.125, .25, .625}, {.5, .25, .25}, {0, .75, .25}}) == 2);
  CHECK(best({{.25, .75}, {.625, .125}, {.75, .25}}) == 0);
  CHECK(best({{qnan, .5}, {.625, qnan}, {qnan, qnan}}) == 1);
  CHECK(best({{qnan, qnan}, {-inf, -inf}, {-4, -inf}}) == 2);
}

TEST_CASE("a value of NaN comes last", "[plan]") {
  using router_test::inf;
  using router_test::qnan;
  matrix<double> values(std::vector<router_test::row_type>{{qnan}, {-inf}, {-1}, {qnan}, {inf}});
  id_matrix ids(id_rows{{0}, {0}, {0}, {0}, {0}}), kept(5, 1);
  counts dropped(1);
  auto const with = [&](expar::index_t capacity) {
    expar::drop_to_capacity(ctx, ids.view(), 1, capacity, expar::by_value{values.view()},
                            kept.view(), dropped);
    return kept.rows();
  };
  CHECK(with(1) == id_rows{{-1}, {-1}, {-1}, {-1}, {0}});
  CHECK(with(2) == id_rows{{-1}, {-1}, {0}, {-1}, {0}});
  CHECK(with(3) == id_rows{{0}, {-1}, {0}, {-1}, {0}});
  CHECK(with(4) == id_rows{{0}, {0}, {0}, {-1}, {0}});
}

TEST_CASE("an order of your own is a group and a value", "[plan]") {
  struct last_tokens_first {
    static expar::index_t group(expar::index_t) { return 0; }
    static double value(expar::index_t t, expar::index_t) { return static_cast<double>(t); }
  };
  id_matrix ids(id_rows{{0, 1}, {0, 1}, {1, 0}}), kept(3, 2);
  counts dropped(2);
  expar::drop_to_capacity(ctx, ids.view(), 2, 2, last_tokens_first{}, kept.view(), dropped);
  REQUIRE(kept.rows() == id_rows{{-1, -1}, {0, 1}, {1, 0}});
}

TEST_CASE("the orders refuse what does not fit", "[plan]") {
  id_matrix ids(id_rows{{0, 1}, {0, 1}}), kept(2, 2);
  counts dropped(2, 9);
  std::vector<float> numbers(6);
  auto const drop = [&](auto const& order) {
    return sentence_of(
        [&] { expar::drop_to_capacity(ctx, ids.view(), 2, 1, order, kept.view(), dropped); });
  };
  auto const view = [&](int r, int c) { return expar::make_view(numbers.data(), r, c); };
  CHECK(drop(expar::by_value{view(2, 3)}) ==
        "expar: drop_to_capacity: values has extent 3 in dimension 1, but the number of choices "
        "per token is 2");
  CHECK(
      drop(expar::by_value{view(1, 2)}) ==
      "expar: drop_to_capacity: values has extent 1 in dimension 0, but the number of tokens is 2");
  CHECK(drop(expar::by_value{expar::make_view<float>(nullptr, 2, 2)}) ==
        "expar: drop_to_capacity: values has 4 elements but its data is null");
  CHECK(
      drop(expar::by_choice_and_score{view(3, 1)}) ==
      "expar: drop_to_capacity: scores has extent 3 in dimension 0, but the number of tokens is 2");
  CHECK(drop(expar::by_choice_and_score{view(2, 0)}) ==
        "expar: drop_to_capacity: scores has no columns; at least 1 is needed");
  CHECK(drop(expar::by_choice_and_score{expar::make_view<float>(nullptr, 2, 1)}) ==
        "expar: drop_to_capacity: scores has 2 elements but its data is null");
  CHECK(kept.data == std::vector<std::int32_t>(4, -7));
  CHECK(dropped == counts{9, 9});
}
