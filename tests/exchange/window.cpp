// SPDX-License-Identifier: Apache-2.0
#include <expar/exchange/window.hpp>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <thread>
#include <vector>

#include <expar/comm/thread.hpp>
#include <expar/expert_parallel.hpp>

#include "../support/catch.hpp"
#include "../support/grid.hpp"
#include "../support/random.hpp"
#include "../support/thrown_by.hpp"

using expar::index_t;
using expar_test::grid;

using expar_test::thrown_by;

namespace {

struct routes_of_rank {
  expar::tensor_view<std::int32_t const, 2> ids;
  expar::tensor_view<float const, 2> weights;
};

/// What all ranks share, from a seed: shapes, and whether T = 0 or no expert is named somewhere.
struct shared_shape {
  int experts, top_k, hidden, alignment;
  bool fixed;
  double factor, absent;
  index_t rows;
  shared_shape(std::uint64_t seed, int ranks) {
    expar_test::random rng(seed);
    experts = ranks + static_cast<int>(rng.integer(0, 6));
    top_k = static_cast<int>(rng.chance(.1) ? experts : rng.integer(1, experts < 4 ? experts : 4));
    hidden = static_cast<int>(rng.chance(.3) ? rng.integer(60, 140) : rng.integer(1, 9));
    alignment = static_cast<int>(rng.chance(.5) ? 1 : rng.integer(2, 5));
    fixed = rng.chance(.5);
    double const factors[] = {1, 0, -1, -.5, .6, 1.25, 2};
    factor = factors[rng.integer(0, 6)];
    absent = rng.chance(.1) ? 1 : rng.chance(.5) ? .2 : 0;
    rows = rng.chance(.3) ? rng.integer(0, 6) : -1;
  }
};

/// The tokens and routes of one rank, and what both engines make of them.
template <class T>
struct one_batch {
  index_t tokens;
  int top_k;
  std::vector<std::int32_t> ids;
  grid<float> weights;
  grid<T> x, d_out, out, d_x;
  grid<float> d_w;
  grid<T> out2, d_x2;
  grid<float> d_w2;

  one_batch(shared_shape const& s, std::uint64_t seed) : one_batch(s, expar_test::random(seed)) {}
  one_batch(shared_shape const& s, expar_test::random rng)
      : tokens(rng.chance(.2) ? 0 : rng.integer(1, 12)),
        top_k(s.top_k),
        ids(static_cast<std::size_t>(tokens * (s.top_k + 1)), 99),  // one gap after each row
        weights(tokens, s.top_k, 2),
        x(tokens, s.hidden, 3),
        d_out(tokens, s.hidden, 1),
        out(tokens, s.hidden, 2),
        d_x(tokens, s.hidden),
        d_w(tokens, s.top_k, 1),
        out2(out),
        d_x2(d_x),
        d_w2(d_w) {
    bool const hot = rng.chance(.1);
    for (index_t t = 0; t < tokens; ++t) {
      for (int j = 0; j < s.top_k; ++j) {
        auto const id = hot ? 0 : rng.integer(0, s.experts - 1);
        id_view()(t, j) = rng.chance(s.absent) ? -1 : static_cast<std::int32_t>(id);
        weights.set(t, j, rng.normal());
      }
      for (int h = 0; h < s.hidden; ++h) x.set(t, h, rng.normal()), d_out.set(t, h, rng.normal());
    }
  }
  expar::tensor_view<std::int32_t, 2> id_view() {
    return expar::make_view(ids.data(), tokens, index_t{top_k}, index_t{top_k} + 1);
  }
  routes_of_rank routes() { return {id_view(), weights.view()}; }
};

template <class T>
void expert(expar::tensor_view<T, 2> rows, expar::tensor_view<T, 2> y, double slope) {
  for (index_t i = 0; i < rows.extents[0]; ++i)
    for (index_t h = 0; h < rows.extents[1]; ++h)
      y(i, h) = expar::narrow<T>(static_cast<expar::accumulator_t<T>>(
          slope * static_cast<double>(expar::widen(rows(i, h)))));
}

template <class T>
bool same_bytes(expar::tensor_view<T, 2> a, expar::tensor_view<T, 2> b) {
  if (a.extents[0] != b.extents[0]) return false;
  for (index_t i = 0; i < a.extents[0]; ++i)
    if (std::memcmp(static_cast<void const*>(a.row(i)), b.row(i),
                    static_cast<std::size_t>(a.extents[1]) * sizeof(T)) != 0)
      return false;
  return true;
}

/// One batch of both engines, step by step, so that several can be interleaved.
template <class T, class Moe, class Windows, class Batch>
struct both_engines {
  Moe& moe;
  Windows& windows;
  one_batch<T> data;
  Batch batch;
  expar::expert_batch<T, float> reference;
  grid<T> y{0, 0}, d_y{0, 0}, d_rows{0, 0};

