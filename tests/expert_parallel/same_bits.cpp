// SPDX-License-Identifier: Apache-2.0
#include <cmath>
#include <cstring>

#include <expar/exchange/hops.hpp>
#include <expar/expert_parallel.hpp>

#include "../support/thread_ranks.hpp"

using namespace expar_test;
using expar::index_t;

namespace {

/// Real numbers for the whole group, cut into ranks at given places: what a token gets depends on
/// it alone. A long stream is enough work for several threads to share every step.
struct stream {
  int tokens, experts, top_k, hidden;
  std::vector<problem::token> all;

  explicit stream(std::uint64_t seed, bool is_long = false) {
    expar_test::random rng(seed);
    tokens = static_cast<int>(is_long ? rng.integer(2000, 2500) : rng.integer(0, 40));
    experts = static_cast<int>(rng.integer(3, 13));
    top_k = static_cast<int>(rng.integer(1, 3));
    hidden = static_cast<int>(rng.integer(1, is_long ? 60 : 150));
    for (int t = 0; t < tokens; ++t) {
      auto& token = all.emplace_back();
      for (int j = 0; j < top_k; ++j) {
        token.ids.push_back(static_cast<int>(rng.integer(-1, experts - 1)));
        token.weights.push_back(rng.normal());
      }
      for (int h = 0; h < hidden; ++h) {
        token.x.push_back(rng.normal());
        token.d_out.push_back(rng.normal());
      }
    }
  }
  int first(int rank, int ranks) const { return tokens * rank / ranks; }
};

struct setting {
  int ranks = 1, threads = 1;
  placed placement = placed::blocks;
  bool capacity = false, by_windows = false;
  int per_node = 0;  // where rows go by a chain of hops
};

std::unique_ptr<drawn_problem> problem_of(stream const& s, setting const& how) {
  problem p{};
  p.ranks = how.ranks;
  expar_test::random rng(static_cast<std::uint64_t>(s.tokens));
  draw_placement(rng, p, how.placement);
  p.experts = s.experts, p.top_k = s.top_k, p.hidden = p.hidden_out = s.hidden;
  p.shards = 1;
  std::vector<int> all, some;
  for (int r = 0; r < p.ranks; ++r) {
    all.push_back(r);
    if (r % 3 != 1) some.push_back(r);
  }
  if (how.placement == placed::table)
    draw_table(rng, p, some, 3);
  else if (how.placement == placed::whole)
    cut_into_blocks(p, s.experts * p.ranks, [&](int n) { return n % s.experts; });
  else if (how.placement == placed::blocks)
    cut_into_blocks(p, s.experts, [](int n) { return n; });
  else
    cut_into_blocks(p, 2 * s.experts, [&](int n) { return n % s.experts; });
  for (int r = 0; r < p.ranks; ++r)
    p.tokens.emplace_back(s.all.begin() + s.first(r, p.ranks),
                          s.all.begin() + s.first(r + 1, p.ranks));
  if (how.capacity) p.limited = problem::limit::capacity, p.factor = 0;  // drops nothing
  return std::make_unique<drawn_problem>(
      kinds{how.placement, laid_out::ragged, weighed::at_decode, p.ranks}, manner{}, std::move(p));
}

/// Every number that an exchange makes, by token and by route: out, d_tokens, d_weights, rows, d_y.
struct numbers {
  std::vector<double> of_token, of_route;
  friend bool operator==(numbers const& a, numbers const& b) {
    auto const same = [](std::vector<double> const& x, std::vector<double> const& y) {
      return x.size() == y.size() &&
             (x.empty() || std::memcmp(x.data(), y.data(), x.size() * sizeof(double)) == 0);
    };
    return same(a.of_token, b.of_token) && same(a.of_route, b.of_route);
  }
};

template <class T, class Moe>
void run_rank(expar::host_context const& ctx, Moe& moe, drawn_problem const& d, stream const& s,
              int rank, numbers& to) {
  auto const value = [](T x) { return static_cast<double>(expar::widen(x)); };
  auto const rounded = [](double x) {
    return expar::narrow<T>(static_cast<expar::accumulator_t<T>>(x));
  };
  problem const& p = d.made;
  int const n = static_cast<int>(p.tokens_of(rank).size()), k = p.top_k, columns = p.hidden;
  std::vector<std::int32_t> ids;
  grid<float> w(n, k), d_w(n, k);
  grid<T> x(n, columns), d_out(n, columns), out(n, columns), d_x(n, columns);
  for (int t = 0; t < n; ++t) {
    auto const& token = p.at(rank, t);
    ids.insert(ids.end(), token.ids.begin(), token.ids.end());
    for (int j = 0; j < k; ++j) w.set(t, j, token.weights[static_cast<std::size_t>(j)]);
    for (int h = 0; h < columns; ++h) {
      x.set(t, h, token.x[static_cast<std::size_t>(h)]);
      d_out.set(t, h, token.d_out[static_cast<std::size_t>(h)]);
    }
  }
  struct {
    expar::tensor_view<std::int32_t, 2> ids;
    expar::tensor_view<float, 2> weights;
  } const routes{expar::make_view(ids.data(), n, k), w.view()};

  expar::expert_batch<T> batch;
  if (p.choice == problem::way::quotas)
    moe.dispatch(ctx, x.view(), routes, batch, expar::even_quotas);
  else
    moe.dispatch(ctx, x.view(), routes, batch);
  auto const rows = batch.rows(), y = batch.y();
  for (index_t i = 0; i < batch.row_count(); ++i)
    for (int h = 0; h < columns; ++h) y(i, h) = rounded(std::tanh(value(rows(i, h))) * 1.37);
  moe.combine(ctx, batch, out.view());
  moe.combine_backward(ctx, batch, d_out.view(), d_w.view());
  auto const d_y = batch.d_y(), d_rows = batch.d_rows();
  for (index_t i = 0; i < batch.row_count(); ++i)
    for (int h = 0; h < columns; ++h) d_rows(i, h) = rounded(value(d_y(i, h)) * .73);
  moe.dispatch_backward(ctx, batch, d_x.view());

  auto const width = static_cast<std::size_t>(2 * columns);
  for (int t = 0; t < n; ++t) {
    auto const token = static_cast<std::size_t>(s.first(rank, p.ranks) + t);
    double* at = &to.of_token[token * (width + static_cast<std::size_t>(k))];
    for (int h = 0; h < columns; ++h) *at++ = out.get(t, h), *at++ = d_x.get(t, h);
    for (int j = 0; j < k; ++j) *at++ = d_w.get(t, j);
  }
  for (std::size_t slot = 0; slot < d.wanted.slots.size(); ++slot) {
    auto const& here = d.wanted.at[slot];
    if (d.wanted.slots[slot].rank != rank) continue;
    for (std::size_t i = 0; i < here.rows.size(); ++i) {
      if (!here.rows[i]) continue;
      auto const& r = *here.rows[i];
      auto const route =
          static_cast<std::size_t>((s.first(r.rank, p.ranks) + r.token) * k + r.choice);
      double* at = &to.of_route[route * width];
      auto const row = here.begin + static_cast<index_t>(i);
      for (int h = 0; h < columns; ++h) *at++ = value(rows(row, h)), *at++ = value(d_y(row, h));
    }
  }
}

template <class T>
numbers run_stream(stream const& s, setting const& how) {
  auto const d = problem_of(s, how);
  auto const tokens = static_cast<std::size_t>(s.tokens), k = static_cast<std::size_t>(s.top_k),
             width = static_cast<std::size_t>(2 * s.hidden);
  numbers to{std::vector<double>(tokens * (width + k)), std::vector<double>(tokens * k * width)};
  expar::run_ranks(how.ranks, [&](expar::thread_communicator& comm) {
    expar::host_context ctx(how.threads);
    if (how.ranks % 2 == 0) ctx.set_cache_bytes(0);  // rows are written past the caches
    auto const on = [&](auto transport) {
      auto const go = [&](auto& moe) {
        run_rank<T>(ctx, moe, *d, s, comm.rank(), to);
        return std::string();
      };
      if (how.capacity)
        with_engine<expar::fixed_capacity, expar::weights_at_decode>(transport, *d,
                                                                     capacity_of(d->made), go);
      else
        with_engine<expar::ragged, expar::weights_at_decode>(transport, *d, expar::ragged{}, go);
    };
    auto const nodes = expar::topology::blocks(how.ranks, how.per_node + (how.per_node == 0));
    if (how.per_node != 0)
      on(expar::hops(comm, expar::chain::once_per_node(nodes)));
    else if (how.by_windows)
      on(expar::windows(comm));
    else
      on(expar::messages(comm));
  });
  return to;
}

}  // namespace

