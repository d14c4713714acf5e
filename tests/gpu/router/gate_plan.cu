// SPDX-License-Identifier: Apache-2.0
#include <expar/gpu/router/gate_plan.cuh>
#include <expar/plan/plan.hpp>

#include "gpu/router/support.cuh"
#include "support/catch.hpp"

using namespace gate_test;

namespace {

template <class Router, class T, class W, class Layout>
void run(expar::gpu::context const& ctx, device_batch<Router, T, W> const& device, Layout layout,
         expar::gpu::route_plan& plan) {
  auto const& r = device.host.router;
  if constexpr (Router::takes_bias)
    expar::gpu::gate_plan(ctx, r, device.logits.view(), device.bias_view(), layout, device.routes(),
                          plan);
  else
    expar::gpu::gate_plan(ctx, r, device.logits.view(), layout, device.routes(), plan);
}

/// The plan has the integers of the host's plan for the ids of the host.
template <class Router, class T, class W, class Layout>
void require_same_plan(expar::gpu::context const& ctx, batch<Router, T, W> const& host,
                       Layout layout, expar::gpu::route_plan const& plan) {
  auto const ids = host.routes(const_cast<std::int32_t*>(host.ids.data()), nullptr).ids;
  auto const by = expar::make_plan(expar::host_context{}, ids, host.router.experts, layout);
  auto const sums = expar::gpu::read_sync(ctx, plan);
  REQUIRE(sums.counts == std::vector<index_t>(by.counts().begin(), by.counts().end()));
  REQUIRE(sums.offsets == std::vector<index_t>(by.offsets().begin(), by.offsets().end()));
  REQUIRE(sums.dropped() == by.dropped());
  REQUIRE(sums.wrong_ids == 0);
  REQUIRE(plan.tokens() == host.tokens);
  REQUIRE(plan.top_k() == host.router.top_k);
  REQUIRE(plan.experts() == host.router.experts);
  REQUIRE(plan.capacity() == by.capacity());
  REQUIRE(plan.max_rows() >= by.rows());
  std::vector<long long> rows;
  for (index_t t = 0; t < host.tokens; ++t)
    for (int j = 0; j < host.router.top_k; ++j) rows.push_back(by.row(t, j));
  bool const same = expar_test::rows_of(ctx, plan) == rows;
  REQUIRE(same);
}

template <class T, class W, class Router>
void require_same(std::uint64_t seed, Router const& r, int tokens, expar::gpu::context const& ctx,
                  expar::gpu::route_plan& plan) {
  expar_test::random rng(seed);
  int const gap = rng.chance(.5) ? 0 : static_cast<int>(rng.integer(1, 4));
  CAPTURE(seed, r.experts, r.top_k, tokens, gap);
  batch<Router, T, W> host(rng, r, tokens, gap);
  auto const require = [&](auto layout) {
    device_batch<Router, T, W> const device(host);
    run(ctx, device, layout, plan);
    REQUIRE(device.same(ctx));
    require_same_plan(ctx, host, layout, plan);
  };
  require(expar::ragged{static_cast<int>(rng.integer(1, 9))});
  require(expar::fixed_capacity{rng.uniform(.5, 2), static_cast<int>(rng.integer(1, 4))});
  require(expar::fixed_capacity{.rows = rng.integer(0, 9)});
}

}  // namespace

TEST_CASE("a gate plan has the routes and rows of the host") {
  expar_test::own_stream const stream;
  expar::gpu::context const ctx(stream);
  expar::gpu::route_plan plan(ctx);  // one for all: larger and smaller batches in turn
  namespace models = expar::models;
  std::uint64_t seed = 1;
  SECTION("softmax in float") {
    int const shapes[][3] = {{1, 1, 40},   {2, 2, 33},    {5, 5, 70},   {8, 2, 300},
                             {60, 4, 40},  {128, 8, 100}, {256, 8, 70}, {384, 6, 40},
                             {896, 32, 9}, {2048, 8, 40}};
    for (auto const& [experts, k, tokens] : shapes)
      require_same<float, float>(seed++, models::mixtral({experts, k}), tokens, ctx, plan);
  }
  SECTION("groups in bfloat16") {
    int const shapes[][4] = {{16, 2, 4, 40}, {160, 6, 8, 33}, {256, 8, 8, 70}, {1024, 8, 8, 40}};
    for (auto const& [experts, k, groups, tokens] : shapes)
      require_same<expar::bfloat16, float>(
          seed++, models::deepseek_v3({experts, k, groups, groups / 2, 2.5}), tokens, ctx, plan);
  }
  SECTION("by a thread per token") {
    require_same<float, float>(seed++, models::mixtral({2100, 3}), 40, ctx, plan);
    require_same<float, float>(seed++, models::mixtral({50, 40}), 70, ctx, plan);
    require_same<float, float>(seed++, models::mixtral({12000, 2}), 33, ctx, plan);
    require_same<float, float>(seed++, models::mixtral({33, 33}), 1100, ctx, plan);
  }
  SECTION("no tokens") {
    require_same<float, float>(seed++, models::mixtral({8, 2}), 0, ctx, plan);
    require_same<float, float>(seed++, models::mixtral({60, 40}), 0, ctx, plan);
  }
}

