// SPDX-License-Identifier: Apache-2.0
#include <expar/exchange/window.hpp>
#include <expar/expert_parallel.hpp>

#include <expar/comm/self.hpp>
#include <expar/comm/thread.hpp>

#include <expar/router/routes.hpp>

#include <chrono>
#include <cmath>
#include <new>
#include <stdexcept>
#include <thread>

#include "support/catch.hpp"
#include "support/moe.hpp"
#include "support/thrown_by.hpp"

using namespace expar_test;

namespace {

/// A 16-bit type that the library has never seen: 9 bits of integer, 7 of fraction.
struct fixed16 {
  std::int16_t bits;
};

/// Runs f(comm) on every rank, collects what each returns, and gives the first that is not empty.
template <class F>
std::string on_ranks(int ranks, F f) {
  std::vector<std::string> said(static_cast<std::size_t>(ranks));
  expar::run_ranks(ranks, [&](expar::thread_communicator& comm) {
    said[static_cast<std::size_t>(comm.rank())] = f(comm);
  });
  for (auto const& s : said)
    if (!s.empty()) return s;
  return "";
}

}  // namespace

template <>
struct expar::element_traits<fixed16> {
  using accumulator = float;
  static float widen(fixed16 x) { return static_cast<float>(x.bits) / 128; }
  static fixed16 narrow(float x) {
    float const scaled = x * 128;
    return {static_cast<std::int16_t>(scaled > 32767    ? 32767.f
                                      : scaled < -32768 ? -32768.f
                                                        : scaled)};
  }
};

TEMPLATE_TEST_CASE("every route comes home: random shapes against a float64 reference", "", double,
                   float, expar::half, expar::bfloat16, fixed16) {
  for (int ranks = 1; ranks <= 5; ++ranks)
    for (std::uint64_t seed = 0; seed < 40; ++seed) {
      auto const p = make_problem(seed * 7 + static_cast<std::uint64_t>(ranks), ranks);
      INFO("ranks " << ranks << " seed " << seed);
      REQUIRE(on_ranks(ranks, [&](auto& comm) {
                expar::host_context const ctx;
                switch (seed % 3) {
                  case 0:
                    return check_problem<TestType, expar::weights_at_decode>(ctx, comm, p);
                  case 1:
                    return check_problem<TestType, expar::weights_at_encode>(ctx, comm, p);
                  default:
                    return check_problem<TestType, expar::weights_per_row>(ctx, comm, p);
                }
              }) == "");
    }
}

namespace {

/// Real numbers for the whole group, cut into ranks at given places: what a rank gets depends on
/// its tokens alone. A long stream is enough work for several threads to share every step.
struct stream {
  int tokens, experts, top_k, hidden;
  std::vector<std::int32_t> ids;
  std::vector<float> weights, x, d_out;

  explicit stream(std::uint64_t seed, bool is_long = false) {
    expar_test::random rng(seed);
    tokens = static_cast<int>(is_long ? rng.integer(2000, 2500) : rng.integer(0, 60));
    experts = static_cast<int>(rng.integer(8, 13));
    top_k = static_cast<int>(rng.integer(1, 4));
    hidden = static_cast<int>(rng.integer(1, 150));
    for (int i = 0; i < tokens * top_k; ++i) {
      ids.push_back(static_cast<std::int32_t>(rng.integer(-1, experts - 1)));
      weights.push_back(static_cast<float>(rng.normal()));
    }
    for (int i = 0; i < tokens * hidden; ++i) {
      x.push_back(static_cast<float>(rng.normal()));
      d_out.push_back(static_cast<float>(rng.normal()));
    }
  }
};

/// out, d_tokens and d_weights of all tokens, in order, from `ranks` ranks with `threads` threads
/// each.
std::vector<float> run_stream(stream s, int ranks, int threads, bool capacity) {
  auto const size = [](int n, int m) {
    return static_cast<std::size_t>(n) * static_cast<std::size_t>(m);
  };
  std::vector<float> out(size(s.tokens, s.hidden)), d_x(out.size()), d_w(size(s.tokens, s.top_k));
  expar::run_ranks(ranks, [&](expar::thread_communicator& comm) {
    expar::host_context const ctx(threads);
    int const first = s.tokens * comm.rank() / ranks,
              n = s.tokens * (comm.rank() + 1) / ranks - first;
    auto const rows = [&](std::vector<float>& v, int columns) {
      return expar::make_view(v.data() + first * columns, n, columns);
    };
    routes_of_rank const routes{expar::make_view(s.ids.data() + first * s.top_k, n, s.top_k),
                                rows(s.weights, s.top_k)};
    auto const go = [&](auto& moe) {
      auto batch = moe.dispatch(ctx, rows(s.x, s.hidden), routes);
      std::vector<float> y(size(static_cast<int>(batch.row_count()), s.hidden)), d_y(y.size());
      auto const whole = [&](std::vector<float>& v) {
        return expar::make_view(v.data(), batch.row_count(), expar::index_t{s.hidden});
      };
      for (std::size_t i = 0; i < y.size(); ++i) y[i] = std::tanh(batch.rows().data[i]) * 1.37f;
      moe.combine(ctx, batch, whole(y), rows(out, s.hidden));
      moe.combine_backward(ctx, batch, rows(s.d_out, s.hidden), whole(y), whole(d_y),
                           rows(d_w, s.top_k));
      moe.dispatch_backward(ctx, batch, whole(d_y), rows(d_x, s.hidden));
    };
    if (capacity) {  // dropless, so that no rank drops what another split would keep
      expar::expert_parallel moe(comm, {s.experts, s.top_k, s.hidden}, expar::fixed_capacity{0});
      go(moe);
    } else {
      expar::expert_parallel moe(comm, {s.experts, s.top_k, s.hidden});
      go(moe);
    }
  });
  out.insert(out.end(), d_x.begin(), d_x.end());
  out.insert(out.end(), d_w.begin(), d_w.end());
  return out;
}

}  // namespace

