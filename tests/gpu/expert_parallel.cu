// SPDX-License-Identifier: Apache-2.0
#include <expar/comm/thread.hpp>
#include <expar/gpu/comm/virtual_ranks.cuh>
#include <expar/gpu/expert_parallel.cuh>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <memory>
#include <mutex>
#include <optional>

#include "gpu/device.cuh"
#include "support/catch.hpp"
#include "support/random.hpp"

using expar::index_t;
using expar_test::device_array;
using expar_test::device_grid;
using expar_test::grid;
using expar_test::require_success;

namespace {

/// A problem of all ranks.
struct problem {
  int ranks, experts, top_k, hidden, alignment = 1;
  std::optional<double> factor;
  index_t rows = -1;
  double absent = .2;
  bool hot = false;
  std::vector<int> tokens;  // [ranks]

  problem(std::uint64_t seed, int ranks_) : ranks(ranks_) {
    expar_test::random rng(seed);
    experts = ranks + static_cast<int>(rng.integer(0, 6));
    top_k = static_cast<int>(rng.integer(1, experts < 4 ? experts : 4));
    hidden = static_cast<int>(rng.chance(.5) ? 8 * rng.integer(1, 12) : rng.integer(1, 40));
    if (rng.chance(.5)) alignment = static_cast<int>(rng.integer(2, 5));
    if (rng.chance(.5)) factor = rng.uniform(.5, 2);
    if (rng.chance(.3)) rows = rng.integer(0, 6);
    absent = rng.chance(.1) ? 1 : .2;
    hot = rng.chance(.1);
    for (int r = 0; r < ranks; ++r)
      tokens.push_back(rng.chance(.2) ? 0 : static_cast<int>(rng.integer(1, 12)));
  }
};

struct routes_of_rank {
  expar::tensor_view<std::int32_t const, 2> ids;
  expar::tensor_view<float const, 2> weights;
};

/// What one rank has, and what the host makes of it.
template <class T>
struct rank_data {
  index_t tokens;
  int k;
  std::vector<std::int32_t> ids;
  grid<float> weights, d_w;
  grid<T> x, d_out, out, d_x;
  std::vector<index_t> counts, offsets;
  std::vector<T> rows, y, d_y, d_rows;