TEST_CASE("tiles of more tokens give the same rows") {
  expar_test::own_stream const stream;
  expar::gpu::context const ctx(stream);
  expar::gpu::route_plan plan(ctx);
  require_same<float, float>(1, expar::models::mixtral({8, 2}), 4200, ctx, plan);
  require_same<float, float>(2, expar::models::mixtral({5, 1}), 8200, ctx, plan);
}

TEST_CASE("plans for gates and plans for ids take turns in one object") {
  expar_test::own_stream const stream;
  expar::gpu::context const ctx(stream);
  expar::gpu::route_plan plan(ctx);
  expar_test::random rng(3);
  auto const r = expar::models::mixtral({8, 2});
  batch<decltype(r), float, float> host(rng, r, 90);
  device_batch<decltype(r), float, float> const device(host);
  for (int i = 0; i < 2; ++i) {
    run(ctx, device, expar::ragged{4}, plan);
    require_same_plan(ctx, host, expar::ragged{4}, plan);
    expar::gpu::make_plan(ctx, device.routes().ids, 8, expar::ragged{2}, plan);
    require_same_plan(ctx, host, expar::ragged{2}, plan);
  }
}

TEST_CASE("a gate plan that has grown takes one launch and nothing else") {
  if (!expar_test::runtime_calls::counted()) return;
  expar_test::own_stream const stream;
  expar::gpu::context const ctx(stream);
  expar::gpu::route_plan plan(ctx);
  expar_test::random rng(5);
  for (int k : {2, 40}) {  // by lanes and by threads
    auto const r = expar::models::mixtral({60, k});
    batch<decltype(r), float, float> host(rng, r, 70);
    device_batch<decltype(r), float, float> const device(host);
    run(ctx, device, expar::fixed_capacity{1}, plan);
    auto const before = expar_test::runtime_calls::now();
    run(ctx, device, expar::ragged{}, plan);
    run(ctx, device, expar::fixed_capacity{1}, plan);
    REQUIRE(expar_test::runtime_calls::now().since(before) ==
            std::vector<unsigned long>{2, 0, 0, 0, 0});
    stream.wait();
  }
}

TEST_CASE("a gate plan says what it cannot do") {
  expar_test::own_stream const stream;
  expar::gpu::context const ctx(stream);
  expar::gpu::route_plan plan(ctx);
  device_array<float> const numbers(std::vector<float>(16));
  device_array<std::int32_t> const ids(std::vector<std::int32_t>(8));
  auto const r = expar::models::mixtral({4, 2});
  auto const z = expar::make_view(numbers.data(), 2, 4);
  expar::routes_view const routes{expar::make_view(ids.data(), 2, 2),
                                  expar::make_view(numbers.data() + 8, 2, 2)};
  REQUIRE_THROWS_WITH(
      expar::gpu::gate_plan(ctx, r, z, expar::fixed_capacity{0}, routes, plan),
      "expar: gate_plan: capacity factor is 0; on a device it is positive, since others need the "
      "counts");
  REQUIRE_THROWS_WITH(expar::gpu::gate_plan(ctx, r, z, expar::ragged{0}, routes, plan),
                      "expar: gate_plan: alignment is 0; it is at least 1");
  REQUIRE_THROWS_WITH(
      expar::gpu::gate_plan(ctx, expar::models::mixtral({5, 2}), z, expar::ragged{}, routes, plan),
      "expar: gate_plan: logits has extent 4 in dimension 1, but the router's number of experts is "
      "5");
  auto const none = expar::make_view<float>(nullptr, 0, 12001);
  auto const empty = expar::routes_view{expar::make_view<std::int32_t>(nullptr, 0, 2),
                                        expar::make_view<float>(nullptr, 0, 2)};
  REQUIRE_THROWS_WITH(expar::gpu::gate_plan(ctx, expar::models::mixtral({12001, 2}), none,
                                            expar::ragged{}, empty, plan),
                      "expar: gate_plan: experts is 12001; a device plan has 1 to 12000");
}