  /// What no row is; until this rank enters an operation, no peer writes here.
  void poison(expar::tensor_view<T, 2> rows) const {
    std::memset(static_cast<void*>(rows.data), 0xff,
                static_cast<std::size_t>(batch.window_rows() * batch.hidden()) * sizeof(T));
  }
  std::string forward(expar::host_context const& ctx, bool in_two) {
    poison(batch.rows());
    moe.dispatch(ctx, data.x.view(), data.routes(), reference);
    if (in_two) {
      windows.prepare(ctx, data.routes(), batch);
      windows.dispatch(ctx, data.x.view(), batch);
      windows.dispatch(ctx, data.x.view(), batch);
    } else {
      windows.dispatch(ctx, data.x.view(), data.routes(), batch);
    }
    if (batch.row_count() != reference.row_count()) return "row_count";
    if (batch.first_expert() != reference.first_expert()) return "first_expert";
    auto const same = [](auto a, auto b) {
      return std::equal(a.begin(), a.end(), b.begin(), b.end());
    };
    if (!same(batch.expert_counts(), reference.expert_counts())) return "expert_counts";
    if (!same(batch.expert_offsets(), reference.expert_offsets())) return "expert_offsets";
    if (batch.plan().capacity() != reference.plan().capacity()) return "capacity";
    if (batch.plan().dropped() != reference.plan().dropped()) return "dropped";
    if (batch.row_count() != 0 && (batch.count_from(0, 0) != reference.count_from(0, 0) ||
                                   batch.first_row_from(0, 0) != reference.first_row_from(0, 0)))
      return "count_from";
    if (!same_bytes(batch.rows(), reference.rows())) return "rows";
    y = grid<T>(reference.row_count(), reference.hidden(), 1);
    expert(reference.rows(), y.view(), 1.37);
    expert(batch.rows(), batch.y(), 1.37);
    moe.combine(ctx, reference, y.view(), data.out.view());
    windows.combine(ctx, batch, data.out2.view());
    return same_bytes(data.out.view(), data.out2.view()) && data.out2.gaps_intact() ? "" : "out";
  }
  std::string backward(expar::host_context const& ctx) {
    d_y = grid<T>(reference.row_count(), reference.hidden(), 1), d_rows = d_y;
    moe.combine_backward(ctx, reference, data.d_out.view(), y.view(), d_y.view(), data.d_w.view());
    poison(batch.d_y());
    windows.combine_backward(ctx, batch, data.d_out.view(), data.d_w2.view());
    if (!same_bytes(d_y.view(), batch.d_y())) return "d_y";
    if (!same_bytes(data.d_w.view(), data.d_w2.view()) || !data.d_w2.gaps_intact())
      return "d_weights";
    expert(d_y.view(), d_rows.view(), .73);
    expert(batch.d_y(), batch.d_rows(), .73);
    moe.dispatch_backward(ctx, reference, d_rows.view(), data.d_x.view());
    windows.dispatch_backward(ctx, batch, data.d_x2.view());
    return same_bytes(data.d_x.view(), data.d_x2.view()) ? "" : "d_tokens";
  }
};

/// `batches` batches of a shape, forward in order and backward in reverse, twice.
template <class T, class Layout>
std::string compare(expar::thread_communicator& comm, shared_shape const& s, Layout layout,
                    std::uint64_t seed, int batches, int threads) {
  expar::host_context const ctx(threads);
  expar::expert_shape const shape{s.experts, s.top_k, s.hidden};
  expar::expert_parallel moe(comm, shape, layout);
  expar::window_parallel windows(comm, shape, layout);
  auto const make = [&] { return windows.template make_batch<T>({windows.worst_case_rows(12)}); };
  using run = both_engines<T, decltype(moe), decltype(windows), decltype(make())>;
  std::vector<run> runs;
  for (int i = 0; i < batches; ++i) {
    auto const own = seed * 1000 + static_cast<std::uint64_t>(comm.rank() * 10 + i);
    runs.push_back({moe, windows, one_batch<T>(s, own), make(), expar::expert_batch<T, float>()});
  }
  std::string wrong;
  auto const note = [&](std::string const& what) {
    if (wrong.empty()) wrong = what;
  };
  for (int turn = 0; turn < 2; ++turn) {
    for (auto& r : runs) note(r.forward(ctx, turn == 1));
    for (auto r = runs.rbegin(); r != runs.rend(); ++r) note(r->backward(ctx));
  }
  return wrong;
}

template <class T>
std::string compare(std::uint64_t seed, int ranks, int batches = 1, int threads = 1) {
  std::vector<std::string> said(static_cast<std::size_t>(ranks));
  expar::run_ranks(ranks, [&](expar::thread_communicator& comm) {
    shared_shape const s(seed, ranks);
    said[static_cast<std::size_t>(comm.rank())] =
        s.fixed ? compare<T>(comm, s, expar::fixed_capacity{s.factor, s.alignment, s.rows}, seed,
                             batches, threads)
                : compare<T>(comm, s, expar::ragged{s.alignment}, seed, batches, threads);
  });
  for (auto const& what : said)
    if (!what.empty()) return what;
  return "";
}

}  // namespace