  rank_data(problem const& p, int rank, std::uint64_t seed)
      : tokens(p.tokens[static_cast<std::size_t>(rank)]),
        k(p.top_k),
        ids(static_cast<std::size_t>(tokens * (k + 1)), 1 << 30),
        weights(tokens, k, 1),
        d_w(tokens, k, 2),
        x(tokens, p.hidden, p.hidden % 8 == 0 ? 8 : 1),
        d_out(tokens, p.hidden, 0),
        out(tokens, p.hidden, p.hidden % 8 == 0 ? 8 : 1),
        d_x(tokens, p.hidden, 0) {
    expar_test::random rng(seed * 100 + static_cast<std::uint64_t>(rank));
    for (index_t t = 0; t < tokens; ++t) {
      for (int j = 0; j < k; ++j) {
        auto const e = p.hot ? 0 : rng.integer(0, p.experts - 1);
        ids[static_cast<std::size_t>(t * (k + 1) + j)] =
            rng.chance(p.absent) ? -1 : static_cast<std::int32_t>(e);
        weights.set(t, j, rng.normal());
      }
      for (int h = 0; h < p.hidden; ++h) x.set(t, h, rng.normal()), d_out.set(t, h, rng.normal());
    }
  }
  expar::tensor_view<std::int32_t const, 2> id_view(std::int32_t const* data) const {
    return expar::make_view(data, tokens, index_t{k}, index_t{k} + 1);
  }
};

template <class T>
std::vector<T> expert(std::vector<T> const& rows, float slope) {
  std::vector<T> y;
  for (T const r : rows)
    y.push_back(expar::narrow<T>(static_cast<expar::accumulator_t<T>>(slope * expar::widen(r))));
  return y;
}

template <class Layout>
Layout layout_of(problem const& p) {
  if constexpr (std::is_same_v<Layout, expar::ragged>)
    return {p.alignment};
  else
    return {*p.factor, p.alignment, p.rows};
}

template <class T, class Layout>
std::vector<rank_data<T>> on_host(problem const& p, std::uint64_t seed) {
  std::vector<rank_data<T>> all;
  for (int r = 0; r < p.ranks; ++r) all.emplace_back(p, r, seed);
  expar::run_ranks(p.ranks, [&](expar::thread_communicator& comm) {
    expar::host_context const ctx;
    auto& d = all[static_cast<std::size_t>(comm.rank())];
    expar::expert_parallel moe(comm, {p.experts, p.top_k, p.hidden}, layout_of<Layout>(p));
    expar::expert_batch<T> batch;
    moe.dispatch(ctx, d.x.view(), routes_of_rank{d.id_view(d.ids.data()), d.weights.view()}, batch);
    auto const n = batch.row_count();
    d.counts.assign(batch.slot_counts().begin(), batch.slot_counts().end());
    d.offsets.assign(batch.slot_offsets().begin(), batch.slot_offsets().end());
    d.rows.assign(batch.rows().data, batch.rows().data + n * p.hidden);
    d.y = expert(d.rows, 1.37f);
    d.d_y.resize(d.y.size());
    auto const view = [&](std::vector<T>& v) {
      return expar::make_view(v.data(), n, index_t{p.hidden});
    };
    moe.combine(ctx, batch, view(d.y), d.out.view());
    moe.combine_backward(ctx, batch, d.d_out.view(), view(d.y), view(d.d_y), d.d_w.view());
    d.d_rows = expert(d.d_y, .73f);
    moe.dispatch_backward(ctx, batch, view(d.d_rows), d.d_x.view());
  });
  return all;
}

/// One rank's arrays on the device.
template <class T>
struct on_device {
  device_array<std::int32_t> ids;
  device_grid<float> weights, d_w;
  device_grid<T> x, d_out, out, d_x;

  explicit on_device(rank_data<T>& d)
      : ids(d.ids),
        weights(d.weights),
        d_w(d.d_w),
        x(d.x),
        d_out(d.d_out),
        out(d.out),
        d_x(d.d_x) {}
};

template <class T>
void write(expar::tensor_view<T, 2> to, std::vector<T> const& from) {
  if (!from.empty()) expar_test::copy(to.data, from.data(), from.size() * sizeof(T));
}
template <class T>
std::vector<T> read(expar::tensor_view<T, 2> v) {
  std::vector<T> to(static_cast<std::size_t>(v.size()));
  if (!to.empty()) expar_test::copy(to.data(), v.data, to.size() * sizeof(T));
  return to;
}
/// Bytes that are no rows: NaN of every type.
template <class T>
void poison(expar::tensor_view<T, 2> v) {
  if (v.size() != 0) expar_test::fill(v.data, 0xff, static_cast<std::size_t>(v.size()) * sizeof(T));
}
/// The same bytes, and behind them poison.
template <class T>
bool same(std::vector<T> const& got, std::vector<T> const& wanted) {
  if (got.size() < wanted.size()) return false;
  auto const* const bytes = reinterpret_cast<unsigned char const*>(got.data());
  std::size_t const n = wanted.size() * sizeof(T);
  return std::memcmp(bytes, wanted.data(), n) == 0 &&
         std::all_of(bytes + n, bytes + got.size() * sizeof(T), [](int b) { return b == 0xff; });
}
template <class T>
bool same(grid<T>& got, grid<T>& wanted) {
  auto const a = got.view(), b = wanted.view();
  for (index_t i = 0; i < a.extents[0]; ++i)
    if (std::memcmp(a.row(i), b.row(i), static_cast<std::size_t>(a.extents[1]) * sizeof(T)) != 0)
      return false;
  return got.gaps_intact();
}

/// A batch on the device beside the host's, step by step.
template <class T, class Layout>
struct both {
  problem p;
  expar_test::own_stream const& stream;
  std::vector<rank_data<T>> host;
  std::vector<std::unique_ptr<on_device<T>>> device;
  expar::gpu::virtual_ranks group;
  expar::gpu::expert_parallel<expar::gpu::virtual_ranks, Layout> moe;
  decltype(moe.template make_batch<T>({})) batch;

