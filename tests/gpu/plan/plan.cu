// SPDX-License-Identifier: Apache-2.0
#include <expar/gpu/plan/plan.cuh>
#include <expar/plan/plan.hpp>

#include "gpu/device.cuh"
#include "support/catch.hpp"
#include "support/random.hpp"

using Catch::Matchers::Equals;
using expar::index_t;
using expar_test::device_array;
using expar_test::require_success;

namespace {

struct problem {
  int tokens, k, experts;
  index_t pitch;
  std::vector<std::int32_t> ids;

  problem(std::uint64_t seed, int tokens_, int k_, int experts_, double absent = .2,
          bool hot = false, int gap = 0)
      : tokens(tokens_), k(k_), experts(experts_), pitch(k_ + gap) {
    expar_test::random rng(seed);
    ids.assign(static_cast<std::size_t>(tokens * pitch), 1 << 30);  // gaps are never read as ids
    for (int t = 0; t < tokens; ++t)
      for (int j = 0; j < k; ++j)
        ids[static_cast<std::size_t>(t * pitch + j)] =
            rng.chance(absent) ? -1
            : hot              ? experts - 1
                               : static_cast<std::int32_t>(rng.integer(0, experts - 1));
  }
  expar::tensor_view<std::int32_t const, 2> view(std::int32_t const* data) const {
    return expar::make_view(data, tokens, index_t{k}, pitch);
  }
};

/// The device plan has the integers of the host plan.
template <class Layout>
void require_same(expar::gpu::context const& ctx, problem const& p, Layout layout,
                  expar::gpu::route_plan& plan) {
  CAPTURE(p.tokens, p.k, p.experts, p.pitch);
  device_array<std::int32_t> const ids(p.ids);
  expar::gpu::make_plan(ctx, p.view(ids.data()), p.experts, layout, plan);
  auto const host =
      expar::make_plan(expar::host_context{}, p.view(p.ids.data()), p.experts, layout);
  auto const sums = expar::gpu::read_sync(ctx, plan);
  REQUIRE(sums.counts == std::vector<index_t>(host.counts().begin(), host.counts().end()));
  REQUIRE(sums.offsets == std::vector<index_t>(host.offsets().begin(), host.offsets().end()));
  REQUIRE(sums.dropped() == host.dropped());
  REQUIRE(sums.rows() == host.rows());
  REQUIRE(sums.wrong_ids == 0);
  REQUIRE(plan.max_rows() >= host.rows());
  REQUIRE(plan.capacity() == host.capacity());
  std::vector<long long> rows;
  for (int t = 0; t < p.tokens; ++t)
    for (int j = 0; j < p.k; ++j) rows.push_back(host.row(t, j));
  bool const same = expar_test::rows_of(ctx, plan) == rows;
  REQUIRE(same);
}

void require_same_in_all_layouts(expar::gpu::context const& ctx, problem const& p,
                                 expar::gpu::route_plan& plan) {
  require_same(ctx, p, expar::ragged{}, plan);
  require_same(ctx, p, expar::ragged{4}, plan);
  require_same(ctx, p, expar::fixed_capacity{.75, 2}, plan);
  require_same(ctx, p, expar::fixed_capacity{.factor = 0, .rows = 3}, plan);
}

}  // namespace

TEST_CASE("a device plan has the integers of the host plan") {
  expar_test::own_stream const stream;
  expar::gpu::context const ctx(stream);
  expar::gpu::route_plan plan(ctx);  // one for all: larger and smaller batches in turn
  for (std::uint64_t seed = 1; seed <= 12; ++seed) {
    expar_test::random rng(seed);
    int const experts = static_cast<int>(rng.integer(1, 70));
    int const k = static_cast<int>(rng.integer(1, experts < 9 ? experts : 9));
    problem const p(seed, static_cast<int>(rng.integer(0, 150)), k, experts,
                    rng.chance(.5) ? 0 : .3, rng.chance(.1), static_cast<int>(rng.integer(0, 2)));
    require_same_in_all_layouts(ctx, p, plan);
  }
}