TEST_CASE("the same bits for any number of ranks and threads") {
  for (std::uint64_t seed = 0; seed < 25; ++seed) {
    stream const s(seed);
    INFO("seed " << seed);
    auto const alone = run_stream(s, 1, 1, false);
    for (int ranks : {1, 2, 3, 4, 8}) {
      REQUIRE(run_stream(s, ranks, 1, false) == alone);
      REQUIRE(run_stream(s, ranks, 1, true) == alone);
    }
    REQUIRE(run_stream(s, 2, 3, false) == alone);
    REQUIRE(run_stream(s, 1, 4, true) == alone);
  }
  for (std::uint64_t seed = 100; seed < 103; ++seed) {
    stream const s(seed, true);
    INFO("seed " << seed);
    auto const alone = run_stream(s, 1, 1, false);
    REQUIRE(run_stream(s, 1, 4, false) == alone);
    REQUIRE(run_stream(s, 1, 3, true) == alone);
    REQUIRE(run_stream(s, 2, 3, false) == alone);
    REQUIRE(run_stream(s, 3, 2, true) == alone);
  }
}

TEST_CASE("dispatch and combine have their adjoints: real numbers in double") {
  for (std::uint64_t seed = 0; seed < 30; ++seed) {
    int const ranks = static_cast<int>(seed % 4) + 1;
    auto const p = make_problem(seed + 900, ranks);
    std::vector<double> left(static_cast<std::size_t>(ranks)), right(left), left_home(left),
        right_home(left);
    expar::run_ranks(ranks, [&](expar::thread_communicator& comm) {
      expar::host_context const ctx;
      auto const me = static_cast<std::size_t>(comm.rank());
      expar_test::random rng(seed * 100 + me);
      with_moe<double, expar::weights_at_decode>(
          comm, p, [&](auto& moe, auto layout) -> std::string {
            moe_run<double, expar::thread_communicator, decltype(layout), expar::weights_at_decode>
                run(p, comm.rank());
            expar::expert_batch<double, float> batch;
            moe.prepare(ctx, run.routes(), batch);
            auto const tokens = static_cast<expar::index_t>(p.tokens_of(comm.rank()).size());
            grid<double> x(tokens, p.hidden), d_x(tokens, p.hidden), out(tokens, p.hidden),
                d_w(tokens, p.top_k);
            grid<double> y(batch.row_count(), p.hidden), d_y(batch.row_count(), p.hidden);
            for (int t = 0; t < tokens; ++t)
              for (int h = 0; h < p.hidden; ++h) x.set(t, h, rng.normal());
            for (expar::index_t r = 0; r < batch.row_count(); ++r)
              for (int h = 0; h < p.hidden; ++h) y.set(r, h, rng.normal());
            moe.dispatch(ctx, x.view(), batch);
            moe.dispatch_backward(ctx, batch, y.view(), d_x.view());
            moe.combine(ctx, batch, y.view(), out.view());
            moe.combine_backward(ctx, batch, x.view(), y.view(), d_y.view(), d_w.view());
            for (expar::index_t r = 0; r < batch.row_count(); ++r)
              for (int h = 0; h < p.hidden; ++h) {
                left[me] += batch.rows()(r, h) * y.get(r, h);
                right_home[me] += d_y.get(r, h) * y.get(r, h);
              }
            for (int t = 0; t < tokens; ++t)
              for (int h = 0; h < p.hidden; ++h) {
                right[me] += x.get(t, h) * d_x.get(t, h);
                left_home[me] += out.get(t, h) * x.get(t, h);
              }
            return "";
          });
    });
    double sum[4] = {};
    for (std::size_t r = 0; r < left.size(); ++r)
      sum[0] += left[r], sum[1] += right[r], sum[2] += left_home[r], sum[3] += right_home[r];
    INFO("seed " << seed);
    REQUIRE(std::abs(sum[0] - sum[1]) <= 1e-11 * (1 + std::abs(sum[0])));
    REQUIRE(std::abs(sum[2] - sum[3]) <= 1e-11 * (1 + std::abs(sum[2])));
  }
}

TEST_CASE("gradients that come home are added where the caller says so, by messages and windows") {
  constexpr int tokens = 5, k = 2, experts = 4, columns = 3;
  expar::run_ranks(2, [&](auto& comm) {
    expar::host_context const ctx;
    std::vector<std::int64_t> ids;
    std::vector<double> weights, x, d_out;
    for (int i = 0; i < tokens * k; ++i) {
      ids.push_back((i * 7 + comm.rank()) % (experts + 1) - 1);
      weights.push_back(1. + i % 3);
    }
    for (int i = 0; i < tokens * columns; ++i) x.push_back(i % 5), d_out.push_back(i % 4 - 1);
    struct {
      expar::tensor_view<std::int64_t, 2> ids;
      expar::tensor_view<double, 2> weights;
    } const routes{expar::make_view(ids.data(), tokens, k),
                   expar::make_view(weights.data(), tokens, k)};
    auto const rows_of_tokens = [&](std::vector<double>& v) {
      return expar::make_view(v.data(), tokens, columns);
    };
    auto const of_routes = [&](std::vector<double>& v) {
      return expar::make_view(v.data(), tokens, k);
    };
    std::vector<double> dx(x.size()), dx_sum(x.size(), 10), dw(ids.size()), dw_sum(ids.size(), 100);
    auto const check = [&] {
      for (std::size_t i = 0; i < dx.size(); ++i) CHECK(dx_sum[i] == dx[i] + 10);
      for (std::size_t i = 0; i < dw.size(); ++i) CHECK(dw_sum[i] == dw[i] + 100);
    };
    expar::expert_shape const shape{experts, k, columns};
    {
      expar::expert_parallel moe(comm, shape);
      auto batch = moe.dispatch(ctx, rows_of_tokens(x), routes);
      std::vector<double> d_y(static_cast<std::size_t>(batch.row_count() * columns));
      auto const d_rows = expar::make_view(d_y.data(), batch.row_count(), columns);
      moe.combine_backward(ctx, batch, rows_of_tokens(d_out), batch.rows(), d_rows, of_routes(dw));
      moe.combine_backward(ctx, batch, rows_of_tokens(d_out), batch.rows(), d_rows,
                           expar::add_to(of_routes(dw_sum)));
      moe.dispatch_backward(ctx, batch, d_rows, rows_of_tokens(dx));
      moe.dispatch_backward(ctx, batch, d_rows, expar::add_to(rows_of_tokens(dx_sum)));
      check();
    }
    {
      std::fill(dx_sum.begin(), dx_sum.end(), 10);
      std::fill(dw_sum.begin(), dw_sum.end(), 100);
      expar::window_parallel moe(comm, shape);
      auto batch = moe.template make_batch<double, double>({.rows = 2 * tokens * k});
      moe.dispatch(ctx, rows_of_tokens(x), routes, batch);
      std::copy_n(batch.rows().data, batch.row_count() * columns, batch.y().data);
      moe.combine_backward(ctx, batch, rows_of_tokens(d_out), of_routes(dw));
      moe.combine_backward(ctx, batch, rows_of_tokens(d_out), expar::add_to(of_routes(dw_sum)));
      std::copy_n(batch.d_y().data, batch.row_count() * columns, batch.d_rows().data);
      moe.dispatch_backward(ctx, batch, rows_of_tokens(dx));
      moe.dispatch_backward(ctx, batch, expar::add_to(rows_of_tokens(dx_sum)));
      check();
    }
  });
}