  both(problem const& p_, std::uint64_t seed, expar_test::own_stream const& s)
      : p(p_),
        stream(s),
        host(on_host<T, Layout>(p_, seed)),
        group(expar::gpu::context(s), p_.ranks),
        moe(group, {p_.experts, p_.top_k, p_.hidden}, layout_of<Layout>(p_)),
        batch(moe.template make_batch<T>({moe.worst_case_rows(12) + 1})) {
    for (auto& d : host) {
      rank_data<T> blank = d;
      blank.out = grid<T>(d.tokens, p.hidden, p.hidden % 8 == 0 ? 8 : 1);
      blank.d_x = grid<T>(d.tokens, p.hidden, 0);
      blank.d_w = grid<float>(d.tokens, p.top_k, 2);
      device.push_back(std::make_unique<on_device<T>>(blank));
    }
  }
  template <class F>
  auto each(F f) {
    std::vector<decltype(f(0))> all;
    for (int r = 0; r < p.ranks; ++r) all.push_back(f(r));
    return all;
  }
  auto& at(int r) { return *device[static_cast<std::size_t>(r)]; }
  auto& wanted(int r) { return host[static_cast<std::size_t>(r)]; }

  void forward(bool in_two = false) {
    for (int r = 0; r < p.ranks; ++r) poison(batch.rows(r));
    auto const routes = each([&](int r) {
      return routes_of_rank{wanted(r).id_view(at(r).ids.data()), at(r).weights.view()};
    });
    auto const tokens = each([&](int r) { return at(r).x.view(); });
    if (in_two) {
      moe.prepare(routes, batch);
      moe.dispatch(tokens, batch);
    } else {
      moe.dispatch(tokens, routes, batch);
    }
    auto const sums = moe.read_sync(batch);
    REQUIRE(sums.size() == static_cast<std::size_t>(p.ranks));
    index_t needed = 0;
    for (int r = 0; r < p.ranks; ++r) needed = std::max(needed, wanted(r).offsets.back());
    for (int r = 0; r < p.ranks; ++r) {
      auto const& s = sums[static_cast<std::size_t>(r)];
      REQUIRE(s.counts == wanted(r).counts);
      REQUIRE(s.offsets == wanted(r).offsets);
      REQUIRE(s.rows() == wanted(r).offsets.back());
      REQUIRE(s.needed_rows == needed);
      REQUIRE(s.lost_rows == 0);
      bool const rows_same = same(read(batch.rows(r)), wanted(r).rows);
      REQUIRE(rows_same);
      poison(batch.y(r));
      write(batch.y(r), wanted(r).y);
    }
    moe.combine(batch, each([&](int r) { return at(r).out.view(); }));
    stream.wait();
    for (int r = 0; r < p.ranks; ++r) {
      grid<T> out(wanted(r).tokens, p.hidden, p.hidden % 8 == 0 ? 8 : 1);
      at(r).out.read(out);
      bool const out_same = same(out, wanted(r).out);
      REQUIRE(out_same);
    }
  }
  void backward() {
    for (int r = 0; r < p.ranks; ++r) poison(batch.d_y(r));
    moe.combine_backward(batch, each([&](int r) { return at(r).d_out.view(); }),
                         each([&](int r) { return at(r).d_w.view(); }));
    stream.wait();
    for (int r = 0; r < p.ranks; ++r) {
      bool const d_y_same = same(read(batch.d_y(r)), wanted(r).d_y);
      REQUIRE(d_y_same);
      grid<float> d_w(wanted(r).tokens, p.top_k, 2);
      at(r).d_w.read(d_w);
      REQUIRE(d_w.gaps_intact());
      for (index_t t = 0; t < wanted(r).tokens; ++t)
        for (int j = 0; j < p.top_k; ++j) {
          double const exact = wanted(r).d_w.get(t, j);
          REQUIRE(std::abs(d_w.get(t, j) - exact) <= 1e-5 * (p.hidden + std::abs(exact)));
        }
      poison(batch.d_rows(r));
      write(batch.d_rows(r), wanted(r).d_rows);
    }
    moe.dispatch_backward(batch, each([&](int r) { return at(r).d_x.view(); }));
    stream.wait();
    for (int r = 0; r < p.ranks; ++r) {
      grid<T> d_x(wanted(r).tokens, p.hidden, 0);
      at(r).d_x.read(d_x);
      bool const d_x_same = same(d_x, wanted(r).d_x);
      REQUIRE(d_x_same);
    }
  }
};

template <class T, class F>
void with_both(problem const& p, std::uint64_t seed, expar_test::own_stream const& stream, F f) {
  CAPTURE(seed, p.ranks, p.experts, p.top_k, p.hidden, p.alignment, p.factor.has_value());
  if (p.factor) {
    both<T, expar::fixed_capacity> b(p, seed, stream);
    f(b);
  } else {
    both<T, expar::ragged> b(p, seed, stream);
    f(b);
  }
}

template <class T>
void require_same(problem const& p, std::uint64_t seed, expar_test::own_stream const& stream) {
  with_both<T>(p, seed, stream, [](auto& b) {
    b.forward();
    b.backward();
    b.forward(true);
  });
}

}  // namespace

