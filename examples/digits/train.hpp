// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include <expar/expar.hpp>
#include <expar/report.hpp>

#include "network.hpp"

namespace digits {

/// Items stand in contiguous blocks on the ranks; every rank gets all of them, in order.
/// Collective.
template <class T, class Comm>
std::vector<T> gather(expar::host_context const& ctx, Comm& comm, expar::block_placement place,
                      std::vector<T> mine) {
  auto const most = static_cast<std::size_t>(place.most());
  mine.resize(most);
  std::vector<T> padded(most * static_cast<std::size_t>(comm.size())), all;
  expar::all_gather(ctx, comm, mine.data(), padded.data(), most * sizeof(T));
  for (int rank = 0; rank < comm.size(); ++rank) {
    auto const first = padded.begin() + static_cast<index_t>(most) * rank;
    all.insert(all.end(), first, first + place.count(rank));
  }
  return all;
}

/// One rank of a network of two layers, of which the hidden one is a mixture of experts:
///
///   x = relu(embedding(pixels))                     one token per image
///   h = x + sum over 2 of 8 experts e of weight_e * relu(W_e x + b_e)
///   scores = readout(h)
///
/// The trunk (embedding, gate, readout) is replicated, the experts are spread over the ranks, and
/// so are the images of a batch. All member functions but the accessors are collective.
template <class Comm>
class network {
 public:
  network(Comm& comm, std::uint64_t seed)
      : comm_(comm), seed_(seed), moe_(comm, {experts, top_k, width}) {
    auto const place = moe_.placement();
    for (int e = 0; e < place.count(comm.rank()); ++e)
      mine_.push_back(initial_expert(seed, place.first(comm.rank()) + e));
    optimisers_.resize(mine_.size());
  }

  /// Runs the network on images; every rank gets what all ranks saw.
  std::vector<sight> look(std::vector<int> const& images) {
    expar::block_placement const place{static_cast<int>(images.size()), comm_.size()};
    int const first = place.first(comm_.rank()), count = place.count(comm_.rank());
    pixels_.resize(count, pixels);
    for (int t = 0; t < count; ++t) draw(images[at(first + t)], {}, pixels_.row(t));
    forward();
    std::vector<sight> seen;
    for (int t = 0; t < count; ++t) {
      sight s{images[at(first + t)], largest(scores_.row(t)), {}, {}};
      for (int j = 0; j < top_k; ++j)
        s.experts[at(j)] = routes_.ids(t, j), s.weights[at(j)] = routes_.weights(t, j);
      seen.push_back(s);
    }
    return gather(ctx_, comm_, place, std::move(seen));
  }

  /// One pass over the images in batches of 100. Returns the mean loss.
  double learn(std::vector<int> const& images, int epoch, float rate) {
    double loss = 0;
    for (auto const& batch : batches_of(images, seed_, epoch))
      loss += learn_batch(batch, epoch, rate);
    return loss / static_cast<double>(images.size());
  }

  /// Where the rows of the last forward pass went.
  expar::routing_report report() { return expar::gather_report(ctx_, comm_, batch_); }

  /// The same if every expert took at most capacity_factor times its fair share from each rank.
  expar::routing_report report_with_capacity(double capacity_factor) {
    expar::expert_parallel moe(comm_, {experts, top_k, width},
                               expar::fixed_capacity{capacity_factor});
    expar::expert_batch<float> batch;
    moe.prepare(ctx_, routes_, batch);
    return expar::gather_report(ctx_, comm_, batch);
  }

  trunk const& trunk_weights() const { return trunk_; }
  /// Puts weights in place of this rank's.
  void load(trunk const& t, std::vector<expert> const& all) {
    trunk_ = t;
    auto const first = moe_.placement().first(comm_.rank());
    for (std::size_t e = 0; e < mine_.size(); ++e) mine_[e] = all[at(first) + e];
  }

  /// Of all weights of all ranks, experts in order.
  std::uint64_t weights_checksum() {
    checksum sum;
    sum.add(numbers(trunk_));
    for (expert& e : gather(ctx_, comm_, moe_.placement(), mine_)) sum.add(numbers(e));
    return sum.value();
  }

 private:
  struct block_sum {
    trunk gradient;
    float loss;
  };

  /// pixels_ [T,64] to scores_ [T,10].
  void forward() {
    index_t const tokens = pixels_.extent(0);
    x_.resize(tokens, width), logits_.resize(tokens, experts), h_.resize(tokens, width);
    scores_.resize(tokens, classes), routes_.resize(tokens, top_k);
    for (index_t t = 0; t < tokens; ++t) {
      trunk_.embedding.forward(pixels_.row(t), x_.row(t));
      relu(x_.row(t), width);
      trunk_.gate.forward(x_.row(t), logits_.row(t));
    }
    expar::route(ctx_, digit_router, logits_, routes_);
    moe_.dispatch(ctx_, x_, routes_, batch_);
    y_.resize(batch_.row_count(), width);
    for_each_row([&](std::size_t e, index_t row) {
      mine_[e].forward(batch_.rows().row(row), y_.row(row));
      relu(y_.row(row), width);
    });
    moe_.combine(ctx_, batch_, y_, h_);
    for (index_t t = 0; t < tokens; ++t) {
      for (int i = 0; i < width; ++i) h_.row(t)[i] += x_.row(t)[i];
      trunk_.readout.forward(h_.row(t), scores_.row(t));
    }
  }