TEST_CASE("several batches are alive at once, and go backward in any order") {
  for (std::uint64_t seed = 0; seed < 12; ++seed) {
    REQUIRE(on_ranks(3, [&](auto& comm) {
              expar::host_context const ctx;
              auto const shape = make_problem(seed, 3);
              return with_moe<float, expar::weights_at_decode>(
                  comm, shape, [&](auto& moe, auto layout) {
                    using run_type = moe_run<float, expar::thread_communicator, decltype(layout),
                                             expar::weights_at_decode>;
                    std::vector<problem> problems;
                    for (std::uint64_t i = 0; problems.size() < 5; ++i) {
                      auto p = make_problem(5000 + seed * 100 + i, 3);
                      p.experts = shape.experts, p.capacity = shape.capacity,
                      p.alignment = shape.alignment;
                      p.top_k = shape.top_k, p.hidden = shape.hidden;
                      expar_test::random rng(i);
                      for (auto& tokens : p.tokens)
                        for (auto& t : tokens) {
                          t.ids.resize(static_cast<std::size_t>(p.top_k));
                          t.weights.assign(static_cast<std::size_t>(p.top_k), 0.5);
                          for (auto& id : t.ids)
                            id = static_cast<std::int32_t>(rng.integer(-1, p.experts - 1));
                          t.x.assign(static_cast<std::size_t>(p.hidden),
                                     static_cast<double>(rng.integer(-2, 2)));
                          t.d_out.assign(static_cast<std::size_t>(p.hidden), 1);
                        }
                      problems.push_back(p);
                    }
                    std::vector<run_type> runs;
                    for (auto const& p : problems) runs.emplace_back(p, comm.rank());
                    std::string wrong;
                    auto const note = [&](std::string const& s) {
                      if (wrong.empty()) wrong = s;
                    };
                    for (auto& run : runs) note(run.forward(ctx, moe));
                    for (std::size_t i : {3u, 0u, 4u, 1u, 2u}) note(runs[i].backward(ctx, moe));
                    note(runs[2].forward(ctx, moe));
                    note(runs[2].backward(ctx, moe));
                    note(runs[2].backward(ctx, moe));
                    return wrong;
                  });
            }) == "");
  }
}

TEST_CASE("200 exchanges back to back, with ranks that come late at random") {
  REQUIRE(on_ranks(4, [&](auto& comm) {
            expar::host_context const ctx;
            expar_test::random late(static_cast<std::uint64_t>(comm.rank()));
            for (std::uint64_t seed = 0; seed < 200; ++seed) {
              if (late.chance(0.2))
                std::this_thread::sleep_for(std::chrono::microseconds(late.integer(0, 400)));
              auto const wrong = check_problem<float, expar::weights_at_decode>(
                  ctx, comm, make_problem(seed + 40, 4));
              if (!wrong.empty()) return wrong;
            }
            return std::string();
          }) == "");
}

namespace {

/// Counts what it hands out.
class counting_resource final : public std::pmr::memory_resource {
 public:
  int allocations = 0;

 private:
  void* do_allocate(std::size_t bytes, std::size_t alignment) override {
    ++allocations;
    return std::pmr::new_delete_resource()->allocate(bytes, alignment);
  }
  void do_deallocate(void* p, std::size_t bytes, std::size_t alignment) override {
    std::pmr::new_delete_resource()->deallocate(p, bytes, alignment);
  }
  bool do_is_equal(memory_resource const& other) const noexcept override { return this == &other; }
};

/// Tier 2 and nothing else: what a caller has to bring.
class bare_communicator {
 public:
  explicit bare_communicator(expar::thread_communicator& comm) : comm_(comm) {}
  int rank() const noexcept { return comm_.rank(); }
  int size() const noexcept { return comm_.size(); }
  void all_to_all_v(expar::host_context const& on, void const* in, expar::byte_counts counts,
                    expar::byte_counts from, void* out, expar::byte_counts out_counts,
                    expar::byte_counts to) const {
    comm_.all_to_all_v(on, in, counts, from, out, out_counts, to);
  }

 private:
  expar::thread_communicator& comm_;
};

/// Tier 1 and nothing else.
class fixed_communicator {
 public:
  explicit fixed_communicator(expar::thread_communicator& comm) : comm_(comm) {}
  int rank() const noexcept { return comm_.rank(); }
  int size() const noexcept { return comm_.size(); }
  void all_to_all(expar::host_context const& on, void const* in, void* out, std::size_t n) const {
    comm_.all_to_all(on, in, out, n);
  }
  void all_gather(expar::host_context const& on, void const* in, void* out, std::size_t n) const {
    comm_.all_gather(on, in, out, n);
  }
  void barrier(expar::host_context const& on) const { comm_.barrier(on); }

 private:
  expar::thread_communicator& comm_;
};
static_assert(!expar::variable_communicator<fixed_communicator>);

}  // namespace

