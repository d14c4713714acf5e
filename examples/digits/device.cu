// SPDX-License-Identifier: Apache-2.0
#include "device.hpp"

#include <cuda_runtime_api.h>

#include <algorithm>

#include <expar/gpu/comm/virtual_ranks.cuh>
#include <expar/gpu/expert_parallel.cuh>
#include <expar/gpu/router/route.cuh>
#include <expar/plan/block_placement.hpp>

#include "blas.cuh"
#include "layers.cuh"

namespace digits {

namespace {

void check(cudaError_t code, char const* call) {
  if (code != cudaSuccess) throw expar::cuda_error(code, call, "expar_demo");
}

class own_stream {
 public:
  own_stream() {
    check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "cudaStreamCreate");
  }
  own_stream(own_stream const&) = delete;
  ~own_stream() { static_cast<void>(cudaStreamDestroy(stream_)); }
  cudaStream_t get() const { return stream_; }
  void wait() const { check(cudaStreamSynchronize(stream_), "cudaStreamSynchronize"); }

 private:
  cudaStream_t stream_ = nullptr;
};

/// Device memory that only ever grows.
template <class T>
class device_array {
 public:
  device_array() = default;
  device_array(device_array const&) = delete;
  ~device_array() { static_cast<void>(cudaFree(data_)); }

  T* resize(index_t n) {
    if (n <= room_) return data_;
    static_cast<void>(cudaFree(data_));
    data_ = nullptr, room_ = 0;
    check(cudaMalloc(reinterpret_cast<void**>(&data_), at(n) * sizeof(T)), "cudaMalloc");
    room_ = n;
    return data_;
  }
  T* data() const { return data_; }

 private:
  T* data_ = nullptr;
  index_t room_ = 0;
};

/// [T, columns] in device memory.
class device_matrix {
 public:
  explicit device_matrix(int columns) : columns_(columns) {}
  void resize(index_t rows) { array_.resize((rows_ = rows) * columns_); }
  tensor_view<float, 2> view() const { return expar::make_view(array_.data(), rows_, columns_); }

 private:
  index_t columns_, rows_ = 0;
  device_array<float> array_;
};

/// Layers, their gradients and what adam remembers of them.
template <class Layers>
struct trained {
  static constexpr index_t floats = sizeof(Layers) / sizeof(float);

  index_t count;
  device_array<Layers> weights, gradients, means, squares;
  adam_schedule schedule;

  explicit trained(std::vector<Layers> const& initial)
      : count(static_cast<index_t>(initial.size())) {
    std::size_t const bytes = initial.size() * sizeof(Layers);
    for (auto* array : {&weights, &gradients, &means, &squares})
      check(cudaMemset(array->resize(count), 0, bytes), "cudaMemset");
    check(cudaMemcpy(weights.data(), initial.data(), bytes, cudaMemcpyHostToDevice), "cudaMemcpy");
    check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");  // own_stream does not wait for these
  }
  std::vector<Layers> read() const {
    std::vector<Layers> all(at(count));
    check(
        cudaMemcpy(all.data(), weights.data(), all.size() * sizeof(Layers), cudaMemcpyDeviceToHost),
        "cudaMemcpy");
    return all;
  }
};

// Sums over a batch are made in blocks of images, and the sums of blocks are added in order of the
// blocks. Ranks get whole blocks: so a sum does not depend on how many ranks there are.
constexpr int block_size = 5;

/// The first image of a rank, of a batch of n.
int first_image(int rank, int ranks, int n) {
  expar::block_placement const place{(n + block_size - 1) / block_size, ranks};
  return std::min(place.first(rank) * block_size, n);
}

constexpr int threads = 128;
unsigned blocks(index_t n) {
  return static_cast<unsigned>((n + threads - 1) / threads);
}

}  // namespace

class device_network::implementation {
  using group = expar::gpu::virtual_ranks;
  struct routes_of_rank {
    tensor_view<std::int32_t, 2> ids;
    tensor_view<float, 2> weights;
  };
  using batch_type = decltype(std::declval<expar::gpu::expert_parallel<group>&>().make_batch<float>(
      expar::window_size{}));

 public:
  implementation(int ranks, std::uint64_t seed)
      : seed_(seed),
        ctx_(stream_),
        ranks_(ctx_, ranks),
        moe_(ranks_, {experts, top_k, width}),
        trunk_({initial_trunk(seed)}),
        experts_(all_experts(seed)) {
    prepare_for(image_count);
  }