TEST_CASE("plans at the edges") {
  expar_test::own_stream const stream;
  expar::gpu::context const ctx(stream);
  expar::gpu::route_plan plan(ctx);
  SECTION("no tokens") {
    require_same_in_all_layouts(ctx, problem(1, 0, 2, 8), plan);
  }
  SECTION("no expert named") {
    require_same_in_all_layouts(ctx, problem(1, 40, 2, 8, 1), plan);
  }
  SECTION("one hot expert") {
    require_same_in_all_layouts(ctx, problem(1, 900, 1, 8, .1, true), plan);
  }
  SECTION("every expert") {
    require_same_in_all_layouts(ctx, problem(1, 60, 5, 5, 0), plan);
  }
  SECTION("one expert") {
    require_same_in_all_layouts(ctx, problem(1, 600, 1, 1), plan);
  }
  SECTION("more choices than lanes") {
    require_same_in_all_layouts(ctx, problem(1, 30, 40, 50), plan);
  }
  SECTION("many tiles") {
    require_same_in_all_layouts(ctx, problem(1, 3000, 2, 33), plan);
  }
  SECTION("more experts than threads, and few warps to a block") {
    require_same(ctx, problem(1, 100, 4, 600), expar::ragged{3}, plan);
    require_same(ctx, problem(1, 100, 4, 3001), expar::ragged{3}, plan);
    require_same(ctx, problem(1, 70, 2, 12000), expar::fixed_capacity{1}, plan);
  }
}

TEST_CASE("two and four steps to a warp give the same integers") {
  expar_test::own_stream const stream;
  expar::gpu::context const ctx(stream);
  expar::gpu::route_plan plan(ctx);
  // 3001 experts leave 2 warps to a block, so the steps come early.
  require_same(ctx, problem(2, 6000, 2, 3001), expar::ragged{}, plan);
  require_same(ctx, problem(2, 6000, 3, 3001), expar::fixed_capacity{1.25}, plan);
}

TEST_CASE("ids that are no experts are counted and get no row") {
  expar_test::own_stream const stream;
  expar::gpu::context const ctx(stream);
  problem p(3, 100, 3, 7, .1);
  auto clean = p;
  expar_test::random rng(4);
  index_t wrong = 0;
  for (std::size_t i = 0; i < p.ids.size(); ++i)
    if (rng.chance(.2)) {
      std::int32_t const values[] = {-2, 7, INT32_MAX, INT32_MIN};
      p.ids[i] = values[rng.integer(0, 3)];
      clean.ids[i] = -1;
      ++wrong;
    }
  device_array<std::int32_t> const ids(p.ids);
  auto plan = expar::gpu::make_plan(ctx, p.view(ids.data()), p.experts);
  REQUIRE(expar::gpu::read_sync(ctx, plan).wrong_ids == wrong);
  auto const host = expar::make_plan(expar::host_context{}, clean.view(clean.ids.data()), 7);
  std::vector<long long> rows;
  for (int t = 0; t < p.tokens; ++t)
    for (int j = 0; j < p.k; ++j) rows.push_back(host.row(t, j));
  REQUIRE(expar_test::rows_of(ctx, plan) == rows);
  require_same(ctx, clean, expar::ragged{}, plan);  // and the count starts anew
}

TEST_CASE("a plan on the device says what it cannot do") {
  expar_test::own_stream const stream;
  expar::gpu::context const ctx(stream);
  device_array<std::int32_t> const ids(std::vector<std::int32_t>(8, 0));
  auto const v = expar::make_view(ids.data(), 4, 2);
  using expar::error, expar::fixed_capacity;
  REQUIRE_THROWS_WITH(expar::gpu::make_plan(ctx, v, 0),
                      "expar: plan: experts is 0; a device plan has 1 to 12000");
  REQUIRE_THROWS_WITH(expar::gpu::make_plan(ctx, v, 12001),
                      "expar: plan: experts is 12001; a device plan has 1 to 12000");
  REQUIRE_THROWS_WITH(expar::gpu::make_plan(ctx, v, 0, fixed_capacity{}),
                      "expar: plan: experts is 0; at least 1 is needed");
  REQUIRE_THROWS_WITH(expar::gpu::make_plan(ctx, v, 2, fixed_capacity{0}),
                      "expar: plan: capacity factor is 0; on a device it is positive, since others "
                      "need the counts");
  REQUIRE_THROWS_WITH(
      expar::gpu::make_plan(ctx, v, 2, fixed_capacity{.rows = -2}),
      "expar: plan: capacity rows is -2; it is at least 0, or -1 for the factor, and "
      "at most 2147483647");
  REQUIRE_THROWS_WITH(expar::gpu::make_plan(ctx, v, 2, expar::ragged{0}),
                      "expar: plan: alignment is 0; it is at least 1");
}