TEMPLATE_TEST_CASE("the same bits for any number of ranks and threads, transport and placement", "",
                   float, expar::bfloat16) {
  for (std::uint64_t seed = 0; seed < 12; ++seed) {
    stream const s(seed);
    INFO("seed " << seed);
    auto const alone = run_stream<TestType>(s, {});
    for (int const ranks : {1, 2, 3, 4, 8})
      for (auto const where : {placed::blocks, placed::replicated, placed::nearest, placed::whole,
                               placed::even_quotas, placed::table}) {
        auto const turn = seed + static_cast<std::uint64_t>(ranks) + static_cast<unsigned>(where);
        INFO("ranks " << ranks << " placement " << static_cast<int>(where));
        REQUIRE(run_stream<TestType>(s, {ranks, 1, where, turn % 3 == 0, false}) == alone);
        REQUIRE(run_stream<TestType>(s, {ranks, 1, where, turn % 3 == 1, true}) == alone);
        REQUIRE(run_stream<TestType>(s, {ranks, 1, where, turn % 3 == 2, false,
                                         1 + static_cast<int>(turn % 4)}) == alone);
      }
  }
  for (std::uint64_t seed = 100; seed < 102; ++seed) {
    stream const s(seed, true);
    INFO("seed " << seed);
    auto const alone = run_stream<TestType>(s, {});
    REQUIRE(run_stream<TestType>(s, {1, 4, placed::blocks, false, false}) == alone);
    REQUIRE(run_stream<TestType>(s, {1, 3, placed::whole, true, true}) == alone);
    REQUIRE(run_stream<TestType>(s, {2, 3, placed::replicated, false, true}) == alone);
    REQUIRE(run_stream<TestType>(s, {3, 2, placed::table, true, false}) == alone);
    REQUIRE(run_stream<TestType>(s, {4, 2, placed::blocks, false, false, 2}) == alone);
  }
}