  double learn_batch(std::vector<int> const& images, int epoch, float rate) {
    auto const n = static_cast<int>(images.size());
    auto const place = blocks_of(n, comm_.size());
    int const first = first_image(place, comm_.rank(), n);
    int const last = first_image(place, comm_.rank() + 1, n);

    pixels_.resize(last - first, pixels);
    for (int i = first; i < last; ++i) {
      int const image = images[at(i)];
      draw(image, random_bend(seed_, bend_stream, epoch, image), pixels_.row(i - first));
    }
    forward();

    std::vector<block_sum> sums(at(place.count(comm_.rank())));
    for (int i = first; i < last; ++i) {
      float* const scores = scores_.row(i - first);
      sums[at((i - first) / block_size)].loss +=
          loss_of(cross_entropy(scores, label(images[at(i)])));
      for (int c = 0; c < classes; ++c) scores[c] /= static_cast<float>(n);
    }
    std::vector<expert> expert_gradients(mine_.size());
    backward(n, sums, expert_gradients);

    block_sum sum_of_all{};
    for (block_sum& sum : gather(ctx_, comm_, place, std::move(sums))) {
      auto const from = numbers(sum), to = numbers(sum_of_all);
      for (std::size_t i = 0; i < to.size(); ++i) to[i] += from[i];
    }
    optimiser_.step(numbers(trunk_), numbers(sum_of_all.gradient), rate);
    for (std::size_t e = 0; e < mine_.size(); ++e)
      optimisers_[e].step(numbers(mine_[e]), numbers(expert_gradients[e]), rate);
    return static_cast<double>(sum_of_all.loss);
  }

  /// The way back: scores_ holds the gradient for the scores of this rank's part of a batch.
  void backward(int images_of_all, std::vector<block_sum>& sums, std::vector<expert>& gradients) {
    index_t const tokens = pixels_.extent(0);
    auto const gradient = [&](index_t t) -> trunk& { return sums[at(t / block_size)].gradient; };

    d_h_.resize(tokens, width), d_x_.resize(tokens, width);
    for (index_t t = 0; t < tokens; ++t) {
      gradient(t).readout.accumulate(h_.row(t), scores_.row(t));
      for (int i = 0; i < width; ++i) d_h_.row(t)[i] = 0;
      trunk_.readout.backward(scores_.row(t), d_h_.row(t));
    }

    // Through the experts.
    d_y_.resize(batch_.row_count(), width), d_rows_.resize(batch_.row_count(), width);
    d_weights_.resize(tokens, top_k), d_logits_.resize(tokens, experts);
    moe_.combine_backward(ctx_, batch_, d_h_, y_, d_y_, d_weights_);
    for_each_row([&](std::size_t e, index_t row) {
      relu_backward(y_.row(row), d_y_.row(row), width);
      gradients[e].accumulate(batch_.rows().row(row), d_y_.row(row));
      for (int i = 0; i < width; ++i) d_rows_.row(row)[i] = 0;
      mine_[e].backward(d_y_.row(row), d_rows_.row(row));
    });
    moe_.dispatch_backward(ctx_, batch_, d_rows_, d_x_);

    // Through the router, and towards a balanced load: what counts there is the load of all ranks.
    expar::route_backward(ctx_, digit_router, logits_, routes_, d_weights_, d_logits_);
    auto const counts = load_of_all_ranks();
    expar::load_balance_loss_backward(
        ctx_, logits_, counts, {.coefficient = balance, .choices = top_k, .tokens = images_of_all},
        expar::add_to(d_logits_));

    for (index_t t = 0; t < tokens; ++t) {
      gradient(t).gate.accumulate(x_.row(t), d_logits_.row(t));
      trunk_.gate.backward(d_logits_.row(t), d_x_.row(t));
      for (int i = 0; i < width; ++i) d_x_.row(t)[i] += d_h_.row(t)[i];
      relu_backward(x_.row(t), d_x_.row(t), width);
      gradient(t).embedding.accumulate(pixels_.row(t), d_x_.row(t));
    }
  }

  std::vector<index_t> load_of_all_ranks() {
    auto const own = batch_.plan().counts();
    std::vector<index_t> counts(own.size()), all(own.size() * at(comm_.size()));
    expar::all_gather(ctx_, comm_, own.data(), all.data(), own.size_bytes());
    for (std::size_t i = 0; i < all.size(); ++i) counts[i % own.size()] += all[i];
    return counts;
  }

  /// f(local expert, row) for the rows of this rank's experts.
  template <class F>
  void for_each_row(F f) {
    auto const offsets = batch_.expert_offsets();
    for (std::size_t e = 0; e < mine_.size(); ++e)
      for (index_t row = offsets[e]; row < offsets[e + 1]; ++row) f(e, row);
  }

  expar::host_context ctx_;
  Comm& comm_;
  std::uint64_t seed_;

  expar::expert_parallel<Comm> moe_;
  expar::routes<float> routes_;
  expar::expert_batch<float> batch_;

  trunk trunk_ = initial_trunk(seed_);
  std::vector<expert> mine_;
  adam optimiser_;
  std::vector<adam> optimisers_;

  matrix pixels_, x_, logits_, h_, scores_, y_;
  matrix d_h_, d_x_, d_logits_, d_weights_, d_y_, d_rows_;
};

}  // namespace digits