  std::string name() const {
    cudaDeviceProp properties{};
    check(cudaGetDeviceProperties(&properties, 0), "cudaGetDeviceProperties");
    return std::string(properties.name) + ", experts by " + blas_.name();
  }

  std::vector<sight> look(std::vector<int> const& images) {
    auto const n = static_cast<int>(images.size());
    expar::block_placement const place{n, ranks_.size()};
    bounds_.clear();
    for (int r = 0; r <= ranks_.size(); ++r)
      bounds_.push_back(r == ranks_.size() ? n : place.first(r));
    learning_ = false;
    upload(images, [](int) { return bend{}; });
    forward();
    std::vector<float> scores(at(n) * classes), weights(at(n) * top_k);
    std::vector<std::int32_t> ids(at(n) * top_k);
    download(scores, scores_.view().data);
    download(weights, weights_.view().data);
    download(ids, ids_.data());
    stream_.wait();
    std::vector<sight> seen;
    for (int t = 0; t < n; ++t) {
      sight s{images[at(t)], largest(&scores[at(t) * classes]), {}, {}};
      for (int j = 0; j < top_k; ++j)
        s.experts[at(j)] = ids[at(t * top_k + j)], s.weights[at(j)] = weights[at(t * top_k + j)];
      seen.push_back(s);
    }
    return seen;
  }

  double learn(std::vector<int> const& images, int epoch, float rate) {
    double loss = 0;
    for (auto const& batch : batches_of(images, seed_, epoch))
      loss += learn_batch(batch, epoch, rate);
    return loss / static_cast<double>(images.size());
  }

  expar::routing_report report() { return report_of(moe_, batch()); }

  expar::routing_report report_with_capacity(double capacity_factor) {
    expar::gpu::expert_parallel moe(ranks_, {experts, top_k, width},
                                    expar::fixed_capacity{capacity_factor});
    auto batch = moe.template make_batch<float>({moe.worst_case_rows(most_tokens()), false});
    moe.prepare(routes(), batch);
    return report_of(moe, batch);
  }

  trunk trunk_weights() const { return trunk_.read()[0]; }
  std::vector<expert> expert_weights() const { return experts_.read(); }

 private:
  static std::vector<expert> all_experts(std::uint64_t seed) {
    std::vector<expert> all;
    for (int e = 0; e < experts; ++e) all.push_back(initial_expert(seed, e));
    return all;
  }
  /// For `blocks` blocks of tokens, spread over the ranks.
  batch_type batch_for(index_t blocks, index_t size) {
    index_t const most = (blocks + ranks_.size() - 1) / ranks_.size() * size;
    return moe_.make_batch<float>({moe_.worst_case_rows(most)});
  }
  index_t tokens() const { return bounds_.back(); }
  index_t most_tokens() const {
    index_t most = 0;
    for (std::size_t r = 0; r + 1 < bounds_.size(); ++r)
      most = std::max<index_t>(most, bounds_[r + 1] - bounds_[r]);
    return most;
  }

  void prepare_for(index_t n) {
    for (auto* m :
         {&pixels_, &x_, &logits_, &h_, &scores_, &d_h_, &d_x_, &d_logits_, &weights_, &d_weights_})
      m->resize(n);
    ids_.resize(n * top_k), truths_.resize(n), probabilities_.resize(n);
  }

  template <class T>
  void download(std::vector<T>& to, T const* from) const {
    check(cudaMemcpyAsync(to.data(), from, to.size() * sizeof(T), cudaMemcpyDeviceToHost,
                          stream_.get()),
          "cudaMemcpyAsync");
  }
  template <class T>
  void copy_up(T* to, std::vector<T> const& from) const {
    check(cudaMemcpyAsync(to, from.data(), from.size() * sizeof(T), cudaMemcpyHostToDevice,
                          stream_.get()),
          "cudaMemcpyAsync");
  }

