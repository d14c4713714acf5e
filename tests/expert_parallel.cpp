// SPDX-License-Identifier: Apache-2.0
#include <expar/expert_parallel.hpp>

#include <expar/comm/self.hpp>
#include <expar/comm/thread.hpp>

#include <expar/router/routes.hpp>

#include <algorithm>
#include <cstring>
#include <new>
#include <stdexcept>

#include "support/catch.hpp"
#include "support/thread_ranks.hpp"

using namespace expar_test;
using expar::index_t;

namespace {

using float_routes = expar::routes_view<float>;

/// What f(comm) says on each rank: of a group that has messages alone, then of one with windows.
template <class F>
std::vector<std::string> said_by(int ranks, F f) {
  std::vector<std::string> said(static_cast<std::size_t>(2 * ranks));
  expar::run_ranks(ranks, [&](expar::thread_communicator& comm) {
    bare_communicator bare(comm);
    said[static_cast<std::size_t>(comm.rank())] = f(bare);
  });
  expar::run_ranks(ranks, [&](expar::thread_communicator& comm) {
    said[static_cast<std::size_t>(ranks + comm.rank())] = f(comm);
  });
  return said;
}
std::vector<std::string> all(int ranks, std::string const& sentence) {
  return std::vector<std::string>(static_cast<std::size_t>(2 * ranks), sentence);
}

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

}  // namespace

TEST_CASE("a repeated shape allocates nothing, by messages and windows") {
  std::vector<int> grown(6);
  auto const body = [&](auto& comm, auto layout, std::size_t at) {
    counting_resource memory;
    expar::host_context const ctx(2, &memory);
    expar::expert_parallel moe(comm, {6, 2, 16}, layout, expar::weights_at_decode{}, &memory);
    expar::expert_batch<float> batch(&memory);
    std::vector<std::int32_t> ids{0, 1, 2, 3, 4, 5};
    std::vector<float> w(6, 0.5f), x(48, 1.f), out(48), d_w(6);
    float_routes const routes{expar::make_view(ids.data(), 3, 2), expar::make_view(w.data(), 3, 2)};
    auto const rows = [](std::vector<float>& v) { return expar::make_view(v.data(), 3, 16); };
    int before = 0;
    for (int step = 0; step < 4; ++step) {
      if (step == 2) before = memory.allocations;
      moe.dispatch(ctx, rows(x), routes, batch);
      std::copy_n(batch.rows().data, batch.rows().size(), batch.y().data);
      moe.combine(ctx, batch, rows(out));
      moe.combine_backward(ctx, batch, rows(x), expar::make_view(d_w.data(), 3, 2));
      std::copy_n(batch.d_y().data, batch.d_y().size(), batch.d_rows().data);
      moe.dispatch_backward(ctx, batch, rows(out));
      for (auto const side :
           {expar::side::rows, expar::side::y, expar::side::d_y, expar::side::d_rows})
        batch.release(side);
    }
    grown[at + static_cast<std::size_t>(comm.rank())] = memory.allocations - before;
  };
  expar::run_ranks(2, [&](expar::thread_communicator& comm) {
    bare_communicator bare(comm);
    body(bare, expar::ragged{}, 0);
    body(bare, expar::fixed_capacity{}, 2);
    body(comm, expar::ragged{}, 4);
  });
  REQUIRE(grown == std::vector<int>(6, 0));
}