TEST_CASE("a communicator of one tier alone is enough for the layout that asks for it") {
  for (std::uint64_t seed = 0; seed < 40; ++seed) {
    auto p = make_problem(seed + 300, 3);
    REQUIRE(on_ranks(3, [&](auto& comm) {
              expar::host_context const ctx;
              bare_communicator bare(comm);
              return check_problem<float, expar::weights_per_row>(ctx, bare, p);
            }) == "");
    if (!p.capacity) p.capacity = expar::fixed_capacity{1.0};
    REQUIRE(
        on_ranks(3, [&](auto& comm) {
          expar::host_context const ctx;
          fixed_communicator fixed(comm);
          expar::expert_parallel moe(fixed, {p.experts, p.top_k, p.hidden}, *p.capacity);
          moe_run<float, fixed_communicator, expar::fixed_capacity, expar::weights_at_decode> run(
              p, comm.rank());
          auto const wrong = run.forward(ctx, moe);
          return wrong.empty() ? run.backward(ctx, moe) : wrong;
        }) == "");
  }
}

TEST_CASE("a repeated shape allocates nothing") {
  std::vector<int> grown(4);
  auto const body = [&](auto& comm, auto layout, std::size_t at) {
    counting_resource memory;
    expar::host_context const ctx(2, &memory);
    expar::expert_parallel moe(comm, {6, 2, 16}, layout, expar::weights_at_decode{}, &memory);
    expar::expert_batch<float> batch(&memory);
    std::vector<std::int32_t> ids{0, 1, 2, 3, 4, 5};
    std::vector<float> w(6, 0.5f), x(48, 1.f), out(48), d_w(6);
    routes_of_rank const routes{expar::make_view(ids.data(), 3, 2),
                                expar::make_view(w.data(), 3, 2)};
    auto const rows = [](std::vector<float>& v) { return expar::make_view(v.data(), 3, 16); };
    int before = 0;
    for (int step = 0; step < 4; ++step) {
      if (step == 2) before = memory.allocations;
      moe.dispatch(ctx, rows(x), routes, batch);
      std::vector<float> d_y(static_cast<std::size_t>(batch.row_count()) * 16);
      auto const d = expar::make_view(d_y.data(), batch.row_count(), expar::index_t{16});
      moe.combine(ctx, batch, batch.rows(), rows(out));
      moe.combine_backward(ctx, batch, rows(x), batch.rows(), d,
                           expar::make_view(d_w.data(), 3, 2));
      moe.dispatch_backward(ctx, batch, d, rows(out));
    }
    grown[at + static_cast<std::size_t>(comm.rank())] = memory.allocations - before;
  };
  expar::run_ranks(2, [&](expar::thread_communicator& comm) {
    bare_communicator bare(comm);
    body(bare, expar::ragged{}, 0);
    body(bare, expar::fixed_capacity{}, 2);
  });
  REQUIRE(grown == std::vector<int>{0, 0, 0, 0});
}

TEST_CASE("the output may be of another element type, and is rounded once") {
  expar::self_communicator comm;
  expar::host_context const ctx;
  expar::expert_parallel moe(comm, {2, 2, 1});
  std::vector<std::int32_t> ids{0, 1};
  std::vector<float> w{1.f, 1.f};
  std::vector<expar::bfloat16> x{expar::narrow<expar::bfloat16>(1.f)};
  routes_of_rank const routes{expar::make_view(ids.data(), 1, 2), expar::make_view(w.data(), 1, 2)};
  auto batch = moe.dispatch(ctx, expar::make_view(x.data(), 1, 1), routes);
  batch.rows()(1, 0) = expar::narrow<expar::bfloat16>(0x1p-9f);
  std::vector<float> wide(1);
  std::vector<expar::bfloat16> narrow(1);
  moe.combine(ctx, batch, batch.rows(), expar::make_view(wide.data(), 1, 1));
  moe.combine(ctx, batch, batch.rows(), expar::make_view(narrow.data(), 1, 1));
  REQUIRE(wide[0] == 1.f + 0x1p-9f);
  REQUIRE(expar::widen(narrow[0]) == 1.f);
}

