// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

#include "digits_data.hpp"

namespace digits {

inline constexpr int side = 8, pixels = side * side, classes = 10;
inline constexpr int image_count = 1797, train_count = 1500;

/// A number that depends on what it is for and on nothing else: not on who asks, when, or on which
/// rank. (The finalizer of splitmix64, once per argument.)
template <class... Keys>
std::uint64_t hash(Keys... keys) {
  std::uint64_t state = 0;
  auto const mix = [&](std::uint64_t key) {
    state = (state ^ key) + 0x9e3779b97f4a7c15u;
    state = (state ^ (state >> 30)) * 0xbf58476d1ce4e5b9u;
    state = (state ^ (state >> 27)) * 0x94d049bb133111ebu;
    state ^= state >> 31;
  };
  (mix(static_cast<std::uint64_t>(keys)), ...);
  return state;
}

/// What hash() is asked for.
enum stream : int { split_stream, order_stream, bend_stream, weight_stream };

/// A hash as a number in [-1, 1).
inline double uniform(std::uint64_t hash) {
  return static_cast<double>(hash >> 11) * 0x1p-52 - 1;
}

/// The numbers 0 .. n-1 in an order that the keys decide.
template <class... Keys>
std::vector<int> shuffled(int n, Keys... keys) {
  std::vector<int> order(static_cast<std::size_t>(n));
  for (int i = 0; i < n; ++i) order[static_cast<std::size_t>(i)] = i;
  for (int i = n - 1; i > 0; --i) {
    auto const j = hash(keys..., i) % static_cast<std::uint64_t>(i + 1);
    std::swap(order[static_cast<std::size_t>(i)], order[j]);
  }
  return order;
}

inline int ink(int image, int pixel) {
  char const c = drawings[image][pixel];
  return c <= '9' ? c - '0' : c - 'a' + 10;
}
inline int label(int image) {
  return drawings[image][pixels] - '0';
}

/// How far a drawing is bent: the pixel at p, measured from the middle, comes from p + move + slope
/// p.
struct bend {
  float move[2]{}, slope[2][2]{};
};

/// A small bend that the keys decide. Training on bent digits teaches the shapes, not the pixels.
template <class... Keys>
bend random_bend(Keys... keys) {
  auto const draw = [&](int what, double most) {
    return static_cast<float>(most * uniform(hash(keys..., what)));
  };
  return {{draw(0, .7), draw(1, .7)}, {{draw(2, .2), draw(3, .2)}, {draw(4, .2), draw(5, .2)}}};
}

/// Writes the pixels of a bent image, as numbers around 0. What lies between pixels is
/// interpolated.
inline void draw(int image, bend const& by, float* out) {
  auto const at = [&](int x, int y) {
    bool const inside = x >= 0 && x < side && y >= 0 && y < side;
    return static_cast<float>(inside ? ink(image, y * side + x) : 0);
  };
  constexpr float middle = (side - 1) / 2.f;
  for (int i = 0; i < pixels; ++i) {
    float const x = static_cast<float>(i % side) - middle,
                y = static_cast<float>(i / side) - middle;
    float const from_x = x + by.move[0] + by.slope[0][0] * x + by.slope[0][1] * y + middle;
    float const from_y = y + by.move[1] + by.slope[1][0] * x + by.slope[1][1] * y + middle;
    int const left = static_cast<int>(std::floor(from_x)),
              top = static_cast<int>(std::floor(from_y));
    float const u = from_x - static_cast<float>(left), v = from_y - static_cast<float>(top);
    float const upper = (1 - u) * at(left, top) + u * at(left + 1, top);
    float const lower = (1 - u) * at(left, top + 1) + u * at(left + 1, top + 1);
    out[i] = ((1 - v) * upper + v * lower) / 8 - .625f;
  }
}

/// The split is the same for every seed, so that accuracies can be compared.
inline std::vector<int> train_split() {
  auto order = shuffled(image_count, split_stream);
  return {order.begin(), order.begin() + train_count};
}
inline std::vector<int> test_split() {
  auto order = shuffled(image_count, split_stream);
  return {order.begin() + train_count, order.end()};
}

}  // namespace digits
