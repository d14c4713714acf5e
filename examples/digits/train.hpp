// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <expar/expar.hpp>
#include <expar/report.hpp>

#include "network.hpp"
#include "options.hpp"

namespace digits {

/// Items stand in order on the ranks, place.count(rank) of them on each; every rank gets all.
/// Collective.
template <class T, class Comm, class Place>
std::vector<T> gather(expar::host_context const& ctx, Comm& comm, Place const& place,
                      std::vector<T> mine) {
  int const most = place.most();
  mine.resize(at(most));
  std::vector<T> padded(at(most) * at(comm.size())), all;
  expar::all_gather(ctx, comm, mine.data(), padded.data(), at(most) * sizeof(T));
  for (int rank = 0; rank < comm.size(); ++rank) {
    auto const first = padded.begin() + index_t{most} * rank;
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
/// The trunk (embedding, gate, readout) is replicated, the experts are where the placement has
/// them, and the images of a batch are spread over the ranks. Gradients are sums without order, so
/// that the weights have the same bits for any number of ranks and of copies of an expert. Shards
/// of an expert change them, since what each gives for a token is rounded before it is added. All
/// member functions but the accessors are collective.
template <class Comm>
class network {
 public:
  network(Comm& comm, std::uint64_t seed, expar::placement const& place)
      : comm_(&comm), seed_(seed) {
    moe_.emplace(comm, shape);
    moe_->place(place);
    std::vector<expert> all;
    for (int e = 0; e < experts; ++e) all.push_back(initial_expert(seed, e));
    load(initial_trunk(seed), all);
  }
  /// The experts in blocks on the ranks.
  network(Comm& comm, std::uint64_t seed)
      : network(comm, seed, expar::placement::blocks(experts, comm.size())) {}

  Comm& comm() { return *comm_; }
  expar::placement const& placement() const { return moe_->placement(); }
  /// Whether this is the rank that prints.
  bool speaks() const { return comm_->rank() == 0; }

  /// Collective over all ranks but `lost`, of which the network is from now on. Each keeps its
  /// weights. Experts of which `lost` had the only copy are gone, and their routes are dropped.
  void go_on_without(int lost) {
    auto others = std::make_unique<Comm>(comm_->without(lost));
    auto const place = placement().without(lost);
    batch_ = expar::expert_batch<float>();
    moe_.emplace(*others, shape);
    moe_->place(place);
    others_ = std::move(others);
    comm_ = others_.get();
  }

  /// Runs the network on images; every rank gets what all ranks saw.
  std::vector<sight> look(std::vector<int> const& images) {
    expar::block_placement const place{static_cast<int>(images.size()), comm_->size()};
    int const first = place.first(comm_->rank()), count = place.count(comm_->rank());
    pixels_.resize(count, pixels);
    for (int t = 0; t < count; ++t) draw(images[at(first + t)], {}, pixels_.row(t));
    forward(nothing);
    std::vector<sight> seen;
    for (int t = 0; t < count; ++t) {
      sight s{images[at(first + t)], largest(scores_.row(t)), {}, {}};
      for (int j = 0; j < top_k; ++j)
        s.experts[at(j)] = routes_.ids(t, j), s.weights[at(j)] = routes_.weights(t, j);
      seen.push_back(s);
    }
    return gather(ctx_, *comm_, place, std::move(seen));
  }

  /// One pass over the images in batches of 100. Returns the mean loss.
  double learn(std::vector<int> const& images, int epoch, float rate) {
    return learn(images, epoch, rate, [](auto step) { return step(nothing); });
  }
  /// The same by guard(step), which gives what a step gives: step(meanwhile) learns a batch, and
  /// calls meanwhile() between dispatch and combine. A step that throws has changed no weight, and
  /// may be run again.
  template <class Guard>
  double learn(std::vector<int> const& images, int epoch, float rate, Guard&& guard) {
    double loss = 0;
    for (auto const& batch : batches_of(images, seed_, epoch))
      loss += guard([&](auto meanwhile) { return learn_batch(batch, epoch, rate, meanwhile); });
    return loss / static_cast<double>(images.size());
  }

  /// Where the rows of the last forward pass went.
  expar::routing_report report() { return expar::gather_report(ctx_, *comm_, batch_); }

  /// The same if every expert took at most capacity_factor times its fair share from each rank.
  expar::routing_report report_with_capacity(double capacity_factor) {
    expar::expert_parallel moe(*comm_, shape, expar::fixed_capacity{capacity_factor});
    moe.place(placement());
    expar::expert_batch<float> batch;
    moe.prepare(ctx_, routes_, batch);
    return expar::gather_report(ctx_, *comm_, batch);
  }

  trunk const& trunk_weights() const { return trunk_; }
  /// Puts weights in place of this rank's.
  void load(trunk const& t, std::vector<expert> const& all) {
    trunk_ = t;
    mine_.clear();
    auto const& place = placement();
    for (int slot = place.first(comm_->rank()); slot < place.first(comm_->rank() + 1); ++slot)
      mine_.push_back(
          shard_of(all[at(place.expert_of(slot))], place.shard_of(slot), place.shards()));
    optimisers_.resize(mine_.size());
  }

  /// Of all weights of all ranks, experts in order, all shards of each, without what is lost.
  /// Throws if copies differ.
  std::uint64_t weights_checksum() {
    checksum sum;
    sum.add(numbers(trunk_));
    auto const& place = placement();
    std::vector<expert> slots = gather(ctx_, *comm_, place, mine_);
    for (int slot = 0; slot < place.slot_count(); ++slot) {
      if (place.copy_of(slot) < 0) continue;
      int const e = place.expert_of(slot), first = place.slot(e, 0, place.shard_of(slot));
      if (std::memcmp(&slots[at(slot)], &slots[at(first)], sizeof(expert)) != 0)
        throw std::logic_error("the copies of expert " + std::to_string(e) + " differ");
    }
    for (int e = 0; e < experts; ++e) {
      if (place.copies(e) == 0) continue;
      expert all{};
      for (int shard = 0; shard < place.shards(); ++shard)
        add(numbers(slots[at(place.slot(e, 0, shard))]), numbers(all));
      sum.add(numbers(all));
    }
    return sum.value();
  }

 private:
  static constexpr expar::expert_shape shape{experts, top_k, width};
  static constexpr auto nothing = [] {};

  /// Gradients on the grid, and the loss.
  struct trunk_sums {
    trunk_of<dense_sum> gradient;
    std::int64_t loss;
  };
  template <class Number>
  static void add(std::span<Number> from, std::span<Number> to) {
    for (std::size_t i = 0; i < to.size(); ++i) to[i] += from[i];
  }

  /// pixels_ [T,64] to scores_ [T,10].
  template <class F>
  void forward(F meanwhile) {
    index_t const tokens = pixels_.extent(0);
    x_.resize(tokens, width), logits_.resize(tokens, experts), h_.resize(tokens, width);
    scores_.resize(tokens, classes), routes_.resize(tokens, top_k);
    for (index_t t = 0; t < tokens; ++t) {
      trunk_.embedding.forward(pixels_.row(t), x_.row(t));
      relu(x_.row(t), width);
      trunk_.gate.forward(x_.row(t), logits_.row(t));
    }
    expar::route(ctx_, digit_router, logits_, routes_);
    moe_->dispatch(ctx_, x_, routes_, batch_);
    auto const rows = batch_.rows(), y = batch_.y();
    for_each_row([&](std::size_t slot, index_t row) {
      mine_[slot].forward(rows.row(row), y.row(row));
      relu(y.row(row), width);
    });
    meanwhile();
    moe_->combine(ctx_, batch_, h_);
    for (index_t t = 0; t < tokens; ++t) {
      for (int i = 0; i < width; ++i) h_.row(t)[i] += x_.row(t)[i];
      trunk_.readout.forward(h_.row(t), scores_.row(t));
    }
  }

  template <class F>
  double learn_batch(std::vector<int> const& images, int epoch, float rate, F meanwhile) {
    auto const n = static_cast<int>(images.size());
    expar::block_placement const place{n, comm_->size()};
    int const first = place.first(comm_->rank()), last = place.first(comm_->rank() + 1);

    pixels_.resize(last - first, pixels);
    for (int i = first; i < last; ++i) {
      int const image = images[at(i)];
      draw(image, random_bend(seed_, bend_stream, epoch, image), pixels_.row(i - first));
    }
    forward(meanwhile);

    trunk_sums sums{};
    for (int i = first; i < last; ++i) {
      float* const scores = scores_.row(i - first);
      sums.loss += on_grid(loss_of(cross_entropy(scores, label(images[at(i)]))));
      for (int c = 0; c < classes; ++c) scores[c] /= static_cast<float>(n);
    }
    std::vector<expert_sum> gradients(mine_.size());
    backward(n, sums.gradient, gradients);
    expar::sum_counts(ctx_, *comm_, numbers<std::int64_t>(sums));
    sum_over_copies(gradients);

    optimiser_.step(numbers(trunk_), numbers<std::int64_t>(sums.gradient), rate);
    for (std::size_t slot = 0; slot < mine_.size(); ++slot)
      optimisers_[slot].step(numbers(mine_[slot]), numbers<std::int64_t>(gradients[slot]), rate);
    return from_grid(sums.loss);
  }

  /// The way back: scores_ holds the gradient for the scores of this rank's part of a batch.
  void backward(int images_of_all, trunk_of<dense_sum>& gradient,
                std::vector<expert_sum>& gradients) {
    index_t const tokens = pixels_.extent(0);
    d_h_.resize(tokens, width), d_x_.resize(tokens, width);
    for (index_t t = 0; t < tokens; ++t) {
      gradient.readout.add(h_.row(t), scores_.row(t));
      for (int i = 0; i < width; ++i) d_h_.row(t)[i] = 0;
      trunk_.readout.backward(scores_.row(t), d_h_.row(t));
    }

    // Through the experts.
    d_weights_.resize(tokens, top_k), d_logits_.resize(tokens, experts);
    moe_->combine_backward(ctx_, batch_, d_h_, d_weights_);
    auto const rows = batch_.rows(), y = batch_.y(), d_y = batch_.d_y(), d_rows = batch_.d_rows();
    for_each_row([&](std::size_t slot, index_t row) {
      relu_backward(y.row(row), d_y.row(row), width);
      gradients[slot].add(rows.row(row), d_y.row(row));
      for (int i = 0; i < width; ++i) d_rows.row(row)[i] = 0;
      mine_[slot].backward(d_y.row(row), d_rows.row(row));
    });
    moe_->dispatch_backward(ctx_, batch_, d_x_);

    // Through the router, and towards a balanced load: what counts there is the load of all ranks.
    expar::route_backward(ctx_, digit_router, logits_, routes_, d_weights_, d_logits_);
    auto const own = batch_.plan().counts();
    std::vector<index_t> counts(own.begin(), own.end());
    expar::sum_counts(ctx_, *comm_, counts);
    expar::load_balance_loss_backward(
        ctx_, logits_, counts, {.coefficient = balance, .choices = top_k, .tokens = images_of_all},
        expar::add_to(d_logits_));

    for (index_t t = 0; t < tokens; ++t) {
      gradient.gate.add(x_.row(t), d_logits_.row(t));
      trunk_.gate.backward(d_logits_.row(t), d_x_.row(t));
      for (int i = 0; i < width; ++i) d_x_.row(t)[i] += d_h_.row(t)[i];
      relu_backward(x_.row(t), d_x_.row(t), width);
      gradient.embedding.add(pixels_.row(t), d_x_.row(t));
    }
  }

  /// Every copy of an expert gets what rows did to any of them, and takes the same step.
  void sum_over_copies(std::vector<expert_sum>& gradients) {
    auto const& place = placement();
    if (most_copies(place) <= 1) return;
    std::vector<expert_sum> sums(at(experts * place.shards()));
    auto const sum_of = [&](std::size_t local) -> expert_sum& {
      int const slot = place.first(comm_->rank()) + static_cast<int>(local);
      return sums[at(place.expert_of(slot) * place.shards() + place.shard_of(slot))];
    };
    for (std::size_t local = 0; local < gradients.size(); ++local)
      add(numbers<std::int64_t>(gradients[local]), numbers<std::int64_t>(sum_of(local)));
    expar::sum_counts(ctx_, *comm_,
                      std::span(numbers<std::int64_t>(sums[0]).data(),
                                sums.size() * sizeof(expert_sum) / sizeof(std::int64_t)));
    for (std::size_t local = 0; local < gradients.size(); ++local) gradients[local] = sum_of(local);
  }

  /// f(local slot, row) for the rows of this rank's slots.
  template <class F>
  void for_each_row(F f) {
    auto const offsets = batch_.slot_offsets();
    for (std::size_t slot = 0; slot < mine_.size(); ++slot)
      for (index_t row = offsets[slot]; row < offsets[slot + 1]; ++row) f(slot, row);
  }

  expar::host_context ctx_;
  Comm* comm_;
  std::unique_ptr<Comm> others_;  // once a rank is lost
  std::uint64_t seed_;

  std::optional<expar::expert_parallel<Comm>> moe_;
  expar::routes<float> routes_;
  expar::expert_batch<float> batch_;

  trunk trunk_;
  std::vector<expert> mine_;  // of this rank's slots
  adam optimiser_;
  std::vector<adam> optimisers_;

  matrix pixels_, x_, logits_, h_, scores_;
  matrix d_h_, d_x_, d_logits_, d_weights_;
};

}  // namespace digits