TEST_CASE("a wrong argument on one rank is the same sentence on all, and the object stays usable") {
  constexpr int ranks = 3;
  struct mistake {
    char const* sentence;
    int kind;
  };
  auto const m = GENERATE(
      mistake{"expar: plan: ids(1, 0) is 7; an expert id is -1 (no expert) or 0 to 6 (rank 1)", 0},
      mistake{"expar: plan: ids(0, 1) is -2; an expert id is -1 (no expert) or 0 to 6 (rank 1)", 1},
      mistake{"expar: dispatch: ids has extent 3 in dimension 1, but top_k is 2 (rank 1)", 2},
      mistake{"expar: dispatch: weights has extent 1 in dimension 0, but the number of tokens is 2 "
              "(rank 1)",
              3},
      mistake{"expar: dispatch: tokens has extent 5 in dimension 1, but hidden is 4 (rank 1)", 4},
      mistake{"expar: dispatch: tokens has 8 elements but its data is null (rank 1)", 5},
      mistake{
          "expar: dispatch: tokens has stride 2 in its last dimension; it must be contiguous there "
          "(stride 1) (rank 1)",
          6},
      mistake{
          "expar: combine: y has extent 9 in dimension 0, but the number of rows in the batch is 3 "
          "(rank 1)",
          7},
      mistake{"expar: combine: out has extent 1 in dimension 0, but the number of tokens in the "
              "batch is "
              "2 (rank 1)",
              8},
      mistake{
          "expar: combine: out overlaps y in memory; the operation cannot work in place (rank 1)",
          9},
      mistake{
          "expar: combine_backward: d_weights has extent 1 in dimension 1, but top_k is 2 (rank 1)",
          10},
      mistake{
          "expar: combine_backward: d_y overlaps y in memory; the operation cannot work in place "
          "(rank 1)",
          11},
      mistake{
          "expar: dispatch_backward: d_rows has extent 3 in dimension 1, but hidden is 4 (rank 1)",
          12},
      mistake{
          "expar: combine: out has rows of 4 elements only 2 elements apart; rows that are written "
          "must not overlap (rank 1)",
          13},
      mistake{
          "expar: dispatch: tokens has extent -1 in dimension 0; an extent is at least 0 (rank 1)",
          14});
  std::vector<std::string> said(ranks), after(ranks);
  expar::run_ranks(ranks, [&](expar::thread_communicator& comm) {
    expar::host_context const ctx;
    auto const me = static_cast<std::size_t>(comm.rank());
    expar::expert_parallel moe(comm, {7, 2, 4});
    std::vector<std::int32_t> ids(6), good{0, 3, 5, 6};
    ids.assign(good.begin(), good.end());
    ids.resize(6);
    std::vector<float> w(4, 1.f), store(400, 1.f), other(400), d_w(4);
    auto const view = [](std::vector<float>& v, int rows, int columns) {
      return expar::make_view(v.data(), rows, columns);
    };
    routes_of_rank routes{expar::make_view(ids.data(), 2, 2), view(w, 2, 2)};
    auto x = view(store, 2, 4);
    bool const culprit = comm.rank() == 1;
    int const kind = culprit ? m.kind : -1;
    if (kind == 0) ids[2] = 7;
    if (kind == 1) ids[1] = -2;
    if (kind == 2) routes.ids = expar::make_view(ids.data(), 2, 3);
    if (kind == 3) routes.weights = view(w, 1, 2);
    if (kind == 4) x = view(store, 2, 5);
    if (kind == 5) x.data = nullptr;
    if (kind == 6) x.strides[1] = 2;
    if (kind == 14) x.extents[0] = -1;
    expar::expert_batch<float> batch;
    said[me] = thrown_by([&] {
      moe.dispatch(ctx, x, routes, batch);
      auto const rows = static_cast<int>(batch.row_count());
      auto y = view(store, rows, 4), out = view(other, 2, 4), d_y = view(other, rows, 4);
      auto d_weights = view(d_w, 2, 2);
      if (kind == 7) y = view(store, 9, 4);
      if (kind == 8) out = view(other, 1, 4);
      if (kind == 9) out.data = store.data();
      if (kind == 13) out.strides[0] = 2;
      moe.combine(ctx, batch, y, out);
      if (kind == 10) d_weights = view(d_w, 2, 1);
      if (kind == 11) d_y.data = store.data() + 4;
      std::vector<float> d_out(8);
      moe.combine_backward(ctx, batch, view(d_out, 2, 4), y, d_y, d_weights);
      auto d_rows = view(store, rows, 4);
      if (kind == 12) d_rows = view(store, rows, 3);
      moe.dispatch_backward(ctx, batch, d_rows, view(other, 2, 4));
    });
    after[me] = thrown_by([&] {
      routes_of_rank const right{expar::make_view(good.data(), 2, 2), view(w, 2, 2)};
      moe.dispatch(ctx, view(store, 2, 4), right, batch);
      moe.combine(ctx, batch, batch.rows(), view(other, 2, 4));
    });
  });
  for (int r = 0; r < ranks; ++r) {
    CHECK(said[static_cast<std::size_t>(r)] == m.sentence);
    CHECK(after[static_cast<std::size_t>(r)] == "nothing was thrown");
  }
}

TEST_CASE("ranks that disagree all throw the same error") {
  struct disagreement {
    char const* sentence;
    expar::expert_shape odd;
  };
  auto const d = GENERATE(
      disagreement{
          "expar: expert_parallel: experts is 8 on rank 0 but 9 on rank 2; all ranks must pass "
          "the same",
          {9, 2, 16}},
      disagreement{
          "expar: expert_parallel: top_k is 2 on rank 0 but 3 on rank 2; all ranks must pass the "
          "same",
          {8, 3, 16}},
      disagreement{
          "expar: expert_parallel: hidden is 16 on rank 0 but 32 on rank 2; all ranks must pass "
          "the same",
          {8, 2, 32}});
  std::vector<std::string> said(4);
  expar::run_ranks(4, [&](expar::thread_communicator& comm) {
    said[static_cast<std::size_t>(comm.rank())] = thrown_by([&] {
      expar::expert_parallel moe(comm, comm.rank() == 2 ? d.odd : expar::expert_shape{8, 2, 16});
    });
  });
  for (auto const& s : said) CHECK(s == d.sentence);
}

TEST_CASE("ranks whose capacity or element size differ all throw the same error") {
  std::vector<std::string> said(3), sizes(3), rows(3);
  expar::run_ranks(3, [&](expar::thread_communicator& comm) {
    auto const me = static_cast<std::size_t>(comm.rank());
    rows[me] = thrown_by([&] {
      expar::expert_parallel moe(comm, {8, 2, 4},
                                 expar::fixed_capacity{.rows = 7 + comm.rank() / 2});
    });
    said[me] = thrown_by([&] {
      expar::expert_parallel moe(comm, {8, 2, 4},
                                 expar::fixed_capacity{comm.rank() == 1 ? 1.5 : 1.25});
    });
    sizes[me] = thrown_by([&] {
      expar::host_context const ctx;
      expar::expert_parallel moe(comm, {8, 2, 4});
      routes_of_rank const none{{nullptr, {0, 2}, {2, 1}}, {nullptr, {0, 2}, {2, 1}}};
      if (comm.rank() == 1)
        moe.dispatch(ctx, expar::tensor_view<double, 2>{nullptr, {0, 4}, {4, 1}}, none);
      else
        moe.dispatch(ctx, expar::tensor_view<float, 2>{nullptr, {0, 4}, {4, 1}}, none);
    });
  });
  for (auto const& s : said)
    CHECK(s ==
          "expar: expert_parallel: capacity factor is 1.25 on rank 0 but 1.5 on rank 1; all ranks "
          "must pass the same");
  for (auto const& s : rows)
    CHECK(s ==
          "expar: expert_parallel: capacity rows is 7 on rank 0 but 8 on rank 2; all ranks must "
          "pass the same");
  for (auto const& s : sizes)
    CHECK(s ==
          "expar: dispatch: an element of a row has 4 bytes on rank 0 but 8 on rank 1; all ranks "
          "must use the same element type");
}