TEMPLATE_TEST_CASE("virtual ranks have the integers and bytes of ranks that are threads", "", float,
                   expar::bfloat16) {
  expar_test::own_stream const stream;
  for (int const ranks : {1, 2, 4, 5})
    for (std::uint64_t seed = 1; seed <= 5; ++seed)
      require_same<TestType>(problem(seed * 9 + static_cast<std::uint64_t>(ranks), ranks), seed,
                             stream);
}

TEST_CASE("an exchange on virtual ranks at the edges") {
  expar_test::own_stream const stream;
  problem p(1, 3);
  p.factor.reset(), p.absent = 0, p.hot = false, p.tokens = {7, 4, 9};
  p.experts = 7, p.top_k = 2, p.hidden = 16, p.alignment = 4;
  SECTION("no tokens anywhere") {
    p.tokens = {0, 0, 0};
  }
  SECTION("no tokens anywhere, with a capacity") {
    p.tokens = {0, 0, 0}, p.factor = 1., p.rows = -1;
  }
  SECTION("no expert named") {
    p.absent = 1;
  }
  SECTION("one hot expert") {
    p.hot = true;
  }
  SECTION("one hot expert, most of it dropped") {
    p.hot = true, p.factor = .5, p.rows = -1;
  }
  SECTION("every expert") {
    p.top_k = 7;
  }
  SECTION("as many experts as ranks") {
    p.experts = 3;
  }
  SECTION("more experts than threads of a block, and an odd row") {
    p.experts = 1201, p.hidden = 3;
  }
  require_same<float>(p, 5, stream);
}

TEST_CASE("several batches on virtual ranks are alive at once, and go backward in any order") {
  expar_test::own_stream const stream;
  problem p(2, 3);
  p.factor.reset(), p.experts = 8, p.top_k = 2, p.hidden = 24, p.tokens = {5, 0, 9};
  both<float, expar::ragged> a(p, 1, stream), b(p, 2, stream), c(p, 3, stream);
  a.forward(), b.forward(), c.forward();
  b.backward(), c.backward(), a.backward();
  b.forward(true), c.backward(), b.backward(), b.backward();
}

namespace expar_test {

/// A rank of a process of its own, but for the threads, which take turns: one runs until it meets
/// the others at the end of a phase.
class device_process {
 public:
  device_process(expar::thread_communicator& comm, std::mutex& turn, expar::gpu::context const& ctx)
      : comm_(comm), turn_(turn), ctx_(ctx) {}
  int rank() const noexcept { return comm_.rank(); }
  int size() const noexcept { return comm_.size(); }