TEST_CASE("the output may be of another element type, and is rounded once") {
  expar::self_communicator comm;
  expar::host_context const ctx;
  expar::expert_parallel moe(comm, {2, 2, 1});
  std::vector<std::int32_t> ids{0, 1};
  std::vector<float> w{1.f, 1.f};
  std::vector<expar::bfloat16> x{expar::narrow<expar::bfloat16>(1.f)};
  float_routes const routes{expar::make_view(ids.data(), 1, 2), expar::make_view(w.data(), 1, 2)};
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
  auto const said = said_by(ranks, [&](auto& comm) {
    expar::host_context const ctx;
    expar::expert_parallel moe(comm, {7, 2, 4});
    std::vector<std::int32_t> ids(6), good{0, 3, 5, 6};
    ids.assign(good.begin(), good.end());
    ids.resize(6);
    std::vector<float> w(4, 1.f), store(400, 1.f), other(400), d_w(4);
    auto const view = [](std::vector<float>& v, int rows, int columns) {
      return expar::make_view(v.data(), rows, columns);
    };
    float_routes routes{expar::make_view(ids.data(), 2, 2), view(w, 2, 2)};
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
    auto const sentence = thrown_by([&] {
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
    auto const after = thrown_by([&] {
      float_routes const right{expar::make_view(good.data(), 2, 2), view(w, 2, 2)};
      moe.dispatch(ctx, view(store, 2, 4), right, batch);
      moe.combine(ctx, batch, batch.rows(), view(other, 2, 4));
    });
    return after == "nothing was thrown" ? sentence : "afterwards: " + after;
  });
  REQUIRE(said == all(ranks, m.sentence));
}

TEST_CASE("a wrong argument beside rows of the batch is the same sentence on all") {
  struct mistake {
    char const* sentence;
    int kind;
  };
  auto const m = GENERATE(
      mistake{"expar: dispatch: rows overlaps tokens in memory; the operation cannot work in place "
              "(rank 1)",
              0},
      mistake{"expar: dispatch: tokens has extent 1 in dimension 0, but the number of tokens in "
              "the batch is 2 (rank 1)",
              1},
      mistake{"expar: dispatch: rows has extent 9 in dimension 0, but the number of rows in the "
              "batch is 3 (rank 1)",
              2},
      mistake{"expar: combine: out overlaps y in memory; the operation cannot work in place "
              "(rank 1)",
              3},
      mistake{"expar: combine: out has extent 4 in dimension 1, but hidden_out is 3 (rank 1)", 4},
      mistake{"expar: combine_backward: d_out has extent 4 in dimension 1, but hidden_out is 3 "
              "(rank 1)",
              5},
      mistake{"expar: combine_backward: d_weights has extent 1 in dimension 1, but top_k is 2 "
              "(rank 1)",
              6},
      mistake{"expar: dispatch_backward: d_tokens has 8 elements but its data is null (rank 1)", 7},
      mistake{"expar: dispatch_backward: d_tokens overlaps d_rows in memory; the operation cannot "
              "work in place (rank 1)",
              8});
  auto const said = said_by(3, [&](auto& comm) {
    expar::host_context const ctx;
    int const kind = comm.rank() == 1 ? m.kind : -1;
    expar::expert_parallel moe(comm, {7, 2, 4, 3});
    auto batch = moe.template make_batch<float>();
    std::vector<std::int32_t> ids{0, 3, 5, 6};
    std::vector<float> w(4, 1.f), x(8, 1.f), store(100), d_w(4);
    auto const view = [](std::vector<float>& v, int rows, int columns) {
      return expar::make_view(v.data(), rows, columns);
    };
    float_routes const routes{expar::make_view(ids.data(), 2, 2), view(w, 2, 2)};
    auto const go = [&](int wrong) {
      return thrown_by([&] {
        moe.dispatch(ctx, view(x, 2, 4), routes, batch);
        auto tokens = view(x, wrong == 1 ? 1 : 2, 4);
        if (wrong == 0) tokens.data = batch.rows().data;
        moe.dispatch(ctx, tokens, batch);
        std::vector<float> rows(400);
        moe.dispatch(ctx, view(x, 2, 4), batch,
                     view(rows, wrong == 2 ? 9 : static_cast<int>(batch.row_count()), 4));
        auto out = view(store, 2, wrong == 4 ? 4 : 3);
        if (wrong == 3) out.data = batch.y().data;
        std::fill_n(batch.y().data, batch.y().size(), 1.f);
        moe.combine(ctx, batch, out);
        moe.combine_backward(ctx, batch, view(x, 2, wrong == 5 ? 4 : 3),
                             view(d_w, 2, wrong == 6 ? 1 : 2));
        auto d_tokens = view(store, 2, 4);
        std::fill_n(batch.d_rows().data, batch.d_rows().size(), 1.f);
        if (wrong == 7) d_tokens.data = nullptr;
        if (wrong == 8) d_tokens.data = batch.d_rows().data;
        moe.dispatch_backward(ctx, batch, d_tokens);
      });
    };
    auto const sentence = go(kind), after = go(-1);
    return after == "nothing was thrown" ? sentence : "afterwards: " + after;
  });
  REQUIRE(said == all(3, m.sentence));
}

TEST_CASE("what a budget cannot hold is one sentence on all ranks, and harms nothing") {
  auto const said = said_by(3, [](auto& comm) -> std::string {
    expar::host_context const ctx;
    expar::expert_parallel moe(comm, {7, 1, 4}, expar::row_budget{.rows = 5});
    expar::expert_batch<float> batch;
    std::vector<std::int32_t> hot{3, 3, 4}, spread{0, 3, 6};  // rank 1 holds experts 3 and 4
    std::vector<float> w(3, 1.f), x{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, out(12);
    auto const m = [](std::vector<float>& v, int columns) {
      return expar::make_view(v.data(), 3, columns);
    };
    auto const dispatch = [&](std::vector<std::int32_t>& ids) {
      moe.dispatch(ctx, m(x, 4), float_routes{expar::make_view(ids.data(), 3, 1), m(w, 1)}, batch);
    };
    auto const sentence = thrown_by([&] { dispatch(hot); });
    if (thrown_by([&] {
          moe.combine(ctx, batch, m(out, 4));
        }).find("expar: combine: the batch has no routes; dispatch or prepare it first") != 0)
      return "combine goes on without routes";
    dispatch(spread);
    std::copy_n(batch.rows().data, batch.rows().size(), batch.y().data);
    moe.combine(ctx, batch, m(out, 4));
    if (out != x) return "a token did not come home on rank " + std::to_string(comm.rank());
    return sentence;
  });
  REQUIRE(said == all(3, "expar: dispatch: rank 1 would get 9 rows; the budget has 5"));
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
          "expar: expert_parallel: hidden_out is 16 on rank 0 but 9 on rank 2; all ranks must pass "
          "the same",
          {8, 2, 16, 9}},
      disagreement{
          "expar: expert_parallel: hidden is 16 on rank 0 but 32 on rank 2; all ranks must pass "
          "the same",
          {8, 2, 32}});
  auto const said = said_by(4, [&](auto& comm) {
    return thrown_by([&] {
      expar::expert_parallel moe(comm, comm.rank() == 2 ? d.odd : expar::expert_shape{8, 2, 16});
    });
  });
  REQUIRE(said == all(4, d.sentence));
}

TEST_CASE("ranks whose capacities differ all throw the same error") {
  std::vector<std::string> said(3), rows(3);
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
  });
  for (auto const& s : said)
    CHECK(s ==
          "expar: expert_parallel: capacity factor is 1.25 on rank 0 but 1.5 on rank 1; all ranks "
          "must pass the same");
  for (auto const& s : rows)
    CHECK(s ==
          "expar: expert_parallel: capacity rows is 7 on rank 0 but 8 on rank 2; all ranks must "
          "pass the same");
}