TEST_CASE("a plan that has grown takes one launch and nothing else") {
  if (!expar_test::runtime_calls::counted()) return;
  expar_test::own_stream const stream;
  expar::gpu::context const ctx(stream);
  problem const p(5, 600, 2, 16);
  device_array<std::int32_t> const ids(p.ids);
  expar::gpu::route_plan plan(ctx);
  expar::gpu::make_plan(ctx, p.view(ids.data()), 16, expar::ragged{}, plan);
  auto const before = expar_test::runtime_calls::now();
  expar::gpu::make_plan(ctx, p.view(ids.data()), 16, expar::ragged{}, plan);
  expar::gpu::make_plan(ctx, p.view(ids.data()), 16, expar::fixed_capacity{1}, plan);
  REQUIRE(expar_test::runtime_calls::now().since(before) ==
          std::vector<unsigned long>{2, 0, 0, 0, 0});
  stream.wait();
}

TEST_CASE("a failed call of the runtime becomes an exception once") {
  try {
    expar::gpu::detail::check(cudaSetDevice(1 << 20), "cudaSetDevice", "test");
    FAIL("nothing was thrown");
  } catch (expar::cuda_error const& e) {
    REQUIRE(e.code() != cudaSuccess);
    REQUIRE_THAT(e.what(),
                 Catch::Matchers::StartsWith("expar: test: cudaSetDevice gave CUDA error "));
    REQUIRE(std::string(e.call()) == "cudaSetDevice");
    REQUIRE(std::string(e.place()) == "test");
  }
  REQUIRE(cudaGetLastError() == cudaSuccess);
}

TEST_CASE("a device plan of more rows than memory can hold is refused") {
  expar_test::own_stream const stream;
  expar::gpu::context const ctx(stream);
  device_array<std::int32_t> const id(std::vector<std::int32_t>{0});
  REQUIRE_THROWS_WITH(
      expar::gpu::make_plan(ctx, expar::make_view(id.data(), 1, 2147483647), 12000,
                            expar::fixed_capacity{999999}),
      "expar: plan: 12000 experts of 2147481499516353 rows each are more than memory can hold");
  REQUIRE_THROWS_WITH(expar::gpu::plan_workspace_bytes(expar::index_t{1} << 62, 4, 8),
                      "expar: plan: ids has 4611686018427387904 x 4 routes; at most 2147483647 are "
                      "possible");
}

namespace {

/// Gives nothing from a certain moment on, or memory full of ones.
struct odd_memory {
  bool exhausted = false;
  void* allocate(cudaStream_t stream, std::size_t bytes) {
    if (exhausted) throw std::bad_alloc();
    void* const p = expar::gpu::pool_memory{}.allocate(stream, bytes);
    require_success(cudaMemsetAsync(p, 0xff, bytes, stream));
    return p;
  }
  void deallocate(cudaStream_t stream, void* p, std::size_t bytes) {
    expar::gpu::pool_memory{}.deallocate(stream, p, bytes);
  }
};

}  // namespace

TEST_CASE("a plan whose making fails is empty, and is made again") {
  expar_test::own_stream const stream, other;
  odd_memory memory;
  expar::gpu::context const ctx(stream, memory);
  problem const p(7, 300, 2, 9);
  expar::gpu::route_plan plan(ctx);
  require_same(ctx, p, expar::ragged{}, plan);
  device_array<std::int32_t> const ids(p.ids);
  SECTION("no memory") {
    memory.exhausted = true;
    device_array<std::int32_t> const many(std::vector<std::int32_t>(40000, 1));
    REQUIRE_THROWS_AS(expar::gpu::make_plan(ctx, expar::make_view(many.data(), 20000, 2), 9,
                                            expar::ragged{}, plan),
                      std::bad_alloc);
    memory.exhausted = false;
  }
  SECTION("another stream") {
    REQUIRE_THROWS_WITH(
        expar::gpu::make_plan(expar::gpu::context(other), p.view(ids.data()), 9, expar::ragged{},
                              plan),
        "expar: plan: the context has another stream than the one that the plan was constructed "
        "with");
  }
  REQUIRE(plan.tokens() == 0);
  REQUIRE(plan.view().ids == nullptr);
  require_same(ctx, p, expar::ragged{}, plan);

  auto const moved = std::move(plan);
  REQUIRE(moved.tokens() == 300);
  REQUIRE(plan.tokens() == 0);
  REQUIRE(plan.view().ids == nullptr);
}