  void exchange_phase(expar::gpu::context const& on) const {
    require_success(cudaStreamSynchronize(on.stream()));
    turn_.unlock();
    comm_.barrier(expar::host_context{});
    turn_.lock();
  }
  // The window engine needs nothing of the lower tiers.
  void all_to_all(expar::gpu::context const&, void const*, void*, std::size_t) const {}
  void all_gather(expar::gpu::context const&, void const*, void*, std::size_t) const {}
  void barrier(expar::gpu::context const&) const {}

  struct view_type {
    std::byte* const* parts;
    int rank_, size_;
    EXPAR_HD int rank() const { return rank_; }
    EXPAR_HD int size() const { return size_; }
    __device__ void* peer(int p, std::size_t offset) const { return parts[p] + offset; }
  };
  struct window {
    std::size_t bytes;
    expar::gpu::detail::buffer<std::byte> mine;
    expar::gpu::detail::buffer<std::byte*> table;
    int rank, size;
    std::size_t size_bytes() const { return bytes; }
    void* data() const { return mine.data(); }
    view_type view() const { return {table.data(), rank, size}; }
  };
  window allocate_window(std::size_t bytes) const {
    window w{bytes, expar::gpu::detail::buffer<std::byte>(ctx_),
             expar::gpu::detail::buffer<std::byte*>(ctx_), rank(), size()};
    w.mine.resize("allocate_window", static_cast<index_t>(bytes));
    w.table.resize("allocate_window", size());
    std::byte* const mine = w.mine.data();
    std::vector<std::byte*> parts(static_cast<std::size_t>(size()));
    turn_.unlock();
    comm_.all_gather(expar::host_context{}, &mine, parts.data(), sizeof mine);
    turn_.lock();
    expar_test::copy(w.table.data(), parts.data(), parts.size() * sizeof mine);
    return w;
  }

 private:
  expar::thread_communicator& comm_;
  std::mutex& turn_;
  expar::gpu::context ctx_;
};
static_assert(expar::gpu::rank_group<expar::gpu::one_rank<device_process>>);

}  // namespace expar_test

TEST_CASE("a process may drive one rank of a group") {
  for (std::uint64_t seed = 1; seed <= 4; ++seed) {
    problem p(seed + 50, 3);
    p.factor.reset();
    auto host = on_host<float, expar::ragged>(p, seed);
    std::mutex turn;
    std::vector<std::string> said(3);
    expar::run_ranks(3, [&](expar::thread_communicator& comm) {
      std::lock_guard const mine(turn);
      int const r = comm.rank();
      expar_test::own_stream const stream;
      expar::gpu::context const ctx(stream);
      expar_test::device_process process(comm, turn, ctx);
      expar::gpu::one_rank group(process, ctx);
      expar::gpu::expert_parallel moe(group, {p.experts, p.top_k, p.hidden},
                                      expar::ragged{p.alignment});
      auto batch = moe.make_batch<float>({moe.worst_case_rows(12)});
      auto& d = host[static_cast<std::size_t>(r)];
      grid<float> out(d.tokens, p.hidden), d_x(out), d_w(d.tokens, p.top_k);
      device_array<std::int32_t> const ids(d.ids);
      device_grid<float> const w(d.weights), x(d.x), d_out(d.d_out), out_(out), d_x_(d_x),
          d_w_(d_w);
      poison(batch.rows(r));
      moe.dispatch(std::array{x.view()},
                   std::array{routes_of_rank{d.id_view(ids.data()), w.view()}}, batch);
      auto& wrong = said[static_cast<std::size_t>(r)];
      if (moe.read_sync(batch).at(0).offsets != d.offsets) wrong += "offsets ";
      if (!same(read(batch.rows(r)), d.rows)) wrong += "rows ";
      write(batch.y(r), d.y);
      poison(batch.d_y(r));
      moe.combine(batch, std::array{out_.view()});
      moe.combine_backward(batch, std::array{d_out.view()}, std::array{d_w_.view()});
      if (!same(read(batch.d_y(r)), d.d_y)) wrong += "d_y ";
      write(batch.d_rows(r), d.d_rows);
      moe.dispatch_backward(batch, std::array{d_x_.view()});
      out_.read(out), d_x_.read(d_x);
      if (!same(out, d.out)) wrong += "out ";
      if (!same(d_x, d.d_x)) wrong += "d_tokens ";
    });
    REQUIRE(said == std::vector<std::string>(3));
  }
}