  /// Enqueues a kernel with a thread for each of n numbers.
  template <class... Parameters, class... Arguments>
  void run(void (*kernel)(Parameters...), index_t n, Arguments... arguments) const {
    run_for_each(1, kernel, n, arguments...);
  }
  /// The same for each of `count` layers.
  template <class... Parameters, class... Arguments>
  void run_for_each(int count, void (*kernel)(Parameters...), index_t n,
                    Arguments... arguments) const {
    if (n == 0 || count == 0) return;
    kernel<<<dim3(blocks(n), static_cast<unsigned>(count)), threads, 0, stream_.get()>>>(
        arguments...);
    check(cudaGetLastError(), "a kernel launch");
  }

  template <class Bend>
  void upload(std::vector<int> const& images, Bend bend_of) {
    auto const n = static_cast<index_t>(images.size());
    prepare_for(n);
    drawn_.resize(at(n) * pixels), labels_.resize(at(n));
    for (std::size_t i = 0; i < images.size(); ++i) {
      draw(images[i], bend_of(images[i]), &drawn_[i * pixels]);
      labels_[i] = label(images[i]);
    }
    copy_up(pixels_.view().data, drawn_);
    copy_up(truths_.data(), labels_);
  }

  template <class View>
  std::vector<View> of_ranks(View all) const {
    std::vector<View> parts;
    for (std::size_t r = 0; r + 1 < bounds_.size(); ++r) {
      View part = all;
      part.data += bounds_[r] * all.strides[0];
      part.extents[0] = bounds_[r + 1] - bounds_[r];
      parts.push_back(part);
    }
    return parts;
  }
  std::vector<routes_of_rank> routes() const {
    auto const ids = of_ranks(expar::make_view(ids_.data(), tokens(), index_t{top_k}));
    auto const weights = of_ranks(weights_.view());
    std::vector<routes_of_rank> all;
    for (std::size_t r = 0; r < ids.size(); ++r) all.push_back({ids[r], weights[r]});
    return all;
  }

  template <class Layer>
  static device::shared_layer<Layer> always(Layer& layer) {
    return {&layer};
  }

  /// pixels_ [T,64] to scores_ [T,10].
  void forward() {
    index_t const n = tokens();
    trunk* const t = trunk_.weights.data();
    run(device::forward<true, pixels, width, device::shared_layer<dense<pixels, width>>>, n * width,
        row_view(pixels_.view()), always(t->embedding), x_.view());
    run(device::forward<false, width, experts, device::shared_layer<dense<width, experts>>>,
        n * experts, row_view(x_.view()), always(t->gate), logits_.view());
    auto const all = expar::make_view(ids_.data(), n, index_t{top_k});
    expar::gpu::route(ctx_, digit_router, logits_.view(), routes_of_rank{all, weights_.view()});
    moe_.dispatch(of_ranks(x_.view()), routes(), batch());
    for_each_rank([&](int r, expert* layers) { experts_forward(r, layers); });
    moe_.combine(batch(), of_ranks(h_.view()));
    run(device::add<>, n * width, row_view(x_.view()), h_.view());
    run(device::forward<false, width, classes, device::shared_layer<dense<width, classes>>>,
        n * classes, row_view(h_.view()), always(t->readout), scores_.view());
  }

  double learn_batch(std::vector<int> const& images, int epoch, float rate) {
    auto const n = static_cast<int>(images.size());
    bounds_.clear();
    for (int r = 0; r <= ranks_.size(); ++r) bounds_.push_back(first_image(r, ranks_.size(), n));
    learning_ = true;
    upload(images, [&](int image) { return random_bend(seed_, bend_stream, epoch, image); });
    forward();
    run(device::loss<>, n, scores_.view(), static_cast<int const*>(truths_.data()),
        static_cast<float>(n), probabilities_.data());
    backward(n);
    step(trunk_, rate);
    step(experts_, rate);

    std::vector<float> probabilities(at(n));
    download(probabilities, probabilities_.data());
    stream_.wait();
    float loss = 0;  // in blocks
    for (int begin = 0; begin < n; begin += block_size) {
      float sum = 0;
      for (int i = begin; i < begin + block_size && i < n; ++i)
        sum += loss_of(probabilities[at(i)]);
      loss += sum;
    }
    return static_cast<double>(loss);
  }

