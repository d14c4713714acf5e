// SPDX-License-Identifier: Apache-2.0
#include <expar/gpu/router/route.cuh>

#include "gpu/router/support.cuh"
#include "support/catch.hpp"

using namespace gate_test;

namespace {

/// route() and its adjoint give the bytes of the host.
template <class T, class W, class Router>
void require_same(std::uint64_t seed, Router const& r, int tokens) {
  expar_test::random rng(seed);
  int const gap = rng.chance(.4) ? 0 : static_cast<int>(rng.integer(1, 4));
  CAPTURE(seed, r.experts, r.top_k, tokens, gap);
  expar_test::own_stream const stream;
  expar::gpu::context const ctx(stream);
  batch<Router, T, W> host(rng, r, tokens, gap);
  device_batch<Router, T, W> device(host, rng.chance(.3) ? 1 : 0);
  if constexpr (Router::takes_bias)
    expar::gpu::route(ctx, r, device.logits.view(), device.bias_view(), device.routes());
  else
    expar::gpu::route(ctx, r, device.logits.view(), device.routes());
  REQUIRE(device.same(ctx));

  // Some ids are taken out, and one is named twice.
  for (auto& id : host.ids)
    if (rng.chance(.1)) id = -1;
  if (tokens > 0 && r.top_k > 1) host.ids[1] = host.ids[0];
  device_array<std::int32_t> const ids(host.ids);
  auto dw = random_numbers<W>(rng, host.ids.size());
  device_array<W> const d_weights(dw);
  grid<T> dz(tokens, r.experts, gap);
  device_grid<T> const d_logits(dz);
  auto const on_host = host.routes(host.ids.data(), dw.data());
  auto const on_device = host.routes(ids.data(), d_weights.data());
  expar::gpu::route_backward(ctx, r, device.logits.view(), on_device, on_device.weights,
                             d_logits.view());
  expar::route_backward(expar::host_context{}, r, host.logits.view(), on_host, on_host.weights,
                        dz.view());
  stream.wait();
  grid<T> got(tokens, r.experts, gap);
  d_logits.read(got);
  bool const same =
      tokens == 0 ||
      std::memcmp(got.view().data, dz.view().data,
                  static_cast<std::size_t>(tokens * dz.view().strides[0]) * sizeof(T)) == 0;
  REQUIRE(same);
}

constexpr auto softmax(int experts, int k) {
  return expar::models::mixtral({experts, k});
}
constexpr auto sigmoid_biased(int experts, int k) {
  return expar::models::glm_4_5({.experts = experts, .top_k = k, .scale = 2.5});
}
constexpr auto softmax_biased(int experts, int k) {
  return expar::router({experts, k}, expar::softmax_score{}, expar::biased_key{});
}
constexpr auto grouped(int experts, int k, int groups, int top_groups, int best_of,
                       bool zero_others = false) {
  return expar::router({experts, k}, expar::sigmoid_score{}, expar::biased_key{},
                       expar::group_limited{groups, top_groups, best_of, zero_others},
                       expar::scale{2.5}, expar::renormalize{.epsilon = .5});
}

/// Policies of the user's own that say no more than they must.
struct step_score {
  template <class A>
  EXPAR_HD void operator()(A const* z, A* s, int experts) const {
    for (int e = 0; e < experts; ++e)
      s[e] = expar::detail::masked(z[e]) ? A(0) : z[e] > A(0) ? A(1) : A(.25);
  }
  template <class A>
  EXPAR_HD void vjp(A const*, A const* s, A const* ds, A* dz, int experts) const {
    for (int e = 0; e < experts; ++e) dz[e] = expar::detail::multiply(s[e], ds[e]);
  }
};
struct logit_key {
  static constexpr bool takes_bias = false;
  template <class A>
  EXPAR_HD void operator()(A const* z, A const*, A const*, A* keys, int experts) const {
    for (int e = 0; e < experts; ++e) keys[e] = z[e];
  }
};

}  // namespace

TEST_CASE("device routes have the bytes of the host: softmax in float") {
  int const shapes[][3] = {{1, 1, 40},  {2, 2, 33},   {5, 3, 70},   {8, 2, 100},  {60, 4, 40},
                           {72, 6, 40}, {128, 8, 64}, {160, 6, 20}, {256, 8, 40}, {256, 32, 8},
                           {384, 8, 9}, {896, 6, 9},  {2048, 8, 9}};
  std::uint64_t seed = 1;
  for (auto const& [experts, k, tokens] : shapes)
    require_same<float, float>(seed++, softmax(experts, k), tokens);
}

TEST_CASE("device routes have the bytes of the host: sigmoid and bias in bfloat16") {
  int const shapes[][3] = {{8, 8, 40},   {16, 2, 33}, {64, 6, 50}, {128, 8, 33},
                           {384, 8, 20}, {512, 1, 9}, {1024, 6, 9}};
  std::uint64_t seed = 20;
  for (auto const& [experts, k, tokens] : shapes)
    require_same<expar::bfloat16, expar::bfloat16>(seed++, sigmoid_biased(experts, k), tokens);
}