TEST_CASE("rows that find no place in a window are counted, and count as no route") {
  expar_test::own_stream const stream;
  expar::gpu::context const ctx(stream);
  expar::gpu::virtual_ranks group(ctx, 2);
  constexpr int tokens = 6, hidden = 4, room = 5;
  expar::gpu::expert_parallel moe(group, {3, 1, hidden}, expar::ragged{2});
  auto batch = moe.make_batch<float>({room, false});
  grid<float> x(tokens, hidden), ones(tokens, 1), out(tokens, hidden);
  for (int t = 0; t < tokens; ++t) {
    ones.set(t, 0, 1);
    for (int h = 0; h < hidden; ++h) x.set(t, h, 1 + t * hidden + h);
  }
  // Rank 0 has experts 0 and 1, rank 1 has expert 2: 3 + 4 rows for expert 0, then 2 for expert 1.
  device_array<std::int32_t> const ids0({0, 0, 1, 2, 0, -1}), ids1({0, 0, 0, 0, 1, 2});
  device_grid<float> const tokens_(x), weights(ones), out0(out), out1(out);
  std::vector const routes{
      routes_of_rank{expar::make_view<std::int32_t const>(ids0.data(), tokens, 1), weights.view()},
      routes_of_rank{expar::make_view<std::int32_t const>(ids1.data(), tokens, 1), weights.view()}};
  std::vector const both_tokens{tokens_.view(), tokens_.view()};
  std::vector const outs{out0.view(), out1.view()};
  for (int r = 0; r < 2; ++r) poison(batch.rows(r));
  moe.dispatch(both_tokens, routes, batch);
  auto const sums = moe.read_sync(batch);
  REQUIRE(sums[0].needed_rows == 10);
  REQUIRE(sums[1].needed_rows == 10);
  REQUIRE(sums[0].lost_rows == 4);
  REQUIRE(sums[1].lost_rows == 0);
  REQUIRE(sums[0].offsets == std::vector<index_t>{0, 5, 5});
  REQUIRE(sums[0].counts == std::vector<index_t>{5, 0});
  REQUIRE(sums[1].offsets == std::vector<index_t>{0, 2});
  auto const rows = read(batch.rows(0));
  for (int i = 0; i < room; ++i)  // tokens 0, 1, 4 of rank 0, then 0, 1 of rank 1
    for (int h = 0; h < hidden; ++h)
      REQUIRE(static_cast<double>(rows[static_cast<std::size_t>(i * hidden + h)]) ==
              x.get(i < 2    ? i
                    : i == 2 ? 4
                             : i - 3,
                    h));
  REQUIRE(read(batch.rows(1)).size() == room * hidden);
  for (int r = 0; r < 2; ++r) write(batch.y(r), read(batch.rows(r)));
  moe.combine(batch, outs);
  stream.wait();
  auto const require_out = [&](device_grid<float> const& got, std::vector<int> const& kept) {
    got.read(out);
    for (int t = 0; t < tokens; ++t)
      for (int h = 0; h < hidden; ++h)
        REQUIRE(out.get(t, h) == (kept[static_cast<std::size_t>(t)] ? x.get(t, h) : 0));
  };
  require_out(out0, {1, 1, 0, 1, 1, 0});
  require_out(out1, {1, 1, 0, 0, 0, 1});
}