  /// scores_ holds the gradient for the scores of a batch.
  void backward(index_t n) {
    trunk* const t = trunk_.weights.data();
    trunk* const g = trunk_.gradients.data();
    constexpr index_t const* all = nullptr;
    run(device::gradients<width, classes>, (width + 1) * classes, row_view(h_.view()),
        row_view(scores_.view()), all, index_t{block_size}, &g->readout, 0);
    run(device::backward<false, width, classes, device::shared_layer<dense<width, classes>>>,
        n * width, row_view(scores_.view()), always(t->readout), d_h_.view());

    moe_.combine_backward(batch(), of_ranks(d_h_.view()), of_ranks(d_weights_.view()));
    for_each_rank([&](int r, expert* layers) { experts_backward(r, layers); });
    moe_.dispatch_backward(batch(), of_ranks(d_x_.view()));

    auto const ids = expar::make_view(ids_.data(), n, index_t{top_k});
    expar::gpu::route_backward(ctx_, digit_router, logits_.view(),
                               routes_of_rank{ids, weights_.view()}, d_weights_.view(),
                               d_logits_.view());
    device::rank_counts load{{}, ranks_.size()};
    for (int r = 0; r < ranks_.size(); ++r) load.counts[r] = batch().plan(r).view().counts;
    auto const images = static_cast<double>(n);
    run(device::balance_gradient<>, n, row_view(logits_.view()), load,
        balance * experts / (top_k * images * images), d_logits_.view());

    run(device::gradients<width, experts>, (width + 1) * experts, row_view(x_.view()),
        row_view(d_logits_.view()), all, index_t{block_size}, &g->gate, 0);
    run(device::backward<true, width, experts, device::shared_layer<dense<width, experts>>>,
        n * width, row_view(d_logits_.view()), always(t->gate), d_x_.view());
    run(device::add<>, n * width, row_view(d_h_.view()), d_x_.view());
    run(device::relu_backward<>, n * width, row_view(x_.view()), d_x_.view());
    run(device::gradients<pixels, width>, (pixels + 1) * width, row_view(pixels_.view()),
        row_view(d_x_.view()), all, index_t{block_size}, &g->embedding, 0);
  }

  /// One for the images of a batch, and one for all.
  batch_type& batch() { return learning_ ? small_ : large_; }

  template <class F>
  void for_each_rank(F f) {
    for (int r = 0; r < ranks_.size(); ++r) f(r, experts_.weights.data() + batch().first_expert(r));
  }
  using layer = device::layer_of_expert<expert>;

  void experts_forward(int r, expert* layers) {
    auto const x = row_view(batch().rows(r));
    auto const y = batch().y(r);
    layer const of{layers, batch().expert_offsets(r).data, batch().local_experts(r)};
    index_t const all = batch().window_rows() * width;
    if (!blas_) {
      run(device::forward<true, width, width, layer>, all, x, of, y);
      return;
    }
    for_each_expert(r, [&](int e, index_t first, index_t rows) {
      blas_.forward(part(x, first, rows), weights_of(layers[e]), part(y, first, rows));
    });
    run(device::bias_relu<width, width, layer>, all, of, y);
  }
  void experts_backward(int r, expert* layers) {
    auto const x = row_view(batch().rows(r)), y = row_view(batch().y(r));
    auto const d_y = batch().d_y(r), d_rows = batch().d_rows(r);
    int const locals = batch().local_experts(r);
    index_t const* const offsets = batch().expert_offsets(r).data;
    expert* const gradients = experts_.gradients.data() + batch().first_expert(r);
    index_t const all = batch().window_rows() * width;
    run(device::relu_backward<>, all, y, d_y);
    int const from = blas_ ? width : 0;
    run_for_each(locals, device::gradients<width, width>, (width + 1 - from) * width, x,
                 row_view(d_y), offsets, index_t{1} << 40, gradients, from);
    if (!blas_) {
      layer const of{layers, offsets, locals};
      run(device::backward<false, width, width, layer>, all, row_view(d_y), of, d_rows);
      return;
    }
    for_each_expert(r, [&](int e, index_t first, index_t rows) {
      auto const d = part(row_view(d_y), first, rows);
      blas_.backward(d, weights_of(layers[e]), part(d_rows, first, rows));
      blas_.gradient(part(x, first, rows), d, weights_of(gradients[e]));
    });
  }
  /// The weights of a layer in device memory, as a matrix.
  static tensor_view<float, 2> weights_of(expert& layer) {
    return expar::make_view(&layer.weight[0][0], width, width);
  }
  template <class T>
  static tensor_view<T, 2> part(tensor_view<T, 2> v, index_t first, index_t rows) {
    return expar::make_view(v.row(first), rows, v.extents[1], v.strides[0]);
  }
  /// f(local expert, first row, rows), for experts that have any; their number is read back.
  template <class F>
  void for_each_expert(int r, F f) {
    auto const sums = moe_.read_sync(batch())[at(r)];
    for (int e = 0; e < batch().local_experts(r); ++e)
      if (sums.counts[at(e)] > 0) f(e, sums.offsets[at(e)], sums.counts[at(e)]);
  }

