// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include <expar/gpu/context.cuh>
#include <expar/router/score.hpp>

#include "network.hpp"

// The layers of model.hpp on a device, a thread for every number and every sum of a row in the
// order of the host: plain, so that they can be read, and so that any device gives the same bits.
// Compiled without contraction of products and sums.
namespace digits::device {

using expar::tensor_view;
template <class T>
using matrix_view = tensor_view<T, 2>;

/// Which layer a row goes through: the same for all, or that of its expert. Null: no row.
template <class Layer>
struct shared_layer {
  Layer* layer;
  __device__ Layer* operator()(index_t) const { return layer; }
};
template <class Layer>
struct layer_of_expert {
  Layer* layers;
  index_t const* offsets;  // [experts + 1], on the device
  int experts;
  __device__ Layer* operator()(index_t row) const {
    for (int e = 0; e < experts; ++e)
      if (row < offsets[e + 1]) return layers + e;
    return nullptr;
  }
};

__device__ inline index_t this_thread() {
  return index_t{blockIdx.x} * blockDim.x + threadIdx.x;
}

/// y = x * weight + bias, and with Relu the positive part of it.
template <bool Relu, int In, int Out, class LayerOf>
__global__ void forward(matrix_view<float const> x, LayerOf layer_of, matrix_view<float> y) {
  index_t const row = this_thread() / Out;
  auto const o = static_cast<int>(this_thread() % Out);
  dense<In, Out> const* const layer = row < x.extents[0] ? layer_of(row) : nullptr;
  if (layer == nullptr) return;
  float sum = layer->bias[o];
  for (int i = 0; i < In; ++i) sum += x.row(row)[i] * layer->weight[i][o];
  y.row(row)[o] = !Relu || sum > 0 ? sum : 0;
}

/// y = the positive part of y + bias.
template <int In, int Out, class LayerOf>
__global__ void bias_relu(LayerOf layer_of, matrix_view<float> y) {
  index_t const row = this_thread() / Out;
  auto const o = static_cast<int>(this_thread() % Out);
  dense<In, Out> const* const layer = row < y.extents[0] ? layer_of(row) : nullptr;
  if (layer == nullptr) return;
  float const sum = y.row(row)[o] + layer->bias[o];
  y.row(row)[o] = sum > 0 ? sum : 0;
}

/// dx = dy * weight transposed, added to dx where Add.
template <bool Add, int In, int Out, class LayerOf>
__global__ void backward(matrix_view<float const> dy, LayerOf layer_of, matrix_view<float> dx) {
  constexpr int lanes = Out % 8 == 0 ? 8 : 2;
  index_t const row = this_thread() / In;
  auto const i = static_cast<int>(this_thread() % In);
  dense<In, Out> const* const layer = row < dy.extents[0] ? layer_of(row) : nullptr;
  if (layer == nullptr) return;
  float sum[lanes] = {};
  for (int o = 0; o < Out; o += lanes)
    for (int l = 0; l < lanes; ++l) sum[l] += dy.row(row)[o + l] * layer->weight[i][o + l];
  float total = Add ? dx.row(row)[i] : 0;
  for (int l = 0; l < lanes; ++l) total += sum[l];
  dx.row(row)[i] = total;
}

/// The gradient of a layer, summed over rows [offsets[e], offsets[e + 1]) in blocks of `block`
/// rows; blockIdx.y is e. Without offsets: over all rows. From the weights of input `from` on;
/// those of input In are the bias.
template <int In, int Out>
__global__ void gradients(matrix_view<float const> x, matrix_view<float const> dy,
                          index_t const* offsets, index_t block, dense<In, Out>* out, int from) {
  index_t const at = this_thread() + from * Out;
  auto const o = static_cast<int>(at % Out), i = static_cast<int>(at / Out);
  if (i > In) return;
  index_t const first = offsets != nullptr ? offsets[blockIdx.y] : 0;
  index_t const last = offsets != nullptr ? offsets[blockIdx.y + 1] : x.extents[0];
  float total = 0;
  for (index_t begin = first; begin < last; begin += block) {
    float sum = 0;
    for (index_t row = begin; row < begin + block && row < last; ++row)
      sum += i == In ? dy.row(row)[o] : x.row(row)[i] * dy.row(row)[o];
    total += sum;
  }
  (i == In ? out[blockIdx.y].bias[o] : out[blockIdx.y].weight[i][o]) = total;
}

/// dy = 0 where the output y of a positive part is 0.
template <class = void>
__global__ void relu_backward(matrix_view<float const> y, matrix_view<float> dy) {
  index_t const row = this_thread() / width, i = this_thread() % width;
  if (row < dy.extents[0] && !(y.row(row)[i] > 0)) dy.row(row)[i] = 0;
}

/// to += from.
template <class = void>
__global__ void add(matrix_view<float const> from, matrix_view<float> to) {
  index_t const row = this_thread() / width, i = this_thread() % width;
  if (row < to.extents[0]) to.row(row)[i] += from.row(row)[i];
}

/// Scores to their gradient for the mean over `images`, and the probability of each truth.
template <class = void>
__global__ void loss(matrix_view<float> scores, int const* truths, float images,
                     float* probabilities) {
  index_t const t = this_thread();
  if (t >= scores.extents[0]) return;
  probabilities[t] = cross_entropy(scores.row(t), truths[t]);
  for (int c = 0; c < classes; ++c) scores.row(t)[c] /= images;
}

/// Adds the gradient of expar::load_balance_loss() for the load of all ranks, whose counts are
/// `counts`.
struct rank_counts {
  index_t const* counts[experts];
  int ranks;
};
template <class = void>
__global__ void balance_gradient(matrix_view<float const> logits, rank_counts load, double unit,
                                 matrix_view<float> d_logits) {
  index_t const t = this_thread();
  if (t >= logits.extents[0]) return;
  double slopes[experts];
  for (int e = 0; e < experts; ++e) {
    index_t count = 0;
    for (int r = 0; r < load.ranks; ++r) count += load.counts[r][e];
    slopes[e] = unit * static_cast<double>(count);
  }
  float p[experts], mean = 0;
  expar::softmax_score{}(logits.row(t), p, experts);
  for (int e = 0; e < experts; ++e) mean += static_cast<float>(slopes[e]) * p[e];
  for (int e = 0; e < experts; ++e)
    d_logits.row(t)[e] += p[e] * (static_cast<float>(slopes[e]) - mean);
}

/// One step of adam over all numbers of some layers.
template <class = void>
__global__ void adam_step(float* weights, float const* gradient, float* mean, float* square,
                          index_t n, adam_rates rates) {
  index_t const i = this_thread();
  if (i < n) adam_update(weights[i], gradient[i], mean[i], square[i], rates);
}

}  // namespace digits::device