TEST_CASE("device routes have the bytes of the host: softmax and bias in half") {
  int const shapes[][3] = {{64, 8, 40}, {72, 1, 33}, {256, 6, 20}, {600, 12, 9}};
  std::uint64_t seed = 40;
  for (auto const& [experts, k, tokens] : shapes)
    require_same<expar::half, float>(seed++, softmax_biased(experts, k), tokens);
}

TEST_CASE("device routes have the bytes of the host: groups in double") {
  int const shapes[][6] = {{8, 3, 4, 2, 2, 50},   {60, 6, 3, 1, 20, 20}, {160, 6, 8, 3, 1, 20},
                           {256, 8, 8, 4, 2, 20}, {40, 8, 40, 9, 1, 20}, {512, 8, 16, 4, 3, 8},
                           {2048, 8, 8, 4, 2, 5}};
  std::uint64_t seed = 60;
  for (auto const& [experts, k, groups, top_groups, best_of, tokens] : shapes)
    for (bool const zero_others : {false, true})
      require_same<double, double>(
          seed++, grouped(experts, k, groups, top_groups, best_of, zero_others), tokens);
}

TEST_CASE("what lanes cannot hold is routed by a thread per token") {
  require_same<float, float>(80, softmax(2100, 6), 5);
  require_same<float, float>(81, softmax(64, 40), 40);
  require_same<double, double>(82, grouped(2100, 8, 6, 2, 2), 3);
  expar::router const own({20, 3}, step_score{}, logit_key{}, expar::renormalize{});
  require_same<float, float>(83, own, 70);
  require_same<float, float>(84, own, 1200);  // more than are in flight
}

TEST_CASE("no tokens are no launch, others are one and nothing else") {
  expar_test::own_stream const stream;
  expar::gpu::context const ctx(stream);
  expar_test::random rng(7);
  auto const r = softmax(16, 2);
  using calls = std::vector<unsigned long>;
  for (int tokens : {0, 70}) {
    batch<decltype(r), float, float> host(rng, r, tokens);
    device_batch<decltype(r), float, float> const device(host);
    device_grid<float> const d_logits(host.logits);
    auto const before = expar_test::runtime_calls::now();
    expar::gpu::route(ctx, r, device.logits.view(), device.routes());
    auto const between = expar_test::runtime_calls::now();
    expar::gpu::route_backward(ctx, r, device.logits.view(), device.routes(),
                               device.routes().weights, d_logits.view());
    if (expar_test::runtime_calls::counted()) {
      unsigned long const launches = tokens == 0 ? 0 : 1;
      REQUIRE(between.since(before) == calls{launches, 0, 0, 0, 0});
      REQUIRE(expar_test::runtime_calls::now().since(between) == calls{launches, 0, 0, 0, 0});
    }
    REQUIRE(device.same(ctx));
  }
}

TEST_CASE("ids that are no experts take no part in the adjoint") {
  expar_test::own_stream const stream;
  expar::gpu::context const ctx(stream);
  expar_test::random rng(8);
  auto const r = softmax(16, 2);
  batch<decltype(r), float, float> host(rng, r, 3);
  device_batch<decltype(r), float, float> const device(host);
  device_array<std::int32_t> const wrong({16, -2, INT32_MAX, INT32_MIN, -1, 1 << 20});
  auto const routes = host.routes(wrong.data(), device.weights.data());
  grid<float> dz(3, 16);
  device_grid<float> const d_logits(dz);
  expar::gpu::route_backward(ctx, r, device.logits.view(), routes, routes.weights, d_logits.view());
  stream.wait();
  d_logits.read(dz);
  for (int t = 0; t < 3; ++t)
    for (int e = 0; e < 16; ++e) REQUIRE(dz.get(t, e) == 0);
}

TEST_CASE("routing on the device refuses what does not fit") {
  expar_test::own_stream const stream;
  expar::gpu::context const ctx(stream);
  device_array<float> const numbers(std::vector<float>(16));
  device_array<std::int32_t> const ids(std::vector<std::int32_t>(8));
  auto const z = expar::make_view(numbers.data(), 2, 4);
  expar::routes_view const routes{expar::make_view(ids.data(), 2, 2),
                                  expar::make_view(numbers.data() + 8, 2, 2)};
  REQUIRE_THROWS_WITH(expar::gpu::route(ctx, softmax(4, 5), z, routes),
                      "expar: route: top_k is 5, but there are only 4 experts");
  REQUIRE_THROWS_WITH(
      expar::gpu::route(ctx, softmax(5, 2), z, routes),
      "expar: route: logits has extent 4 in dimension 1, but the router's number of "
      "experts is 5");
  REQUIRE_THROWS_WITH(expar::gpu::route(ctx, softmax(4, 1), z, routes),
                      "expar: route: ids has extent 2 in dimension 1, but top_k is 1");
  REQUIRE_THROWS_WITH(
      expar::gpu::route(ctx, sigmoid_biased(4, 2), z, expar::make_view(numbers.data(), 3), routes),
      "expar: route: bias has extent 3 in dimension 0, but the router's number of experts is 4");
  REQUIRE_THROWS_WITH(
      expar::gpu::route_backward(ctx, softmax(4, 2), z, routes, routes.weights,
                                 expar::make_view(numbers.data(), 1, 4)),
      "expar: route_backward: d_logits has extent 1 in dimension 0, but the number of tokens is 2");
}