TEMPLATE_TEST_CASE("windows give the bytes of the exchange", "", double, float, expar::half,
                   expar::bfloat16) {
  for (int ranks = 1; ranks <= 5; ++ranks)
    for (std::uint64_t seed = 0; seed < 25; ++seed) {
      INFO("ranks " << ranks << " seed " << seed);
      REQUIRE(compare<TestType>(seed * 5 + static_cast<std::uint64_t>(ranks), ranks) == "");
    }
}

TEST_CASE("several window batches are alive at once, on any number of threads") {
  for (std::uint64_t seed = 0; seed < 10; ++seed) {
    INFO("seed " << seed);
    REQUIRE(compare<float>(seed + 77, 3, 4) == "");
    REQUIRE(compare<float>(seed + 99, 2, 2, 3) == "");
  }
}

TEST_CASE("ranks that come late at random neither hurt nor are hurt") {
  std::vector<std::string> said(4);
  expar::run_ranks(4, [&](expar::thread_communicator& comm) {
    expar::host_context const ctx;
    auto const me = static_cast<std::size_t>(comm.rank());
    expar_test::random late(me);
    expar::window_parallel moe(comm, {6, 2, 5});
    auto batch = moe.make_batch<float>({moe.worst_case_rows(12)});
    shared_shape s(3, 4);
    s.experts = 6, s.top_k = 2, s.hidden = 5;
    for (std::uint64_t step = 0; step < 100; ++step) {
      auto const pause = [&] {
        if (late.chance(.2))
          std::this_thread::sleep_for(std::chrono::microseconds(late.integer(0, 300)));
      };
      one_batch<float> data(s, step * 4 + me);
      if (step % 3 == 0) moe.prepare(ctx, data.routes(), batch), pause();
      if (step % 5 == 0) moe.prepare(ctx, data.routes(), batch), pause();
      moe.dispatch(ctx, data.x.view(), data.routes(), batch);
      pause();
      std::memcpy(batch.y().data, batch.rows().data,
                  static_cast<std::size_t>(batch.row_count()) * 5 * sizeof(float));
      pause();
      moe.combine(ctx, batch, data.out.view());
      for (index_t i = 0; i < batch.row_count() * 5; ++i) batch.y().data[i] = -1;  // at once
      for (index_t t = 0; t < data.tokens; ++t)
        for (int h = 0; h < 5; ++h) {
          float sum = 0;
          for (int j = 0; j < 2; ++j)
            if (data.id_view()(t, j) >= 0) sum += data.weights.view()(t, j) * data.x.view()(t, h);
          if (std::abs(data.out.get(t, h) - static_cast<double>(sum)) > 1e-5) said[me] = "out";
        }
    }
  });
  REQUIRE(said == std::vector<std::string>(4));
}

