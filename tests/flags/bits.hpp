// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

#include <expar/router/route.hpp>

// All of it belongs to the file that includes it, so that what two files of a program share is the
// library's alone.
namespace {

/// A digest of the bits that are put in.
struct digest {
  std::uint64_t value = 0xcbf29ce484222325;

  void put(std::uint64_t x) { value = (value ^ x) * 0x100000001b3; }
  template <class T>
  void put(std::vector<T> const& all) {
    static_assert(sizeof(T) == 4 || sizeof(T) == 8);
    for (T const& x : all) {
      std::uint64_t bits = 0;
      std::memcpy(&bits, &x, sizeof x);
      put(bits);
    }
  }
};

template <class T>
struct problem {
  int tokens = 70, experts, top_k;
  std::vector<T> logits, bias, d_weights;

  problem(int e, int k) : experts(e), top_k(k) {
    std::uint32_t state = 1;
    auto const number = [&state] {  // multiples of 1/512 in [-16, 16): among many there are ties
      state = state * 1664525u + 1013904223u;
      return static_cast<T>(static_cast<std::int32_t>(state) >> 18) / 512;
    };
    for (int i = 0; i < tokens * e; ++i) logits.push_back(number());
    for (int i = 0; i < e; ++i) bias.push_back(number() / 64);
    for (int i = 0; i < tokens * k; ++i) d_weights.push_back(number());
    using limits = std::numeric_limits<T>;
    auto const at = [this](int t, int i) { return logits.data() + t * experts + i; };
    T const nan = limits::quiet_NaN(), infinite = limits::infinity(), minus_infinite = -infinite;
    // As bits: without signed zeros, a compiler may take the name of one for the other.
    constexpr std::uint64_t sign = std::uint64_t{1} << 63;
    T minus_zero;
    if constexpr (sizeof(T) == 8)
      minus_zero = __builtin_bit_cast(T, sign);
    else
      minus_zero = __builtin_bit_cast(T, static_cast<std::uint32_t>(sign >> 32));
    for (int i = 0; i < e; ++i) {
      *at(0, i) = nan;
      *at(1, i) = minus_infinite;
      *at(2, i) = infinite;
      *at(3, i) = T(0.25);
      *at(4, i) = i % 2 == 0 ? minus_zero : T(0);
      *at(5, i) = i % 3 == 0 ? nan : *at(5, i);
      *at(6, i) = i % 3 == 1 ? minus_infinite : *at(6, i);
      *at(7, i) = i == 2 || i == 5 ? infinite : *at(7, i);
      *at(8, i) = limits::max();
      *at(9, i) *= 20;
      *at(10, i) = -limits::max();
      *at(11, i) *= T(0x1p-30);
    }
  }
};

template <class T, class Router>
void put_routes(digest& to, problem<T>& p, Router const& router) {
  expar::host_context const ctx;
  expar::routes<T> routes(p.tokens, p.top_k);
  auto const view = [](std::vector<T>& v, int rows, int columns) {
    return expar::make_view(v.data(), rows, columns);
  };
  auto const logits = view(p.logits, p.tokens, p.experts);
  std::vector<T> d_logits(p.logits.size());
  if constexpr (Router::takes_bias)
    expar::route(ctx, router, logits, p.bias, routes);
  else
    expar::route(ctx, router, logits, routes);
  expar::route_backward(ctx, router, logits, routes, view(p.d_weights, p.tokens, p.top_k),
                        view(d_logits, p.tokens, p.experts));
  for (int t = 0; t < p.tokens; ++t)
    for (int j = 0; j < p.top_k; ++j) {
      to.put(std::vector{routes.ids(t, j)});
      to.put(std::vector{routes.weights(t, j)});
    }
  to.put(d_logits);
}

template <class T>
void put_all_routes(digest& to) {
  for (auto const& [experts, top_k] : {std::pair{8, 2}, {24, 5}, {64, 6}, {256, 8}}) {
    problem<T> p(experts, top_k);
    expar::router_shape const shape{experts, top_k};
    put_routes(to, p, expar::router(shape, expar::softmax_score{}));
    put_routes(
        to, p,
        expar::router(shape, expar::sigmoid_score{}, expar::biased_key{},
                      expar::group_limited{4, 3}, expar::renormalize{1e-20}, expar::scale{2.5}));
    if constexpr (sizeof(T) == 4) {
      put_routes(to, p, expar::router(shape, expar::logit_score{}, expar::softmax_weights{}));
      put_routes(to, p,
                 expar::router(shape, expar::soft_cap{20}, expar::sqrt_softplus_score{},
                               expar::biased_key{}, expar::normalize{2}));
    }
  }
}

template <class T>
void put_codes(digest& to) {
  for (std::uint32_t i = 0; i < (1u << 8 * sizeof(T)); ++i) {
    T code;
    code.bits = static_cast<decltype(code.bits)>(i);
    float const wide = expar::widen(code);
    to.put(std::vector{wide});
    to.put(expar::narrow<T>(wide).bits);
    for (std::uint32_t part : {0x00000001u, 0x00000800u, 0x00000fffu, 0x00001000u, 0x00001001u}) {
      float const between = __builtin_bit_cast(float, i << (32 - 8 * sizeof(T)) | part);
      to.put(expar::narrow<T>(between).bits);
    }
  }
}

/// What the library computes, as this file computes it.
std::uint64_t bits() {
  digest all;
  put_all_routes<float>(all);
  put_all_routes<double>(all);
  put_codes<expar::half>(all);
  put_codes<expar::bfloat16>(all);
  put_codes<expar::float8_e4m3>(all);
  for (int i = -4000; i < 4000; ++i) {
    float const x = static_cast<float>(i) / 64;
    all.put(std::vector{expar::detail::exponential(x), expar::detail::hyperbolic_tangent(x),
                        expar::detail::logarithm(1 + static_cast<float>(i * i) / 64),
                        expar::detail::softplus(x)});
  }
  return all.value;
}

}  // namespace