TEST_CASE("a batch without routes, or of another object, is refused") {
  expar::self_communicator comm;
  expar::host_context const ctx;
  expar::expert_parallel moe(comm, {4, 1, 2}), other(comm, {5, 1, 2});
  expar::expert_batch<float> batch;
  expar::tensor_view<float, 2> const none{nullptr, {0, 2}, {2, 1}};
  CHECK(thrown_by([&] { moe.combine(ctx, batch, none, none); }) ==
        "expar: combine: the batch has no routes; dispatch or prepare it first");
  moe.dispatch(ctx, none, routes_of_rank{{nullptr, {0, 1}, {1, 1}}, {nullptr, {0, 1}, {1, 1}}},
               batch);
  CHECK(thrown_by([&] { other.combine(ctx, batch, none, none); }) ==
        "expar: combine: the batch was made for 4 experts, top_k 1, rows of 2 and 1 ranks, not for "
        "5, 1, 2 and 1");
  expar::expert_parallel two(comm, {4, 2, 2});
  CHECK(thrown_by([&] { two.combine(ctx, batch, none, none); }) ==
        "expar: combine: the batch was made for 4 experts, top_k 1, rows of 2 and 1 ranks, not for "
        "4, 2, 2 and 1");
  expar::expert_parallel fixed(comm, {4, 1, 2}, expar::fixed_capacity{});
  CHECK(thrown_by([&] { fixed.combine(ctx, batch, none, none); }) ==
        "expar: combine: the batch was made for a ragged layout, not for fixed_capacity");
  auto const moved = std::move(batch);
  CHECK(thrown_by([&] { moe.combine(ctx, batch, none, none); }) ==
        "expar: combine: the batch has no routes; dispatch or prepare it first");
  CHECK(batch.row_count() == 0);
  CHECK(batch.plan().rows() == 0);
  CHECK(thrown_by([&] { moe.combine(ctx, moved, none, none); }) == "nothing was thrown");
}

namespace {

/// Gives nothing from a certain moment on, or at one allocation.
class exhausted_resource final : public std::pmr::memory_resource {
 public:
  bool exhausted = false;
  int left = -1;  // allocations until one fails

 private:
  void* do_allocate(std::size_t bytes, std::size_t alignment) override {
    if (exhausted || left-- == 0) throw std::bad_alloc();
    return std::pmr::new_delete_resource()->allocate(bytes, alignment);
  }
  void do_deallocate(void* p, std::size_t bytes, std::size_t alignment) override {
    std::pmr::new_delete_resource()->deallocate(p, bytes, alignment);
  }
  bool do_is_equal(memory_resource const& other) const noexcept override { return this == &other; }
};

struct closed_pool {
  bool closed = false;
  int concurrency() const { return 2; }
  void run(int tasks, expar::task f) {
    if (closed) throw std::runtime_error("the pool is closed");
    for (int i = 0; i < tasks; ++i) f(i);
  }
};

/// One rank of a group in which the last one gets into trouble.
template <class Comm>
struct troubled_rank {
  static constexpr int tokens = 1500, hidden = 64;
  Comm& comm;
  bool culprit = comm.rank() == comm.size() - 1;
  exhausted_resource memory;
  closed_pool pool;
  expar::host_context ctx{pool, &memory};
  expar::expert_parallel<Comm> moe{
      comm, {8, 2, hidden}, expar::ragged{}, expar::weights_at_decode{}, &memory};
  expar::expert_batch<float> batch{&memory};
  std::vector<std::int32_t> ids = std::vector<std::int32_t>(2 * tokens);
  std::vector<float> w = std::vector<float>(2 * tokens, .5f), d_w = w,
                     x = std::vector<float>(tokens * hidden, 1.f), out = x, y, d_y;

  explicit troubled_rank(Comm& c) : comm(c) {
    for (std::size_t i = 0; i < ids.size(); ++i) ids[i] = static_cast<std::int32_t>(i * 5 % 8);
  }
  auto rows(std::vector<float>& v, int n = tokens, int columns = hidden) {
    return expar::make_view(v.data(), n, columns);
  }
  auto whole(std::vector<float>& v) {
    v.resize(static_cast<std::size_t>(batch.row_count()) * hidden);
    return expar::make_view(v.data(), batch.row_count(), expar::index_t{hidden});
  }
  void dispatch(int n) {
    routes_of_rank const routes{expar::make_view(ids.data(), n, 2), rows(w, n, 2)};
    moe.dispatch(ctx, rows(x, n), routes, batch);
  }
  void forward() {
    moe.combine(ctx, batch, whole(y), rows(out, static_cast<int>(batch.plan().tokens())));
  }
  void backward() {
    int const n = static_cast<int>(batch.plan().tokens());
    moe.combine_backward(ctx, batch, rows(out, n), whole(y), whole(d_y), rows(d_w, n, 2));
    moe.dispatch_backward(ctx, batch, whole(d_y), rows(x, n));
  }
};

}  // namespace