TEST_CASE("what a window cannot hold is one sentence on all ranks, and harms nothing") {
  std::vector<std::string> said(3), after(3);
  std::vector<int> right(3);
  expar::run_ranks(3, [&](expar::thread_communicator& comm) {
    expar::host_context const ctx;
    auto const me = static_cast<std::size_t>(comm.rank());
    expar::window_parallel moe(comm, {7, 1, 4});
    auto batch = moe.make_batch<float>({5, false});
    std::vector<std::int32_t> hot{3, 3, 4}, spread{0, 3, 6};  // rank 1 holds experts 3 and 4
    std::vector<float> w(3, 1.f), x{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, out(12);
    auto const m = [](std::vector<float>& v, int columns) {
      return expar::make_view(v.data(), 3, columns);
    };
    std::memset(static_cast<void*>(batch.rows().data), 7, 5 * 4 * sizeof(float));
    said[me] = thrown_by([&] {
      moe.dispatch(ctx, m(x, 4), routes_of_rank{expar::make_view(hot.data(), 3, 1), m(w, 1)},
                   batch);
    });
    after[me] = thrown_by([&] { moe.combine(ctx, batch, m(out, 4)); });
    auto const* bytes = reinterpret_cast<unsigned char const*>(batch.rows().data);
    right[me] = std::all_of(bytes, bytes + 5 * 4 * sizeof(float), [](int b) { return b == 7; });
    moe.dispatch(ctx, m(x, 4), routes_of_rank{expar::make_view(spread.data(), 3, 1), m(w, 1)},
                 batch);
    std::memcpy(batch.y().data, batch.rows().data,
                static_cast<std::size_t>(batch.row_count()) * 4 * sizeof(float));
    moe.combine(ctx, batch, m(out, 4));
    right[me] = right[me] && out == x && batch.window_rows() == 5;
    auto const backward = thrown_by([&] { moe.combine_backward(ctx, batch, m(x, 4), m(w, 1)); });
    right[me] = right[me] &&
                backward ==
                    "expar: combine_backward: the batch was made for the forward pass "
                    "alone (rank 0)" &&
                batch.d_y().data == nullptr;
  });
  REQUIRE(said == std::vector<std::string>(3,
                                           "expar: dispatch: rank 1 would get 9 rows, but the "
                                           "windows of the batch have 5"));
  REQUIRE(after ==
          std::vector<std::string>(
              3,
              "expar: combine: the batch has no routes; dispatch or prepare it first (rank "
              "0)"));
  REQUIRE(right == std::vector<int>(3, 1));
}

TEST_CASE("a wrong argument on one rank of windows is the same sentence on all") {
  struct mistake {
    char const* sentence;
    int kind;
  };
  auto const m = GENERATE(
      mistake{"expar: plan: ids(1, 0) is 7; an expert id is -1 (no expert) or 0 to 6 (rank 1)", 0},
      mistake{"expar: dispatch: ids has extent 3 in dimension 1, but top_k is 2 (rank 1)", 1},
      mistake{"expar: dispatch: weights has extent 1 in dimension 0, but the number of tokens is 2 "
              "(rank 1)",
              2},
      mistake{"expar: dispatch: tokens has extent 5 in dimension 1, but hidden is 4 (rank 1)", 3},
      mistake{"expar: dispatch: rows overlaps tokens in memory; the operation cannot work in place "
              "(rank 1)",
              4},
      mistake{"expar: combine: out has extent 1 in dimension 0, but the number of tokens in the "
              "batch is 2 (rank 1)",
              5},
      mistake{"expar: combine: out overlaps y in memory; the operation cannot work in place "
              "(rank 1)",
              6},
      mistake{"expar: combine_backward: d_weights has extent 1 in dimension 1, but top_k is 2 "
              "(rank 1)",
              7},
      mistake{"expar: dispatch_backward: d_tokens has 8 elements but its data is null (rank 1)", 8},
      mistake{"expar: dispatch: tokens has extent 1 in dimension 0, but the number of tokens in "
              "the batch is 2 (rank 1)",
              9});
  std::vector<std::string> said(3), after(3);
  expar::run_ranks(3, [&](expar::thread_communicator& comm) {
    expar::host_context const ctx;
    auto const me = static_cast<std::size_t>(comm.rank());
    int const kind = comm.rank() == 1 ? m.kind : -1;
    expar::window_parallel moe(comm, {7, 2, 4});
    auto batch = moe.make_batch<float>({moe.worst_case_rows(2)});
    std::vector<std::int32_t> ids{0, 3, 5, 6, 0, 0}, good = ids;
    std::vector<float> w(4, 1.f), x(10, 1.f), store(100), d_w(4);
    auto const view = [](std::vector<float>& v, int rows, int columns) {
      return expar::make_view(v.data(), rows, columns);
    };
    if (kind == 0) ids[2] = 7;
    auto tokens = view(x, kind == 9 ? 1 : 2, kind == 3 ? 5 : 4);
    if (kind == 4) tokens.data = batch.rows().data;
    said[me] = thrown_by([&] {
      moe.dispatch(ctx, tokens,
                   routes_of_rank{expar::make_view(ids.data(), 2, kind == 1 ? 3 : 2),
                                  view(w, kind == 2 ? 1 : 2, 2)},
                   batch);
      auto out = view(store, kind == 5 ? 1 : 2, 4);
      if (kind == 6) out.data = batch.y().data;
      moe.combine(ctx, batch, out);
      moe.combine_backward(ctx, batch, view(x, 2, 4), view(d_w, 2, kind == 7 ? 1 : 2));
      auto d_tokens = view(store, 2, 4);
      if (kind == 8) d_tokens.data = nullptr;
      moe.dispatch_backward(ctx, batch, d_tokens);
    });
    after[me] = thrown_by([&] {
      moe.dispatch(ctx, view(x, 2, 4),
                   routes_of_rank{expar::make_view(good.data(), 2, 2), view(w, 2, 2)}, batch);
      moe.combine(ctx, batch, view(store, 2, 4));
    });
  });
  REQUIRE(said == std::vector<std::string>(3, m.sentence));
  REQUIRE(after == std::vector<std::string>(3, "nothing was thrown"));
}

TEST_CASE("ranks that disagree about a window all throw the same") {
  std::vector<std::string> said(3), shape(3);
  expar::run_ranks(3, [&](expar::thread_communicator& comm) {
    auto const me = static_cast<std::size_t>(comm.rank());
    expar::window_parallel moe(comm, {7, 2, 4});
    said[me] = thrown_by([&] { moe.make_batch<float>({comm.rank() == 2 ? 8 : 9}); });
    shape[me] = thrown_by([&] {
      expar::window_parallel odd(comm, {7, comm.rank() == 2 ? 1 : 2, 4});
    });
  });
  REQUIRE(said == std::vector<std::string>(3,
                                           "expar: make_batch: rows is 9 on rank 0 but 8 on "
                                           "rank 2; all ranks must pass the same"));
  REQUIRE(shape == std::vector<std::string>(3,
                                            "expar: window_parallel: top_k is 2 on rank 0 but 1 "
                                            "on rank 2; all ranks must pass the same"));
}

TEST_CASE("a batch in a window allocates nothing once it has grown") {
  struct counting : std::pmr::memory_resource {
    int allocations = 0;
    void* do_allocate(std::size_t bytes, std::size_t alignment) override {
      ++allocations;
      return std::pmr::new_delete_resource()->allocate(bytes, alignment);
    }
    void do_deallocate(void* p, std::size_t bytes, std::size_t alignment) override {
      std::pmr::new_delete_resource()->deallocate(p, bytes, alignment);
    }
    bool do_is_equal(memory_resource const& other) const noexcept override {
      return this == &other;
    }
  };
  std::vector<int> grown(2);
  expar::run_ranks(2, [&](expar::thread_communicator& comm) {
    counting memory;
    expar::host_context const ctx;
    expar::window_parallel moe(comm, {6, 2, 16}, expar::ragged{}, &memory);
    auto batch = moe.make_batch<float>({moe.worst_case_rows(3)});
    std::vector<std::int32_t> ids{0, 1, 2, 3, 4, 5};
    std::vector<float> w(6, .5f), x(48, 1.f), out(48), d_w(6);
    auto const rows = [](std::vector<float>& v) { return expar::make_view(v.data(), 3, 16); };
    int before = 0;
    for (int step = 0; step < 3; ++step) {
      if (step == 1) before = memory.allocations;
      moe.dispatch(
          ctx, rows(x),
          routes_of_rank{expar::make_view(ids.data(), 3, 2), expar::make_view(w.data(), 3, 2)},
          batch);
      moe.combine(ctx, batch, rows(out));
      moe.combine_backward(ctx, batch, rows(x), expar::make_view(d_w.data(), 3, 2));
      moe.dispatch_backward(ctx, batch, rows(out));
    }
    grown[static_cast<std::size_t>(comm.rank())] = memory.allocations - before;
  });
  REQUIRE(grown == std::vector<int>{0, 0});
}

TEST_CASE("a batch of another object on one rank is the same sentence on all") {
  std::vector<std::string> said(3), after(3);
  expar::run_ranks(3, [&](expar::thread_communicator& comm) {
    expar::host_context const ctx;
    auto const me = static_cast<std::size_t>(comm.rank());
    expar::window_parallel moe(comm, {7, 1, 2}), other(comm, {7, 1, 2});
    auto batch = moe.make_batch<float>({5}), foreign = other.make_batch<float>({5});
    std::vector<std::int32_t> ids{static_cast<std::int32_t>(me)};
    std::vector<float> w(1, 1.f), x{1, 2}, out(2);
    routes_of_rank const routes{expar::make_view(ids.data(), 1, 1),
                                expar::make_view(w.data(), 1, 1)};
    auto const go = [&](auto& b) {
      return thrown_by([&] {
        moe.dispatch(ctx, expar::make_view(x.data(), 1, 2), routes, b);
        std::memcpy(b.y().data, b.rows().data,
                    static_cast<std::size_t>(b.row_count()) * 2 * sizeof(float));
        moe.combine(ctx, b, expar::make_view(out.data(), 1, 2));
      });
    };
    said[me] = go(me == 1 ? foreign : batch);
    after[me] = go(batch);
    if (out != x) after[me] += " and a token did not come home";
  });
  REQUIRE(said == std::vector<std::string>(
                      3, "expar: dispatch: the batch was made by another object (rank 1)"));
  REQUIRE(after == std::vector<std::string>(3, "nothing was thrown"));
}

TEST_CASE("a batch in a window that was only prepared has no rows yet, on all ranks alike") {
  std::vector<std::string> wrong(2);
  expar::run_ranks(2, [&](expar::thread_communicator& comm) {
    expar::host_context const ctx;
    std::string& mine = wrong[static_cast<std::size_t>(comm.rank())];
    expar::window_parallel moe(comm, {2, 1, 2});
    auto batch = moe.make_batch<float>({2});
    std::vector<std::int32_t> ids{1};
    std::vector<float> w(1, 1.f), x{1, 2}, out(2);
    auto const rows = expar::make_view(x.data(), 1, 2), to = expar::make_view(out.data(), 1, 2);
    moe.prepare(
        ctx, routes_of_rank{expar::make_view(ids.data(), 1, 1), expar::make_view(w.data(), 1, 1)},
        batch);
    auto const refused = [&](std::string const& name, auto f) {
      if (std::string const said = thrown_by(f);
          said != "expar: " + name + ": the batch has no rows; dispatch tokens first (rank 0)")
        mine += said + "\n";
    };
    refused("combine", [&] { moe.combine(ctx, batch, to); });
    refused("combine_backward",
            [&] { moe.combine_backward(ctx, batch, rows, expar::make_view(w.data(), 1, 1)); });
    refused("dispatch_backward", [&] { moe.dispatch_backward(ctx, batch, to); });
    moe.dispatch(ctx, rows, batch);
    moe.combine(ctx, batch, to);
  });
  REQUIRE(wrong == std::vector<std::string>(2));
}
