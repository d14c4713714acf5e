// SPDX-License-Identifier: Apache-2.0
#include <expar/gpu/router/gate_plan.cuh>
#include <expar/gpu/workspace.cuh>
#include <expar/plan/plan.hpp>

#include "gpu/router/support.cuh"
#include "support/catch.hpp"

using expar::index_t;
using expar_test::device_array;
using expar_test::runtime_calls;

namespace {

/// `bytes` bytes of device memory as a workspace. The interpreter sees every step beyond them.
class workspace {
 public:
  explicit workspace(std::size_t bytes)
      : bytes_(std::vector<unsigned char>(bytes)), memory(bytes_.data(), bytes) {}

 private:
  device_array<unsigned char> bytes_;

 public:
  expar::gpu::workspace_memory memory;
};

std::string too_small(std::size_t needed, std::size_t all, std::size_t left) {
  return "expar: workspace: " + std::to_string(needed) + " bytes are needed, but of " +
         std::to_string(all) + " bytes " + std::to_string(left) + " are left";
}

/// f(context) with exactly `bytes` bytes works and allocates nothing; with one less it throws.
template <class F>
void require_exact(std::size_t bytes, F f) {
  expar_test::own_stream const stream;
  {
    workspace w(bytes);
    expar::gpu::context const ctx(stream, w.memory);
    auto const before = runtime_calls::now();
    f(ctx);
    auto const calls = runtime_calls::now().since(before);
    REQUIRE(calls[1] + calls[2] == 0);
    stream.wait();
  }
  if (bytes == 0) return;
  workspace w(bytes - 1);
  expar::gpu::context const ctx(stream, w.memory);
  REQUIRE_THROWS_WITH(f(ctx), too_small(bytes, bytes - 1, bytes - 1));
}

}  // namespace

TEST_CASE("a workspace gives out its bytes, and again what came back in reverse order") {
  workspace w(1000);
  auto& m = w.memory;
  auto const at = [&](std::size_t n) { return static_cast<std::byte*>(m.allocate(nullptr, n)); };
  std::byte* const a = at(1);
  std::byte* const b = at(256);
  REQUIRE(b - a == 256);
  std::byte* const c = at(257);
  REQUIRE(c - b == 256);
  REQUIRE_THROWS_WITH(at(1), too_small(1, 1000, 0));
  m.deallocate(nullptr, c, 257);
  REQUIRE_THROWS_WITH(at(489), too_small(489, 1000, 488));
  REQUIRE(at(488) == c);
  m.deallocate(nullptr, b, 256);  // out of order: it comes back with the last
  m.deallocate(nullptr, c, 488);
  REQUIRE(at(1) == c);
  m.deallocate(nullptr, a, 1);
  m.deallocate(nullptr, c, 1);
  REQUIRE(at(1000) == a);
  m.deallocate(nullptr, a, 1000);
  for (int i = 0; i < 100; ++i) m.deallocate(nullptr, at(700), 700);
}

TEST_CASE("a workspace begins at a multiple of 256") {
  expar::gpu::workspace_memory const none(nullptr, 0);
  REQUIRE_THROWS_WITH(expar::gpu::workspace_memory(reinterpret_cast<void*>(1024 + 8), 100),
                      "expar: workspace: the address is 8 bytes behind a multiple of 256");
}

TEST_CASE("a plan stands in as many bytes as were told, for this batch and smaller ones") {
  for (std::uint64_t seed = 1; seed <= 10; ++seed) {
    expar_test::random rng(seed);
    index_t const tokens = rng.integer(0, 200);
    int const experts = static_cast<int>(rng.integer(1, rng.chance(.3) ? 3000 : 60));
    int const k = static_cast<int>(rng.integer(1, experts < 9 ? experts : 9));
    CAPTURE(tokens, k, experts);
    std::vector<std::int32_t> ids;
    for (index_t i = 0; i < tokens * k; ++i)
      ids.push_back(static_cast<std::int32_t>(rng.integer(-1, experts - 1)));
    device_array<std::int32_t> const on_device(ids);
    auto const test = [&](auto layout) {
      require_exact(
          expar::gpu::plan_workspace_bytes(tokens, k, experts, layout), [&](auto const& ctx) {
            for (index_t n : {tokens, tokens / 3}) {
              auto const plan = expar::gpu::make_plan(ctx, expar::make_view(on_device.data(), n, k),
                                                      experts, layout);
              auto const host = expar::make_plan(expar::host_context{},
                                                 expar::make_view(std::as_const(ids).data(), n, k),
                                                 experts, layout);
              REQUIRE(expar::gpu::read_sync(ctx, plan).rows() == host.rows());
            }
          });
    };
    test(expar::ragged{3});
    test(expar::fixed_capacity{1});
  }
}