TEST_CASE("no memory, a closed pool, or a wrong batch on one rank: the same sentence on all") {
  struct trouble {
    char const* sentence;
    int kind;
  };
  auto const m = GENERATE(
      trouble{"expar: an exception: std::bad_alloc (rank 2)", 0},
      trouble{"expar: an exception: std::bad_alloc (rank 2)", 1},
      trouble{"expar: an exception: the pool is closed (rank 2)", 2},
      trouble{"expar: an exception: the pool is closed (rank 2)", 3},
      trouble{"expar: an exception: the pool is closed (rank 2)", 4},
      trouble{"expar: combine: the batch has no routes; dispatch or prepare it first (rank 2)", 5},
      trouble{
          "expar: combine_backward: the batch was made for 8 experts, top_k 1, rows of 64 and 3 "
          "ranks, not for 8, 2, 64 and 3 (rank 2)",
          6},
      trouble{"expar: dispatch: rows overlaps tokens in memory; the operation cannot work in place "
              "(rank 2)",
              7},
      trouble{"expar: combine_backward: d_weights overlaps d_out in memory; the operation cannot "
              "work in place (rank 2)",
              8});
  std::vector<std::string> said(3), after(3);
  expar::run_ranks(3, [&](expar::thread_communicator& comm) {
    auto const me = static_cast<std::size_t>(comm.rank());
    troubled_rank r(comm);
    auto const is = [&](int kind) { return r.culprit && m.kind == kind; };
    said[me] = thrown_by([&] {
      r.dispatch(10);
      r.forward();
      r.backward();
      r.memory.exhausted = is(0) || is(1);
      r.pool.closed = is(2);
      if (m.kind == 1) {  // routes fit, rows do not
        for (int i = 0; i < 20; ++i) r.ids[static_cast<std::size_t>(i)] = 7;
        r.dispatch(10);
      }
      r.dispatch(troubled_rank<expar::thread_communicator>::tokens);
      r.pool.closed = is(3);
      if (is(5)) {
        expar::expert_batch<float> other;
        r.moe.combine(r.ctx, other, r.whole(r.y), r.rows(r.out));
      }
      r.forward();
      r.pool.closed = is(4);
      expar::expert_parallel one(comm, {8, 1, 64});
      if (m.kind == 6) {
        expar::expert_batch<float> other;
        routes_of_rank const routes{expar::make_view(r.ids.data(), 1500, 1), r.rows(r.w, 1500, 1)};
        one.prepare(r.ctx, routes, other);
        r.moe.combine_backward(r.ctx, r.culprit ? other : r.batch, r.rows(r.out), r.whole(r.y),
                               r.whole(r.d_y), r.rows(r.d_w, 1500, 2));
      }
      if (m.kind == 7)
        r.moe.dispatch(r.ctx,
                       r.culprit ? expar::make_view(r.batch.rows().data, 1500, 64) : r.rows(r.x),
                       r.batch);
      if (m.kind == 8)
        r.moe.combine_backward(
            r.ctx, r.batch, r.rows(r.out), r.whole(r.y), r.whole(r.d_y),
            r.culprit ? expar::make_view(r.out.data(), 1500, 2) : r.rows(r.d_w, 1500, 2));
      r.backward();
    });
    after[me] = thrown_by([&] {
      r.memory.exhausted = r.pool.closed = false;
      r.dispatch(20);
      r.forward();
      r.backward();
    });
  });
  for (std::size_t rank = 0; rank < 3; ++rank) {
    CHECK(said[rank] == m.sentence);
    CHECK(after[rank] == "nothing was thrown");
  }
}

TEST_CASE("a batch whose prepare failed has no rows, and one that was only prepared has none yet") {
  expar::self_communicator comm;
  expar::host_context const ctx;
  expar::expert_parallel moe(comm, {2, 1, 3}), large(comm, {640, 1, 3});
  expar::expert_batch<float> batch;
  std::vector<std::int32_t> ids{0, 1};
  std::vector<float> w{1, 1}, x(6), y(6);
  routes_of_rank const routes{expar::make_view(ids.data(), 2, 1), expar::make_view(w.data(), 2, 1)};
  moe.prepare(ctx, routes, batch);
  CHECK(batch.row_count() == 2);
  CHECK(batch.rows().extent(0) == 0);
  auto const rows = expar::make_view(x.data(), 2, 3), out = expar::make_view(y.data(), 2, 3);
  auto const d_w = expar::make_view(w.data(), 2, 1);
  std::string const none = ": the batch has no rows; dispatch tokens first";
  CHECK(thrown_by([&] { moe.combine(ctx, batch, rows, out); }) == "expar: combine" + none);
  CHECK(thrown_by([&] { moe.combine_backward(ctx, batch, rows, rows, out, d_w); }) ==
        "expar: combine_backward" + none);
  CHECK(thrown_by([&] { moe.dispatch_backward(ctx, batch, rows, out); }) ==
        "expar: dispatch_backward" + none);
  moe.dispatch(ctx, rows, batch);
  CHECK(thrown_by([&] { moe.combine(ctx, batch, rows, out); }) == "nothing was thrown");
  CHECK(batch.rows().extent(0) == 2);
  ids[0] = 700;
  CHECK(thrown_by([&] { large.prepare(ctx, routes, batch); }) ==
        "expar: plan: ids(0, 0) is 700; an expert id is -1 (no expert) or 0 to 639");
  CHECK(batch.row_count() == 0);
  CHECK(batch.rows().extent(0) == 0);
  CHECK(batch.local_experts() == 0);
}

TEST_CASE("sizes that memory cannot hold are refused") {
  expar::self_communicator comm;
  expar::host_context const ctx;
  expar::index_t const hidden = expar::index_t{1} << 48, tokens = 5000;
  expar::expert_parallel moe(comm, {2, 1, hidden});
  std::vector<std::int32_t> ids(5000, 1);
  std::vector<float> w(5000, 1);
  routes_of_rank const routes{expar::make_view(ids.data(), tokens, expar::index_t{1}),
                              expar::make_view(w.data(), tokens, expar::index_t{1})};
  double one = 0;
  expar::tensor_view<double, 2> const x{&one, {tokens, hidden}, {0, 1}};
  CHECK(thrown_by([&] { moe.dispatch(ctx, x, routes); }) ==
        "expar: dispatch: 5000 rows of 281474976710656 elements are more than memory can hold");
  CHECK(thrown_by([&] {
          expar::expert_parallel larger(comm, {2, 1, hidden + 1});
        }) ==
        "expar: expert_parallel: hidden is 281474976710657; at most 281474976710656 is possible");
}