TEST_CASE("an exchange on virtual ranks says what is wrong before it enqueues anything") {
  expar_test::own_stream const stream;
  expar::gpu::context const ctx(stream);
  expar::gpu::virtual_ranks group(ctx, 2);
  using expar::gpu::expert_parallel;
  REQUIRE_THROWS_WITH(expar::gpu::virtual_ranks(ctx, 0),
                      "expar: virtual_ranks: ranks is 0; at least 1 is needed");
  REQUIRE_THROWS_WITH(expert_parallel(group, {1, 1, 4}),
                      "expar: expert_parallel: experts is 1, fewer than the 2 ranks; every rank "
                      "needs one of its own");
  REQUIRE_THROWS_WITH(expert_parallel(group, {2, 1, 4}, expar::fixed_capacity{-1}),
                      "expar: expert_parallel: capacity factor is -1; on a device it is positive, "
                      "since others need the counts");
  expert_parallel moe(group, {3, 2, 4});
  auto batch = moe.make_batch<float>({8, false});
  device_array<std::int32_t> const ids(std::vector<std::int32_t>(4, 0));
  device_array<float> const w(std::vector<float>(64, 1.f));
  using routes = std::vector<routes_of_rank>;
  auto const good = routes_of_rank{expar::make_view<std::int32_t const>(ids.data(), 2, 2),
                                   expar::make_view<float const>(w.data(), 2, 2)};
  auto wide = good, few = good;
  wide.ids.extents[1] = 3, few.weights.extents[0] = 1;
  using views = std::vector<expar::tensor_view<float, 2>>;
  auto const x = expar::make_view(w.data(), 2, 4), odd = expar::make_view(w.data(), 3, 4);
  REQUIRE_THROWS_WITH(moe.combine(batch, views{x, x}),
                      "expar: combine: the batch has no routes; dispatch or prepare it first");
  REQUIRE_THROWS_WITH(moe.dispatch(views{x}, routes{good, good}, batch),
                      "expar: dispatch: there are 1 arguments; this process drives 2 ranks");
  REQUIRE_THROWS_WITH(moe.dispatch(views{x, x}, routes{good, wide}, batch),
                      "expar: dispatch: ids has extent 3 in dimension 1, but top_k is 2 (rank 1)");
  REQUIRE_THROWS_WITH(moe.dispatch(views{x, x}, routes{few, good}, batch),
                      "expar: dispatch: weights has extent 1 in dimension 0, but the number of "
                      "tokens is 2 (rank 0)");
  REQUIRE_THROWS_WITH(moe.dispatch(views{x, odd}, routes{good, good}, batch),
                      "expar: dispatch: tokens has extent 3 in dimension 0, but the number of "
                      "tokens is 2 (rank 1)");
  moe.dispatch(views{x, x}, routes{good, good}, batch);
  REQUIRE_THROWS_WITH(
      moe.combine(batch, views{x, odd}),
      "expar: combine: out has extent 3 in dimension 0, but the number of tokens is "
      "2 (rank 1)");
  REQUIRE_THROWS_WITH(moe.combine_backward(batch, views{x, x}, views{x, x}),
                      "expar: combine_backward: the batch was made for the forward pass alone");
  REQUIRE(batch.d_y(1).data == nullptr);
  expert_parallel other(group, {4, 2, 4});
  REQUIRE_THROWS_WITH(
      other.combine(batch, views{x, x}),
      "expar: combine: the batch was made for 3 experts, rows of 4 and 2 ranks, not "
      "for 4, 4 and 2");
  REQUIRE_THROWS_WITH(moe.combine(batch, views{batch.y(0), x}),
                      Catch::Matchers::StartsWith("expar: combine: out has extent 8"));
  REQUIRE_THROWS_WITH(moe.combine(batch, views{x, expar::make_view(batch.y(1).data, 2, 4)}),
                      "expar: combine: out overlaps y in memory; the operation cannot work "
                      "in place (rank 1)");
  expert_parallel one(group, {3, 1, 4});
  REQUIRE_THROWS_WITH(one.combine(batch, views{x, x}),
                      "expar: combine: the batch was prepared for top_k 2, not for 1");
  expert_parallel capped(group, {3, 2, 4}, expar::fixed_capacity{.5});
  REQUIRE_THROWS_WITH(capped.combine(batch, views{x, x}),
                      "expar: combine: the batch was prepared for another layout (ragged or "
                      "fixed_capacity)");
  expert_parallel fixed(group, {3, 2, 4}, expar::fixed_capacity{4});
  REQUIRE_THROWS_WITH(fixed.dispatch(views{x, x}, routes{good, good}, batch),
                      "expar: dispatch: a rank gets 32 rows, but the windows of the batch have 8");
}

