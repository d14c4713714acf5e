// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include <expar/router/models.hpp>

#include "data.hpp"
#include "model.hpp"

// What a network of train.hpp and one of device.hpp have in common: initial weights and batches.
namespace digits {

inline std::size_t at(index_t i) {
  return static_cast<std::size_t>(i);
}

/// What the network makes of one image.
struct sight {
  int image, guess;
  std::array<std::int32_t, top_k> experts;
  std::array<float, top_k> weights;
  bool right() const { return guess == label(image); }
};

inline double accuracy(std::vector<sight> const& sights) {
  double right = 0;
  for (sight const& s : sights) right += s.right();
  return right / static_cast<double>(sights.size());
}

inline constexpr auto digit_router = expar::models::mixtral({.experts = experts, .top_k = top_k});
/// The coefficient of the load-balance loss.
inline constexpr double balance = 0.1;

// Layers are known by numbers: the experts from 0, the trunk from 100.
inline trunk initial_trunk(std::uint64_t seed) {
  trunk t{};
  initialise(t.embedding, seed, 100, 2.0);
  initialise(t.gate, seed, 101, 1.0);
  initialise(t.readout, seed, 102, 1.0);
  return t;
}
inline expert initial_expert(std::uint64_t seed, int number) {
  expert e{};
  initialise(e, seed, number, 2.0);
  return e;
}
/// Shard s of an expert computes the outputs from s * width / shards on: relu() follows the sum
/// over inputs, so that outputs are what can be divided. It is the expert with zeros in place of
/// the rest. They stay zeros in training, and the sum over the shards of what a row becomes is what
/// it becomes in the whole expert.
inline expert shard_of(expert const& all, int shard, int shards) {
  expert part{};
  for (int o = shard * width / shards; o < (shard + 1) * width / shards; ++o) {
    for (int i = 0; i < width; ++i) part.weight[i][o] = all.weight[i][o];
    part.bias[o] = all.bias[o];
  }
  return part;
}

inline constexpr int batch_size = 100;
inline constexpr int steps_of_epoch = (train_count + batch_size - 1) / batch_size;

/// The images in the order of an epoch, in batches of 100.
inline std::vector<std::vector<int>> batches_of(std::vector<int> const& images, std::uint64_t seed,
                                                int epoch) {
  auto const n = static_cast<int>(images.size());
  auto const order = shuffled(n, seed, order_stream, epoch);
  std::vector<std::vector<int>> batches;
  for (int i = 0; i < n; ++i) {
    if (i % batch_size == 0) batches.emplace_back();
    batches.back().push_back(images[at(order[at(i)])]);
  }
  return batches;
}

}  // namespace digits