TEST_CASE("ranks whose elements differ in size all throw the same error") {
  auto const sizes = said_by(3, [](auto& comm) {
    return thrown_by([&] {
      expar::host_context const ctx;
      expar::expert_parallel moe(comm, {8, 2, 4});
      float_routes const none{{nullptr, {0, 2}, {2, 1}}, {nullptr, {0, 2}, {2, 1}}};
      if (comm.rank() == 1)
        moe.dispatch(ctx, expar::tensor_view<double, 2>{nullptr, {0, 4}, {4, 1}}, none);
      else
        moe.dispatch(ctx, expar::tensor_view<float, 2>{nullptr, {0, 4}, {4, 1}}, none);
    });
  });
  REQUIRE(sizes == all(3,
                       "expar: dispatch: rows on rank 1 have another element type than on rank 0; "
                       "all ranks must "
                       "use the same"));
}

TEST_CASE("a batch without routes, or of another object, is refused") {
  expar::self_communicator comm;
  expar::host_context const ctx;
  expar::expert_parallel moe(comm, {4, 1, 2}), other(comm, {5, 1, 2});
  expar::expert_batch<float> batch;
  expar::tensor_view<float, 2> const none{nullptr, {0, 2}, {2, 1}};
  CHECK(thrown_by([&] { moe.combine(ctx, batch, none, none); }) ==
        "expar: combine: the batch has no routes; dispatch or prepare it first");
  moe.dispatch(ctx, none, float_routes{{nullptr, {0, 1}, {1, 1}}, {nullptr, {0, 1}, {1, 1}}},
               batch);
  CHECK(thrown_by([&] { other.combine(ctx, batch, none, none); }) ==
        "expar: combine: the batch was made for experts 4, not 5");
  expar::expert_parallel two(comm, {4, 2, 2});
  CHECK(thrown_by([&] { two.combine(ctx, batch, none, none); }) ==
        "expar: combine: the batch was made for top_k 1, not 2");
  expar::expert_parallel fixed(comm, {4, 1, 2}, expar::fixed_capacity{});
  CHECK(thrown_by([&] { fixed.combine(ctx, batch, none, none); }) ==
        "expar: combine: the batch was made for a ragged layout, not for fixed_capacity");
  auto moved = std::move(batch);
  CHECK(thrown_by([&] { moe.combine(ctx, batch, none, none); }) ==
        "expar: combine: the batch has no routes; dispatch or prepare it first");
  CHECK(batch.row_count() == 0);
  CHECK(batch.plan().rows() == 0);
  CHECK(thrown_by([&] { moe.combine(ctx, moved, none, none); }) == "nothing was thrown");
}