TEST_CASE("gates and their plans stand in as many bytes as were told") {
  namespace models = expar::models;
  auto const test = [](auto type, auto const& router, int tokens) {
    using T = decltype(type);
    using A = expar::accumulator_t<T>;
    CAPTURE(router.experts, router.top_k, tokens);
    expar_test::random rng(7);
    gate_test::batch<std::remove_cvref_t<decltype(router)>, T, A> host(rng, router, tokens);
    gate_test::device_batch const device(host);
    auto const logits = device.logits.view();
    auto const in_layout = [&](auto layout) {
      auto const bytes = expar::gpu::gate_plan_workspace_bytes<T>(router, tokens, layout);
      require_exact(bytes, [&](auto const& ctx) {
        expar::gpu::route_plan plan(ctx);
        expar::gpu::gate_plan(ctx, router, logits, layout, device.routes(), plan);
        REQUIRE(device.same(ctx));
      });
    };
    in_layout(expar::ragged{});
    in_layout(expar::fixed_capacity{1.25});
    require_exact(expar::gpu::route_workspace_bytes<T>(router, tokens), [&](auto const& ctx) {
      for (int i = 0; i < 3; ++i)  // what a call needs comes back
        expar::gpu::route(ctx, router, logits, device.routes());
      REQUIRE(device.same(ctx));
    });
    gate_test::grid<T> d(tokens, router.experts);
    gate_test::device_grid<T> const d_logits(d);
    require_exact(expar::gpu::route_backward_workspace_bytes<T>(router, tokens),
                  [&](auto const& ctx) {
                    expar::gpu::route_backward(ctx, router, logits, device.routes(),
                                               device.routes().weights, d_logits.view());
                  });
  };
  test(0.f, models::mixtral({8, 2}), 70);
  test(0.f, models::mixtral({60, 40}), 33);
  test(0.f, models::mixtral({2100, 3}), 40);
  test(0., models::mixtral({1100, 2}), 40);
  REQUIRE(expar::gpu::route_workspace_bytes(models::mixtral({2048, 32}), 4096) == 0);
  REQUIRE(expar::gpu::route_backward_workspace_bytes(models::mixtral({2048, 32}), 4096) == 0);
  REQUIRE(expar::gpu::route_workspace_bytes(models::mixtral({2049, 2}), 4096) > 0);
  REQUIRE(expar::gpu::route_workspace_bytes<double>(models::mixtral({1025, 2}), 4096) > 0);
}

TEST_CASE("a larger batch never needs fewer bytes") {
  expar_test::random rng(1);
  for (int i = 0; i < 60; ++i) {
    int const experts = static_cast<int>(rng.integer(1, rng.chance(.5) ? 12000 : 300));
    int const k = static_cast<int>(rng.integer(1, experts < 40 ? experts : 40));
    CAPTURE(experts, k);
    auto const router = expar::models::mixtral({experts, k});
    std::size_t plan = 0, gate = 0, capacity = 0, route = 0, backward = 0;
    bool grows = true;
    auto const grow = [&](std::size_t& from, std::size_t to) {
      grows = grows && to >= from;
      from = to;
    };
    index_t tokens = 0;
    for (int n = 0; n < 3000; ++n) {
      grow(plan, expar::gpu::plan_workspace_bytes(tokens, k, experts));
      grow(gate, expar::gpu::gate_plan_workspace_bytes(router, tokens));
      grow(capacity,
           expar::gpu::gate_plan_workspace_bytes(router, tokens, expar::fixed_capacity{}));
      grow(route, expar::gpu::route_workspace_bytes(router, tokens));
      grow(backward, expar::gpu::route_backward_workspace_bytes(router, tokens));
      tokens += rng.integer(1, 1 + tokens / 50);
      // Both sides of where tiles get larger.
      if (rng.chance(.1) && tokens < 100000) tokens = std::bit_ceil(static_cast<unsigned>(tokens));
      if (tokens > 1000000) break;
    }
    REQUIRE(grows);
  }
}

TEST_CASE("what asks for a size names what is wrong") {
  using namespace expar::gpu;
  auto const r = expar::models::mixtral({8, 2});
  REQUIRE_THROWS_WITH(plan_workspace_bytes(-1, 2, 8),
                      "expar: plan_workspace_bytes: tokens is -1 and top_k is 2; neither is "
                      "negative");
  REQUIRE_THROWS_WITH(plan_workspace_bytes(1, 2, 12001),
                      "expar: plan: experts is 12001; a device plan has 1 to 12000");
  REQUIRE_THROWS_WITH(plan_workspace_bytes(1, 2, 8, expar::ragged{0}),
                      "expar: plan: alignment is 0; it is at least 1");
  REQUIRE_THROWS_WITH(gate_plan_workspace_bytes(r, -1),
                      "expar: gate_plan_workspace_bytes: tokens is -1; it is not negative");
  REQUIRE_THROWS_WITH(
      gate_plan_workspace_bytes(r, 1, expar::fixed_capacity{0}),
      "expar: gate_plan_workspace_bytes: capacity factor is 0; on a device it is positive, since "
      "others need the counts");
  REQUIRE_THROWS_WITH(route_workspace_bytes(r, -2),
                      "expar: route_workspace_bytes: tokens is -2; it is not negative");
  REQUIRE_THROWS_WITH(route_backward_workspace_bytes(expar::models::mixtral({2, 3}), 1),
                      "expar: route_backward_workspace_bytes: top_k is 3, but there are only 2 "
                      "experts");
}