namespace {

/// Sums of products of what goes into and what comes out of two maps and their adjoints:
/// dispatch and dispatch_backward, combine and combine_backward.
struct products {
  double rows_y = 0, x_d_x = 0, out_x = 0, y_d_y = 0;
};

template <class Site, class Moe>
products multiply(expar::host_context const& ctx, Moe& moe, drawn_problem const& d, int rank) {
  constexpr bool at_decode = std::is_same_v<Site, expar::weights_at_decode>;
  problem const& p = d.made;
  expar_test::random rng(static_cast<std::uint64_t>(rank) + 1);
  int const n = static_cast<int>(p.tokens_of(rank).size());
  auto const normal = [&](index_t rows, int columns) {
    grid<double> g(rows, columns);
    for (index_t r = 0; r < rows; ++r)
      for (int c = 0; c < columns; ++c) g.set(r, c, rng.normal());
    return g;
  };
  auto w = normal(n, p.top_k), d_w = w, x = normal(n, p.hidden), d_x = x;
  auto d_out = normal(n, p.hidden_out), out = d_out;
  std::vector<std::int32_t> ids;
  for (auto const& t : p.tokens_of(rank)) ids.insert(ids.end(), t.ids.begin(), t.ids.end());
  struct {
    expar::tensor_view<std::int32_t, 2> ids;
    expar::tensor_view<double, 2> weights;
  } const routes{expar::make_view(ids.data(), n, p.top_k), w.view()};
  expar::expert_batch<double, double> batch;
  if (p.choice == problem::way::quotas)
    moe.dispatch(ctx, x.view(), routes, batch, expar::even_quotas);
  else
    moe.dispatch(ctx, x.view(), routes, batch);
  auto d_rows = normal(batch.row_count(), p.hidden);
  auto y = normal(batch.row_count(), p.hidden_out), d_y = y;
  moe.combine(ctx, batch, y.view(), out.view());
  if constexpr (at_decode) {
    moe.combine_backward(ctx, batch, d_out.view(), y.view(), d_y.view(), d_w.view());
    moe.dispatch_backward(ctx, batch, d_rows.view(), d_x.view());
  } else {
    moe.combine_backward(ctx, batch, d_out.view(), d_y.view());
    moe.dispatch_backward(ctx, batch, d_rows.view(), x.view(), d_x.view(), d_w.view());
  }
  auto const dot = [](expar::tensor_view<double, 2> a, expar::tensor_view<double, 2> b) {
    double sum = 0;
    for (index_t i = 0; i < a.extents[0]; ++i)
      for (index_t h = 0; h < a.extents[1]; ++h) sum += a(i, h) * b(i, h);
    return sum;
  };
  return {dot(batch.rows(), d_rows.view()), dot(x.view(), d_x.view()),
          dot(out.view(), d_out.view()), dot(y.view(), d_y.view())};
}

}  // namespace

TEST_CASE("dispatch and combine have their adjoints: real numbers in double") {
  for (int p = 0; p < placements; ++p)
    for (int turn = 0; turn < 6; ++turn) {
      int const ranks = turn % 4 + 1;
      kinds const k{static_cast<placed>(p), laid_out::aligned_budget_with_drops, weighed::at_decode,
                    ranks};
      if (!kinds::possible(k.placement, ranks)) continue;
      expar_test::random rng(static_cast<std::uint64_t>(p * 10 + turn));
      drawn_problem const d(k, manner{}, make_problem(rng, k));
      std::vector<products> of_rank(static_cast<std::size_t>(ranks));
      expar::run_ranks(ranks, [&](expar::thread_communicator& comm) {
        expar::host_context const ctx;
        auto const on = [&]<class Site>(auto transport, Site) {
          with_engine<expar::row_budget, Site>(transport, d, budget_of(d.made), [&](auto& moe) {
            of_rank[static_cast<std::size_t>(comm.rank())] =
                multiply<Site>(ctx, moe, d, comm.rank());
            return std::string();
          });
        };
        if (turn % 2 == 0)
          on(expar::messages(comm), expar::weights_at_decode{});
        else
          on(expar::windows(comm), expar::weights_at_encode{});
      });
      products sum;
      for (auto const& one : of_rank) {
        sum.rows_y += one.rows_y, sum.x_d_x += one.x_d_x;
        sum.out_x += one.out_x, sum.y_d_y += one.y_d_y;
      }
      INFO("placement " << p << " turn " << turn);
      REQUIRE(std::abs(sum.rows_y - sum.x_d_x) <= 1e-11 * (1 + std::abs(sum.rows_y)));
      REQUIRE(std::abs(sum.out_x - sum.y_d_y) <= 1e-11 * (1 + std::abs(sum.out_x)));
    }
}