TEST_CASE("other operations, or other batches, on some ranks: the same sentence on all") {
  std::vector<std::string> said(6), after(2);
  expar::run_ranks(2, [&](expar::thread_communicator& comm) {
    expar::host_context const ctx;
    auto const me = static_cast<std::size_t>(comm.rank());
    expar::expert_parallel moe(comm, {2, 1, 3}, expar::fixed_capacity{});
    std::vector<std::int32_t> ids{0, 1};
    std::vector<float> w{1, 1}, x{1, 2, 3, 4, 5, 6}, out(6);
    routes_of_rank const routes{expar::make_view(ids.data(), 2, 1),
                                expar::make_view(w.data(), 2, 1)};
    auto const tokens = expar::make_view(x.data(), 2, 3);
    auto a = moe.dispatch(ctx, tokens, routes), b = moe.dispatch(ctx, tokens, routes);
    said[me] = thrown_by([&] {
      if (me == 0)
        moe.dispatch(ctx, tokens, a);
      else
        moe.combine(ctx, a, a.rows(), expar::make_view(out.data(), 2, 3));
    });
    said[2 + me] = thrown_by([&] { moe.dispatch(ctx, tokens, me == 0 ? a : b); });
    said[4 + me] = thrown_by([&] {
      if (me == 0)
        moe.prepare(ctx, routes, a);
      else
        moe.dispatch(ctx, tokens, b);
    });
    after[me] = thrown_by([&] {
      moe.dispatch(ctx, tokens, b);
      moe.combine(ctx, b, b.rows(), expar::make_view(out.data(), 2, 3));
    });
    if (out != x) after[me] += " and a token did not come home";
  });
  std::string const end = "; all ranks call the same operations in the same order";
  for (std::size_t r = 0; r < 2; ++r) {
    CHECK(
        said[r] ==
        "expar: rank 0 calls dispatch for its batch 1 while rank 1 calls combine for its batch 1" +
            end);
    CHECK(
        said[2 + r] ==
        "expar: rank 0 calls dispatch for its batch 1 while rank 1 calls dispatch for its batch 2" +
            end);
    CHECK(
        said[4 + r] ==
        "expar: rank 0 calls prepare for its batch 3 while rank 1 calls dispatch for its batch 2" +
            end);
    CHECK(after[r] == "nothing was thrown");
  }
}

TEST_CASE("an object that was moved from says so") {
  expar::self_communicator comm;
  expar::host_context const ctx;
  expar::expert_parallel moe(comm, {2, 1, 3});
  auto const moved = std::move(moe);
  expar::tensor_view<float, 2> const none{nullptr, {0, 3}, {3, 1}};
  CHECK(thrown_by([&] {
          moe.dispatch(ctx, none,
                       routes_of_rank{{nullptr, {0, 1}, {1, 1}}, {nullptr, {0, 1}, {1, 1}}});
        }) == "expar: expert_parallel: the object was moved from");
}

TEST_CASE("whichever allocation fails on one rank, all throw alike, and the next try works") {
  // The n-th allocation of rank 1 fails, from the constructor to the last gradient.
  for (int layout = 0; layout < 2; ++layout)
    for (int n = 0, done = 0; done == 0; ++n) {
      std::vector<std::string> said(3), after(3);
      expar::run_ranks(3, [&](expar::thread_communicator& comm) {
        auto const me = static_cast<std::size_t>(comm.rank());
        exhausted_resource memory;
        if (me == 1) memory.left = n;
        expar::host_context const ctx(1, &memory);
        auto const go = [&] {
          auto const with = [&](auto of) {
            expar::expert_parallel moe(comm, {7, 2, 5}, of, expar::weights_at_decode{}, &memory);
            expar::expert_batch<float> batch(&memory);
            std::vector<std::int32_t> ids{0, 3, 5, 6};
            std::vector<float> w(4, .5f), x(10, 1.f), out(10), d_w(4), d_x(10);
            auto const rows = [](std::vector<float>& v) {
              return expar::make_view(v.data(), 2, 5);
            };
            moe.dispatch(ctx, rows(x),
                         routes_of_rank{expar::make_view(ids.data(), 2, 2),
                                        expar::make_view(w.data(), 2, 2)},
                         batch);
            std::vector<float> y(static_cast<std::size_t>(batch.row_count() * 5), 1.f), d_y(y);
            auto const whole = [&](std::vector<float>& v) {
              return expar::make_view(v.data(), batch.row_count(), expar::index_t{5});
            };
            moe.combine(ctx, batch, whole(y), rows(out));
            moe.combine_backward(ctx, batch, rows(x), whole(y), whole(d_y),
                                 expar::make_view(d_w.data(), 2, 2));
            moe.dispatch_backward(ctx, batch, whole(d_y), rows(d_x));
          };
          if (layout == 0)
            with(expar::ragged{2});
          else
            with(expar::fixed_capacity{1});
        };
        said[me] = thrown_by(go);
        memory.left = -1;
        after[me] = thrown_by(go);
      });
      INFO("allocation " << n << ", layout " << layout);
      REQUIRE(said[1] == said[0]);
      REQUIRE(said[2] == said[0]);
      REQUIRE(after == std::vector<std::string>(3, "nothing was thrown"));
      if (said[0] == "nothing was thrown") done = 1;
      REQUIRE(n < 100);
    }
}

TEST_CASE("ranks that disagree about weights all throw the same error") {
  std::vector<std::string> site(2), type(2), kind(2);
  expar::run_ranks(2, [&](expar::thread_communicator& comm) {
    auto const me = static_cast<std::size_t>(comm.rank());
    expar::host_context const ctx;
    site[me] = thrown_by([&] {
      if (me == 0)
        expar::expert_parallel moe(comm, {4, 1, 4});
      else
        expar::expert_parallel moe(comm, {4, 1, 4}, expar::ragged{}, expar::weights_per_row{});
    });
    kind[me] = thrown_by([&] {
      if (me == 0)
        expar::expert_parallel moe(comm, {4, 1, 4});
      else
        expar::expert_parallel moe(comm, {4, 1, 4}, expar::fixed_capacity{});
    });
    type[me] = thrown_by([&] {
      expar::expert_parallel moe(comm, {4, 1, 4});
      expar::tensor_view<float, 2> const x{nullptr, {0, 4}, {4, 1}};
      expar::routes<float> const f(0, 1);
      expar::routes<double> const d(0, 1);
      if (me == 0)
        moe.dispatch(ctx, x, f);
      else
        moe.dispatch(ctx, x, d);
    });
  });
  for (std::size_t r = 0; r < 2; ++r) {
    CHECK(site[r] ==
          "expar: expert_parallel: where weights are applied (0: decode, 1: encode, 2: per row) is "
          "0 on rank 0 but 2 on rank 1; all ranks must pass the same");
    CHECK(kind[r] ==
          "expar: expert_parallel: the layout (0: ragged, 1: fixed_capacity) is 0 on rank 0 but 1 "
          "on rank 1; all ranks must pass the same");
    CHECK(type[r] ==
          "expar: dispatch: a weight has 4 bytes on rank 0 but 8 on rank 1; all ranks must use the "
          "same type of weights");
  }
}