namespace {

/// Gives nothing from a certain moment on, or at one allocation.
class memory_that_ends final : public std::pmr::memory_resource {
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
  memory_that_ends memory;
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
    float_routes const routes{expar::make_view(ids.data(), n, 2), rows(w, n, 2)};
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
      trouble{"expar: combine_backward: the batch was made for top_k 1, not 2 (rank 2)", 6},
      trouble{"expar: dispatch: rows overlaps tokens in memory; the operation cannot work in place "
              "(rank 2)",
              7},
      trouble{"expar: combine_backward: d_weights overlaps d_out in memory; the operation cannot "
              "work in place (rank 2)",
              8});
  auto const said = said_by(3, [&](auto& comm) {
    troubled_rank r(comm);
    auto const is = [&](int kind) { return r.culprit && m.kind == kind; };
    auto const sentence = thrown_by([&] {
      r.dispatch(10);
      r.forward();
      r.backward();
      r.memory.exhausted = is(0) || is(1);
      r.pool.closed = is(2);
      if (m.kind == 1) {  // routes fit, rows do not
        for (int i = 0; i < 20; ++i) r.ids[static_cast<std::size_t>(i)] = 7;
        r.dispatch(10);
      }
      r.dispatch(r.tokens);
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
        float_routes const routes{expar::make_view(r.ids.data(), 1500, 1), r.rows(r.w, 1500, 1)};
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
    auto const after = thrown_by([&] {
      r.memory.exhausted = r.pool.closed = false;
      r.dispatch(20);
      r.forward();
      r.backward();
    });
    return after == "nothing was thrown" ? sentence : "afterwards: " + after;
  });
  REQUIRE(said == all(3, m.sentence));
}

TEST_CASE("a batch whose prepare failed has no rows, and one that was only prepared has none yet") {
  expar::self_communicator comm;
  expar::host_context const ctx;
  expar::expert_parallel moe(comm, {2, 1, 3}), large(comm, {640, 1, 3});
  expar::expert_batch<float> batch;
  std::vector<std::int32_t> ids{0, 1};
  std::vector<float> w{1, 1}, x(6), y(6);
  float_routes const routes{expar::make_view(ids.data(), 2, 1), expar::make_view(w.data(), 2, 1)};
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
  CHECK(batch.local_slots() == 0);
}

TEST_CASE("sizes that memory cannot hold are refused") {
  expar::self_communicator comm;
  expar::host_context const ctx;
  expar::index_t const hidden = expar::index_t{1} << 48, tokens = 5000;
  expar::expert_parallel moe(comm, {2, 1, hidden});
  std::vector<std::int32_t> ids(5000, 1);
  std::vector<float> w(5000, 1);
  float_routes const routes{expar::make_view(ids.data(), tokens, expar::index_t{1}),
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
  std::string const end = "; all ranks call the same operations in the same order";
  std::string const wanted[] = {
      "expar: rank 0 calls dispatch for its batch 1 while rank 1 calls combine for its batch 1" +
          end,
      "expar: rank 0 calls dispatch for its batch 1 while rank 1 calls dispatch for its batch 2" +
          end,
      "expar: rank 0 calls prepare while rank 1 calls dispatch for its batch 2" + end};
  auto const said = said_by(2, [&](auto& comm) -> std::string {
    expar::host_context const ctx;
    auto const me = comm.rank();
    std::string told[3];
    expar::expert_parallel moe(comm, {2, 1, 3}, expar::fixed_capacity{});
    std::vector<std::int32_t> ids{0, 1};
    std::vector<float> w{1, 1}, x{1, 2, 3, 4, 5, 6}, out(6);
    float_routes const routes{expar::make_view(ids.data(), 2, 1), expar::make_view(w.data(), 2, 1)};
    auto const tokens = expar::make_view(x.data(), 2, 3);
    auto a = moe.dispatch(ctx, tokens, routes), b = moe.dispatch(ctx, tokens, routes);
    told[0] = thrown_by([&] {
      if (me == 0)
        moe.dispatch(ctx, tokens, a);
      else
        moe.combine(ctx, a, a.rows(), expar::make_view(out.data(), 2, 3));
    });
    told[1] = thrown_by([&] { moe.dispatch(ctx, tokens, me == 0 ? a : b); });
    told[2] = thrown_by([&] {
      if (me == 0)
        moe.prepare(ctx, routes, a);
      else
        moe.dispatch(ctx, tokens, b);
    });
    for (int i = 0; i < 3; ++i)
      if (told[i] != wanted[i]) return told[i];
    // The object works at once, and the batch that one rank did not prepare can be.
    moe.dispatch(ctx, tokens, b);
    moe.dispatch(ctx, tokens, routes, a);
    moe.combine(ctx, b, b.rows(), expar::make_view(out.data(), 2, 3));
    return out == x ? "" : "a token did not come home";
  });
  REQUIRE(said == all(2, ""));
}

TEST_CASE("an object that was moved from says so") {
  expar::self_communicator comm;
  expar::host_context const ctx;
  expar::expert_parallel moe(comm, {2, 1, 3});
  auto moved = std::move(moe);
  expar::tensor_view<float, 2> const none{nullptr, {0, 3}, {3, 1}};
  CHECK(
      thrown_by([&] {
        moe.dispatch(ctx, none, float_routes{{nullptr, {0, 1}, {1, 1}}, {nullptr, {0, 1}, {1, 1}}});
      }) == "expar: expert_parallel: the object was moved from");
}

TEST_CASE("whichever allocation fails on one rank, all throw alike, and the next try works") {
  // The n-th allocation of rank 1 fails, from the constructor to the last gradient.
  for (int layout = 0; layout < 2; ++layout) {
    std::vector<bool> done(2);  // by messages, by windows
    for (int n = 0; !done[0] || !done[1]; ++n) {
      auto const said = said_by(3, [&](auto& comm) {
        memory_that_ends memory;
        if (comm.rank() == 1) memory.left = n;
        expar::host_context const ctx(1, &memory);
        auto const with = [&](auto of) {
          expar::expert_parallel moe(comm, {7, 2, 5}, of, expar::weights_at_decode{}, &memory);
          moe.place(expar::placement::replicated(7, 3, 2));
          expar::expert_batch<float> batch(&memory);
          std::vector<std::int32_t> ids{0, 3, 5, 6};
          std::vector<float> w(4, .5f), x(10, 1.f), out(10), d_w(4), d_x(10);
          auto const rows = [](std::vector<float>& v) { return expar::make_view(v.data(), 2, 5); };
          moe.dispatch(
              ctx, rows(x),
              float_routes{expar::make_view(ids.data(), 2, 2), expar::make_view(w.data(), 2, 2)},
              batch);
          std::vector<float> y(static_cast<std::size_t>(batch.row_count() * 5), 1.f), d_y(y);
          auto const whole = [&](std::vector<float>& v) {
            return expar::make_view(v.data(), batch.row_count(), index_t{5});
          };
          moe.combine(ctx, batch, whole(y), rows(out));
          moe.combine_backward(ctx, batch, rows(x), whole(y), whole(d_y),
                               expar::make_view(d_w.data(), 2, 2));
          moe.dispatch_backward(ctx, batch, whole(d_y), rows(d_x));
        };
        auto const go = [&] {
          return thrown_by([&] {
            if (layout == 0)
              with(expar::ragged{2});
            else
              with(expar::fixed_capacity{1});
          });
        };
        auto const sentence = go();
        memory.left = -1;
        auto const again = go();
        return again == "nothing was thrown" ? sentence : "afterwards: " + again;
      });
      INFO("allocation " << n << ", layout " << layout);
      for (std::size_t transport = 0; transport < 2; ++transport) {
        auto const first = said[3 * transport];
        REQUIRE(said[3 * transport + 1] == first);
        REQUIRE(said[3 * transport + 2] == first);
        if (first == "nothing was thrown")
          done[transport] = true;
        else
          REQUIRE(first.find("afterwards") == std::string::npos);
      }
      REQUIRE(n < 150);
    }
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
    CHECK(
        kind[r] ==
        "expar: expert_parallel: the layout (0: ragged, 1: fixed_capacity, 2: row_budget) is 0 on "
        "rank 0 but 1 on rank 1; all ranks must pass the same");
    CHECK(type[r] ==
          "expar: dispatch: weights on rank 1 have another element type than on rank 0; all ranks "
          "must use the same");
  }
}

namespace {

/// One token of a rank for an expert, and its way out and home through an engine.
struct one_token {
  std::int32_t id;
  float weight = 1, x[2] = {3, 5}, out[2] = {};
  expar::expert_batch<float> batch;

  explicit one_token(int expert) : id(expert) {}
  float_routes routes() { return {expar::make_view(&id, 1, 1), expar::make_view(&weight, 1, 1)}; }
  template <class Moe, class... Quotas>
  void dispatch(Moe& moe, Quotas const&... quotas) {
    moe.dispatch(expar::host_context{}, expar::make_view(x, 1, 2), routes(), batch, quotas...);
  }
  template <class Moe>
  bool comes_home(Moe& moe) {
    std::copy_n(batch.rows().data, batch.rows().size(), batch.y().data);
    moe.combine(expar::host_context{}, batch, expar::make_view(out, 1, 2));
    return std::equal(x, x + 2, out);
  }
};

}  // namespace

TEST_CASE("a placement that does not fit, or differs, is one sentence on all ranks") {
  auto const said = said_by(3, [](auto& comm) -> std::string {
    using expar::placement;
    expar::expert_parallel moe(comm, {4, 1, 2});
    auto const before = moe.placement();
    std::string const told[] = {
        thrown_by([&] { moe.place(placement::blocks(comm.rank() == 1 ? 5 : 4, 3)); }),
        thrown_by([&] { moe.place(placement::blocks(4, comm.rank() == 1 ? 2 : 3)); }),
        thrown_by([&] { moe.place(placement::replicated(4, 3, comm.rank() == 1 ? 2 : 3)); })};
    std::string const wanted[] = {
        "expar: place: the placement is of 5 experts on 3 ranks, not of 4 on 3 (rank 1)",
        "expar: place: the placement is of 4 experts on 2 ranks, not of 4 on 3 (rank 1)",
        "expar: place: rank 1 passes another placement than rank 0; all ranks pass the same"};
    for (int i = 0; i < 3; ++i)
      if (told[i] != wanted[i]) return told[i];
    if (!(moe.placement() == before)) return "a wrong placement has been taken";
    one_token t(comm.rank());
    t.dispatch(moe);
    return t.comes_home(moe) ? "" : "a token did not come home";
  });
  REQUIRE(said == all(3, ""));
}

TEST_CASE("quotas that do not add up are one sentence on all ranks") {
  auto const said = said_by(2, [](auto& comm) -> std::string {
    expar::expert_parallel moe(comm, {1, 1, 2});
    moe.place(expar::placement::replicated(1, 2, 2));
    one_token t(0);
    auto const told_with = [&](index_t first, index_t second) {
      return thrown_by([&] {
        t.dispatch(moe, [&](auto, expar::placement const&, expar::tensor_view<index_t, 2> out) {
          if (first < 0 && comm.rank() == 1) throw std::runtime_error("no quota");
          out(1, 0) = first, out(1, 1) = second, out(0, 0) = 1;
        });
      });
    };
    std::string const told[] = {told_with(0, 0), told_with(2, -1), told_with(1, 1),
                                told_with(-1, 0)};
    std::string const wanted[] = {
        "expar: prepare: the quotas leave out 1 of the 1 routes of rank 1 for expert 0 (rank 0)",
        "expar: prepare: the quotas give 2 routes of rank 1 to copy 0 of expert 0; there are 1 "
        "left (rank 0)",
        "expar: prepare: the quotas give 1 routes of rank 1 to copy 1 of expert 0; there are 0 "
        "left (rank 0)",
        "expar: prepare: the quotas give -1 routes of rank 1 to copy 0 of expert 0; there are 1 "
        "left (rank 0)"};
    for (int i = 0; i < 4; ++i)
      if (told[i] != wanted[i]) return told[i];
    if (told_with(0, 1) != "nothing was thrown") return "good quotas are refused";
    return t.comes_home(moe) ? "" : "a token did not come home";
  });
  REQUIRE(said == all(2, ""));
}

TEST_CASE("layers of one transport have batches alive at once, and a batch may outlive its layer") {
  auto const check = [](auto& comm, auto transport) -> std::string {
    one_token kept(0);
    {
      expar::expert_parallel one(transport, {4, 1, 2}),
          other(transport, {3, 1, 2}, expar::ragged{3});
      other.place(expar::placement::replicated(3, comm.size(), 2));
      one_token a(comm.rank()), b(2), c(3);
      a.dispatch(one), b.dispatch(other), c.dispatch(one), kept.dispatch(other);
      if (!b.comes_home(other) || !a.comes_home(one) || !c.comes_home(one))
        return "a token did not come home";
    }
    expar::expert_parallel last(transport, {3, 1, 2}, expar::ragged{3});
    return kept.comes_home(last) ? "" : "a token did not come home to another layer";
  };
  for (bool const by_windows : {false, true})
    REQUIRE(on_ranks(3, [&](auto& comm) {
              return by_windows ? check(comm, expar::windows(comm))
                                : check(comm, expar::messages(comm));
            }) == "");
}

TEST_CASE("a batch of another object on one rank is the same sentence on all") {
  auto const said = said_by(3, [](auto& comm) -> std::string {
    expar::expert_parallel moe(comm, {7, 1, 2}), other(comm, {7, 1, 2});
    one_token mine(comm.rank()), foreign(comm.rank());
    mine.dispatch(moe), foreign.dispatch(other);
    static_cast<void>(mine.batch.y()), static_cast<void>(foreign.batch.y());
    auto& batch = comm.rank() == 1 ? foreign.batch : mine.batch;
    auto const sentence = thrown_by(
        [&] { moe.combine(expar::host_context{}, batch, expar::make_view(mine.out, 1, 2)); });
    if (sentence != "expar: combine: the batch was prepared by another object (rank 1)")
      return sentence;
    return mine.comes_home(moe) && foreign.comes_home(other) ? "" : "a token did not come home";
  });
  REQUIRE(said == all(3, ""));
}

TEST_CASE("rows may be bytes that nobody sums, and what experts make of them another type") {
  auto const said = said_by(2, [](auto& comm) -> std::string {
    expar::host_context const ctx;
    expar::expert_parallel moe(comm, {2, 1, 3, 1});
    std::int32_t id = 1 - comm.rank();
    float weight = 2, out = 0;
    std::byte x[3];
    for (int i = 0; i < 3; ++i) x[i] = static_cast<std::byte>(100 * comm.rank() + i);
    expar::expert_batch<std::byte, float, float> batch;
    moe.dispatch(ctx, expar::make_view(x, 1, 3),
                 float_routes{expar::make_view(&id, 1, 1), expar::make_view(&weight, 1, 1)}, batch);
    if (batch.row_count() != 1) return "not one row";
    for (int i = 0; i < 3; ++i)
      if (batch.rows()(0, i) != static_cast<std::byte>(100 * (1 - comm.rank()) + i))
        return "other bytes";
    batch.y()(0, 0) = static_cast<float>(batch.rows()(0, 2));
    moe.combine(ctx, batch, expar::make_view(&out, 1, 1));
    return out == 2 * static_cast<float>(100 * comm.rank() + 2) ? "" : "another sum";
  });
  REQUIRE(said == all(2, ""));
}