TEST_CASE("a batch on devices that was only prepared has no rows, and one moved from no routes") {
  expar_test::own_stream const stream;
  expar::gpu::context const ctx(stream);
  expar::gpu::virtual_ranks group(ctx, 1);
  expar::gpu::expert_parallel moe(group, {2, 1, 4});
  auto batch = moe.make_batch<float>({4, false});
  device_array<std::int32_t> const ids(std::vector<std::int32_t>{1, 0});
  device_array<float> const weights(std::vector<float>{1, 1}), x(std::vector<float>(8, 2.f));
  struct routes {
    expar::tensor_view<std::int32_t, 2> ids;
    expar::tensor_view<float, 2> weights;
  };
  auto const tokens = std::vector{expar::make_view(x.data(), 2, 4)};
  moe.prepare(std::vector{routes{expar::make_view(ids.data(), 2, 1),
                                 expar::make_view(weights.data(), 2, 1)}},
              batch);
  REQUIRE_THROWS_WITH(moe.combine(batch, tokens),
                      "expar: combine: the batch has no rows; dispatch tokens first");
  moe.dispatch(tokens, batch);
  auto const moved = std::move(batch);
  REQUIRE_THROWS_WITH(moe.combine(batch, tokens),
                      "expar: combine: the batch has no routes; dispatch or prepare it first");
  REQUIRE_THROWS_WITH(batch.plan(0),
                      "expar: expert_batch: rank is 0; the batch has 0 ranks of this process, from "
                      "0");
  REQUIRE_THROWS_WITH(moved.rows(1),
                      "expar: expert_batch: rank is 1; the batch has 1 ranks of this process, from "
                      "0");
  moe.combine(moved, tokens);
  stream.wait();
}

TEST_CASE("an exchange on virtual ranks is a fixed number of launches and nothing else") {
  if (!expar_test::runtime_calls::counted()) return;
  expar_test::own_stream const stream;
  problem p(4, 3);
  p.factor.reset(), p.experts = 8, p.top_k = 2, p.hidden = 24, p.tokens = {5, 3, 9};
  auto const count = [&](int alignment, std::vector<unsigned long> const& wanted) {
    p.alignment = alignment;
    both<float, expar::ragged> b(p, 1, stream);
    b.forward();
    auto const routes = b.each([&](int r) {
      return routes_of_rank{b.wanted(r).id_view(b.at(r).ids.data()), b.at(r).weights.view()};
    });
    auto const view = [&](auto f) { return b.each([&](int r) { return (b.at(r).*f).view(); }); };
    using device = on_device<float>;
    std::vector<unsigned long> launches;
    auto const step = [&](auto f) {
      auto const before = expar_test::runtime_calls::now();
      f();
      auto const calls = expar_test::runtime_calls::now().since(before);
      launches.push_back(calls[0]);
      REQUIRE(std::vector<unsigned long>(calls.begin() + 1, calls.end()) ==
              std::vector<unsigned long>(4, 0));
    };
    step([&] { b.moe.dispatch(view(&device::x), routes, b.batch); });
    step([&] { b.moe.combine(b.batch, view(&device::out)); });
    step([&] { b.moe.combine_backward(b.batch, view(&device::d_out), view(&device::d_w)); });
    step([&] { b.moe.dispatch_backward(b.batch, view(&device::d_x)); });
    REQUIRE(launches == wanted);
    stream.wait();
  };
  count(1, {4 * 3, 3, 3, 3});
  count(4, {5 * 3, 3, 2 * 3, 3});
}
