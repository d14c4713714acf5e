// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstring>
#include <limits>

#include <expar/router/models.hpp>
#include <expar/router/route.hpp>

#include "gpu/device.cuh"
#include "support/random.hpp"

namespace gate_test {

using expar::index_t;
using expar_test::device_array;
using expar_test::device_grid;
using expar_test::grid;

/// Logits with ties, zeros of both signs, and in some rows NaN and infinities, or nothing else.
template <class T>
grid<T> random_logits(expar_test::random& rng, int tokens, int experts, int gap) {
  constexpr double inf = std::numeric_limits<double>::infinity();
  grid<T> z(tokens, experts, gap);
  for (int t = 0; t < tokens; ++t) {
    bool const coarse = rng.chance(.3), special = rng.chance(.15), flat = rng.chance(.05);
    bool const masked = rng.chance(.05);
    for (int e = 0; e < experts; ++e) {
      double x = flat     ? (rng.chance(.5) ? 0. : -0.)
                 : coarse ? static_cast<double>(rng.integer(-8, 8)) / 4
                          : rng.uniform(-6, 6);
      if (special && rng.chance(.3))
        x = rng.chance(.5) ? -inf : rng.chance(.7) ? std::nan("") : rng.chance(.5) ? inf : 200;
      if (masked) x = rng.chance(.5) ? -inf : std::nan("");
      z.set(t, e, x);
    }
  }
  return z;
}

template <class T>
std::vector<T> random_numbers(expar_test::random& rng, std::size_t n) {
  std::vector<T> all;
  for (std::size_t i = 0; i < n; ++i)
    all.push_back(expar::narrow<T>(static_cast<expar::accumulator_t<T>>(
        rng.chance(.3) ? static_cast<double>(rng.integer(-2, 2)) / 8 : rng.uniform(-.5, .5))));
  return all;
}

/// Bit for bit.
template <class T>
bool same_bytes(std::vector<T> const& a, std::vector<T> const& b) {
  return a.size() == b.size() &&
         (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
}

/// A batch for a router, and what the host makes of it. Rows of all tensors have gaps that must
/// survive.
template <class Router, class T, class W>
struct batch {
  using B = expar::accumulator_t<T>;
  Router router;
  index_t tokens, pitch;
  grid<T> logits;
  std::vector<B> bias;
  std::vector<std::int32_t> ids;
  std::vector<W> weights;

  batch(expar_test::random& rng, Router const& r, int tokens_, int gap = 0)
      : router(r),
        tokens(tokens_),
        pitch(r.top_k + gap),
        logits(random_logits<T>(rng, tokens_, r.experts, gap)),
        bias(random_numbers<B>(rng, static_cast<std::size_t>(r.experts))),
        ids(static_cast<std::size_t>(tokens * pitch), 77),
        weights(static_cast<std::size_t>(tokens * pitch), expar::narrow<W>(77)) {
    auto const to = routes(ids.data(), weights.data());
    if constexpr (Router::takes_bias)
      expar::route(expar::host_context{}, router, logits.view(), bias, to);
    else
      expar::route(expar::host_context{}, router, logits.view(), to);
  }
  expar::routes_view<W> routes(std::int32_t* i, W* w) const {
    index_t const k = router.top_k;
    return {expar::make_view(i, tokens, k, pitch), expar::make_view(w, tokens, k, pitch)};
  }
};

/// The same batch on the device, its routes not yet made.
template <class Router, class T, class W>
struct device_batch {
  using B = expar::accumulator_t<T>;
  batch<Router, T, W>& host;
  device_grid<T> logits;
  device_array<B> bias;
  device_array<std::int32_t> ids;
  device_array<W> weights;

  explicit device_batch(batch<Router, T, W>& from, index_t shift = 0)
      : host(from),
        logits(from.logits, shift),
        bias(from.bias),
        ids(std::vector<std::int32_t>(from.ids.size(), 77)),
        weights(std::vector<W>(from.weights.size(), expar::narrow<W>(77))) {}

  expar::routes_view<W> routes() const { return host.routes(ids.data(), weights.data()); }
  auto bias_view() const { return expar::make_view<B const>(bias.data(), host.router.experts); }

  /// Whether the routes are those of the host, bit for bit.
  bool same(expar::gpu::context const& ctx) const {
    expar_test::require_success(cudaStreamSynchronize(ctx.stream()));
    return same_bytes(ids.read(), host.ids) && same_bytes(weights.read(), host.weights);
  }
};

}  // namespace gate_test