  template <class Layers>
  void step(trained<Layers>& layers, float rate) {
    index_t const n = layers.count * trained<Layers>::floats;
    auto const numbers_of = [](device_array<Layers>& a) {
      return reinterpret_cast<float*>(a.data());
    };
    run(device::adam_step<>, n, numbers_of(layers.weights),
        static_cast<float const*>(numbers_of(layers.gradients)), numbers_of(layers.means),
        numbers_of(layers.squares), n, layers.schedule.next(rate));
  }

  template <class Moe, class Batch>
  expar::routing_report report_of(Moe const& moe, Batch const& batch) {
    expar::routing_report r;
    r.ranks = ranks_.size();
    r.place = expar::placement::blocks(experts, r.ranks);
    r.counts.resize(experts), r.slot_counts.resize(experts);
    auto const& place = moe.placement();
    for (int rank = 0; rank < r.ranks; ++rank) {
      auto const& plan = batch.plan(rank);
      auto const sums = expar::gpu::read_sync(ctx_, plan);
      r.tokens += plan.tokens(), r.dropped += sums.dropped();
      r.capacity = plan.capacity();
      for (int e = 0; e < experts; ++e) {
        index_t const count = sums.counts[at(e)];
        r.counts[at(e)] += count, r.routes += count;
        r.needed_capacity = std::max(r.needed_capacity, count);
      }
      for (int peer = 0; peer < r.ranks; ++peer) {
        index_t rows = 0;
        for (int e = place.first(peer); e < place.first(peer) + place.count(peer); ++e) {
          index_t const count = sums.counts[at(e)];
          index_t const kept = plan.capacity() < 0 ? count : std::min(count, plan.capacity());
          r.slot_counts[at(e)] += kept, rows += kept;
        }
        r.traffic.push_back(rows);
      }
    }
    return r;
  }

  std::uint64_t seed_;
  own_stream stream_;
  expar::gpu::context ctx_;
  group ranks_;
  expar::gpu::expert_parallel<group> moe_;
  blas blas_{stream_.get()};
  batch_type small_ = batch_for(batch_size / block_size, block_size),
             large_ = batch_for(image_count, 1);
  bool learning_ = false;
  trained<trunk> trunk_;
  trained<expert> experts_;

  std::vector<index_t> bounds_;  // [ranks + 1]: the first token of each rank
  std::vector<float> drawn_;
  std::vector<int> labels_;
  device_matrix pixels_{pixels}, x_{width}, logits_{experts}, h_{width}, scores_{classes};
  device_matrix d_h_{width}, d_x_{width}, d_logits_{experts}, weights_{top_k}, d_weights_{top_k};
  device_array<std::int32_t> ids_;
  device_array<int> truths_;
  device_array<float> probabilities_;
};

device_network::device_network(int ranks, std::uint64_t seed)
    : place_(expar::placement::blocks(experts, ranks)),
      it_(std::make_unique<implementation>(ranks, seed)) {}
device_network::~device_network() = default;

std::string device_network::name() const {
  return it_->name();
}
std::vector<sight> device_network::look(std::vector<int> const& images) {
  return it_->look(images);
}
double device_network::learn(std::vector<int> const& images, int epoch, float rate) {
  return it_->learn(images, epoch, rate);
}
expar::routing_report device_network::report() {
  return it_->report();
}
expar::routing_report device_network::report_with_capacity(double capacity_factor) {
  return it_->report_with_capacity(capacity_factor);
}
trunk device_network::trunk_weights() {
  return it_->trunk_weights();
}
std::vector<expert> device_network::expert_weights() {
  return it_->expert_weights();
}
std::uint64_t device_network::weights_checksum() {
  checksum sum;
  trunk t = trunk_weights();
  sum.add(numbers(t));
  for (expert& e : expert_weights()) sum.add(numbers(e));
  return sum.value();
}

}  // namespace digits
