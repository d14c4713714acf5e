// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include <expar/plan/block_placement.hpp>
#include <expar/router/models.hpp>

#include "data.hpp"
#include "model.hpp"

// What a network of train.hpp and one of device.hpp have in common: initial weights, batches, and
// who computes what in which order.
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

// Sums over a batch are made in blocks of images, and the sums of blocks are added in order of the
// blocks on every rank. Ranks get whole blocks: so a sum does not depend on how many ranks there
// are.
inline constexpr int batch_size = 100, block_size = 5;

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

/// Which blocks of a batch of n images a rank has, and the first image of a rank.
inline expar::block_placement blocks_of(int n, int ranks) {
  return {(n + block_size - 1) / block_size, ranks};
}
inline int first_image(expar::block_placement const& blocks, int rank, int n) {
  int const first = (rank < blocks.ranks ? blocks.first(rank) : blocks.experts) * block_size;
  return first < n ? first : n;
}

}  // namespace digits
