// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cmath>
#include <cstdint>
#include <span>
#include <vector>

#include <expar/router/score.hpp>
#include <expar/tensor.hpp>

#include "data.hpp"

namespace digits {

using expar::index_t;

inline constexpr int width = 64, experts = 8, top_k = 2;

/// Rows of floats. The library takes it as it is, because it speaks data(), rank(), extent(i) and
/// stride(i).
class matrix {
 public:
  void resize(index_t rows, index_t columns) {
    rows_ = rows, columns_ = columns;
    values_.resize(static_cast<std::size_t>(rows * columns));
  }
  float* row(index_t i) { return values_.data() + i * columns_; }
  float const* row(index_t i) const { return values_.data() + i * columns_; }

  float* data() { return values_.data(); }
  float const* data() const { return values_.data(); }
  static constexpr int rank() { return 2; }
  index_t extent(std::size_t i) const { return i == 0 ? rows_ : columns_; }
  index_t stride(std::size_t i) const { return i == 0 ? columns_ : 1; }

 private:
  std::vector<float> values_;
  index_t rows_ = 0, columns_ = 0;
};

/// y = x * weight + bias, for one row at a time: every number of a row is a sum in an order that is
/// fixed here, however many rows there are and whoever holds them. That is what makes results
/// independent of the number of ranks; the compiler makes vector code of the inner loops, which run
/// over outputs.
template <int In, int Out>
struct dense {
  float weight[In][Out];
  float bias[Out];

  void forward(float const* x, float* y) const {
    float sum[Out];
    for (int o = 0; o < Out; ++o) sum[o] = bias[o];
    for (int i = 0; i < In; ++i)
      for (int o = 0; o < Out; ++o) sum[o] += x[i] * weight[i][o];
    for (int o = 0; o < Out; ++o) y[o] = sum[o];
  }
  /// Adds the gradient for x to dx.
  void backward(float const* dy, float* dx) const {
    constexpr int lanes = Out % 8 == 0 ? 8 : 2;
    for (int i = 0; i < In; ++i) {
      float sum[lanes] = {};
      for (int o = 0; o < Out; o += lanes)
        for (int l = 0; l < lanes; ++l) sum[l] += dy[o + l] * weight[i][o + l];
      for (int l = 0; l < lanes; ++l) dx[i] += sum[l];
    }
  }
};

/// A number below 2^11 in whole multiples of 2^-40, rounded. Sums of these are exact, and the same
/// in any order: whoever holds which rows, and however many copies an expert has.
inline std::int64_t on_grid(float v) {
  constexpr double middle = 0x1.8p12;  // its neighbours are 2^-40 apart
  return __builtin_bit_cast(std::int64_t, static_cast<double>(v) + middle) -
         __builtin_bit_cast(std::int64_t, middle);
}
inline double from_grid(std::int64_t sum) {
  return static_cast<double>(sum) * 0x1p-40;
}

/// The gradient of a dense layer: the sum over rows, each rounded to the grid.
template <int In, int Out>
struct dense_sum {
  std::int64_t weight[In][Out];
  std::int64_t bias[Out];

  void add(float const* x, float const* dy) {
    for (int i = 0; i < In; ++i)
      for (int o = 0; o < Out; ++o) weight[i][o] += on_grid(x[i] * dy[o]);
    for (int o = 0; o < Out; ++o) bias[o] += on_grid(dy[o]);
  }
};

/// What every rank holds a copy of.
template <template <int, int> class Layer>
struct trunk_of {
  Layer<pixels, width> embedding;
  Layer<width, experts> gate;
  Layer<width, classes> readout;
};
using trunk = trunk_of<dense>;

/// What is spread over the ranks.
using expert = dense<width, width>;
using expert_sum = dense_sum<width, width>;

template <class Number = float, class Parameters>
std::span<Number> numbers(Parameters& p) {
  static_assert(std::is_trivially_copyable_v<Parameters>);
  return {reinterpret_cast<Number*>(&p), sizeof p / sizeof(Number)};
}

/// Initial weights: uniform in +-scale / sqrt(In), a function of (seed, name, place) alone.
template <int In, int Out>
void initialise(dense<In, Out>& layer, std::uint64_t seed, int name, double scale) {
  double const limit = scale / std::sqrt(static_cast<double>(In));
  for (int i = 0; i < In; ++i)
    for (int o = 0; o < Out; ++o) {
      auto const key = hash(seed, weight_stream, name, i * Out + o);
      layer.weight[i][o] = static_cast<float>(limit * uniform(key));
    }
  for (float& b : layer.bias) b = 0;
}

inline void relu(float* x, int n) {
  for (int i = 0; i < n; ++i) x[i] = x[i] > 0 ? x[i] : 0;
}
/// dx = 0 where the output of relu() was 0.
inline void relu_backward(float const* y, float* dx, int n) {
  for (int i = 0; i < n; ++i) dx[i] = y[i] > 0 ? dx[i] : 0;
}

/// Turns the scores of one image into the gradient of its cross-entropy, and returns the
/// probability that they give to the truth.
EXPAR_HD inline float cross_entropy(float* scores, int truth) {
  float p[classes];
  expar::softmax_score{}(static_cast<float const*>(scores), p, classes);
  for (int c = 0; c < classes; ++c) scores[c] = c == truth ? p[c] - 1 : p[c];
  return p[truth];
}
inline float loss_of(float probability) {
  return -std::log(probability > 1e-30f ? probability : 1e-30f);
}

inline int largest(float const* scores) {
  int best = 0;
  for (int c = 1; c < classes; ++c)
    if (scores[c] > scores[best]) best = c;
  return best;
}

/// The optimiser Adam: the rates of one step, and one number.
struct adam_rates {
  float scale, square_scale;
};
EXPAR_HD inline void adam_update(float& weight, float gradient, float& mean, float& square,
                                 adam_rates rates) {
  constexpr float keep = 0.9f, keep_square = 0.99f;
  mean = keep * mean + (1 - keep) * gradient;
  square = keep_square * square + (1 - keep_square) * gradient * gradient;
  weight -= rates.scale * mean / (std::sqrt(square * rates.square_scale) + 1e-8f);
}
class adam_schedule {
 public:
  adam_rates next(float rate) {
    correction_ *= 0.9f, square_correction_ *= 0.99f;
    return {rate / (1 - correction_), 1 / (1 - square_correction_)};
  }

 private:
  float correction_ = 1, square_correction_ = 1;
};

/// Adam for the parameters of one layer or more.
class adam {
 public:
  void step(std::span<float> weights, std::span<std::int64_t const> gradient, float rate) {
    mean_.resize(weights.size()), square_.resize(weights.size());
    adam_rates const rates = schedule_.next(rate);
    for (std::size_t i = 0; i < weights.size(); ++i)
      adam_update(weights[i], static_cast<float>(from_grid(gradient[i])), mean_[i], square_[i],
                  rates);
  }

 private:
  std::vector<float> mean_, square_;
  adam_schedule schedule_;
};

/// FNV-1a with 64 bits over the bytes of all weights.
class checksum {
 public:
  void add(std::span<float const> weights) {
    for (float w : weights) {
      auto const bits = __builtin_bit_cast(std::uint32_t, w);
      for (int shift = 0; shift < 32; shift += 8)
        value_ = (value_ ^ (bits >> shift & 0xff)) * 0x100000001b3u;
    }
  }
  std::uint64_t value() const { return value_; }

 private:
  std::uint64_t value_ = 0xcbf29ce484222325u;
};

}  // namespace digits
