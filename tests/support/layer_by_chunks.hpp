// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstring>
#include <string>
#include <vector>

#include <expar/overlap.hpp>

#include "support/random.hpp"

namespace expar_test {

/// A layer of random shape with its placement, the same on all ranks. What ranks bring is drawn by
/// the rank.
struct layer_by_chunks {
  std::uint64_t seed;
  int experts, top_k;
  expar::index_t hidden, hidden_out, alignment, capacity;
  expar::placement place;
  bool quotas = false;

  layer_by_chunks(std::uint64_t seed_of_all, int ranks) : seed(seed_of_all) {
    random rng(seed);
    experts = static_cast<int>(rng.integer(1, 11));
    top_k = static_cast<int>(rng.integer(1, experts < 4 ? experts : 4));
    hidden = rng.integer(1, 40), hidden_out = rng.chance(.5) ? hidden : rng.integer(1, 40);
    alignment = rng.integer(1, 4), capacity = rng.integer(0, 6);
    switch (rng.integer(0, 5)) {
      case 0:
        place = expar::placement::replicated(experts, ranks, static_cast<int>(rng.integer(1, 3)));
        break;
      case 1:
        place = expar::placement::sharded(experts, ranks, static_cast<int>(rng.integer(1, 3)));
        break;
      case 2:
        place = expar::placement::whole(experts, ranks);
        break;
      case 3: {  // some on one rank, the others on any
        std::vector<std::vector<int>> of_rank(static_cast<std::size_t>(ranks));
        auto const any = [&] {
          return static_cast<std::size_t>(rng.integer(0, rng.chance(.5) ? 0 : ranks - 1));
        };
        for (int e = 0; e < experts; ++e)
          for (auto copies = rng.integer(1, 3); copies > 0; --copies) of_rank[any()].push_back(e);
        place = expar::placement::table(experts, of_rank);
        quotas = true;
        break;
      }
      default:
        place = expar::placement::blocks(experts, ranks);
    }
  }
  expar::expert_shape shape() const { return {experts, top_k, hidden, hidden_out}; }
};

template <class T>
class matrix {
 public:
  matrix(expar::index_t rows, expar::index_t columns)
      : rows_(rows), columns_(columns), all(static_cast<std::size_t>(rows * columns)) {}
  template <class F>
  matrix(expar::index_t rows, expar::index_t columns, F f) : matrix(rows, columns) {
    for (T& x : all) x = f();
  }
  expar::tensor_view<T, 2> view() { return expar::make_view(all.data(), rows_, columns_); }

 private:
  expar::index_t rows_, columns_;

 public:
  std::vector<T> all;
};

/// What a layer makes on one rank, byte by byte.
using made_bytes = std::vector<unsigned char>;
template <class View>
void put_bytes(made_bytes& to, View const& v) {
  for (expar::index_t i = 0; i < v.extents[0]; ++i) {
    auto const* const row = reinterpret_cast<unsigned char const*>(v.row(i));
    to.insert(to.end(), row, row + v.extents[1] * expar::index_t{sizeof(*v.data)});
  }
}

/// Forward and backward of a layer with experts that mix columns. One of two ways: the whole, or
/// `Moe` by chunks.
template <class T, class Site>
struct layer_run {
  using S = expar::accumulator_t<T>;
  static constexpr bool at_decode = std::is_same_v<Site, expar::weights_at_decode>,
                        at_encode = std::is_same_v<Site, expar::weights_at_encode>,
                        per_row = std::is_same_v<Site, expar::weights_per_row>;
  layer_by_chunks const& layer;
  int rank;
  random rng;
  expar::index_t tokens;
  matrix<std::int32_t> ids;
  matrix<float> weights;
  matrix<T> x, d_out, out, d_x;
  matrix<float> d_w;
  std::vector<float> of_experts;  // the gradient of a number of each local slot
  int throws_in = -1, calls = 0;  // the call of experts that throws
  int backward_throws_in = -1;

  T number() { return expar::narrow<T>(static_cast<S>(rng.normal())); }
  layer_run(layer_by_chunks const& of, int own, int step)
      : layer(of),
        rank(own),
        rng(of.seed * 1000 + static_cast<std::uint64_t>(own * 17 + step)),
        tokens(rng.chance(.2) ? 0 : rng.integer(1, 25)),
        ids(tokens, of.top_k,
            [&] { return static_cast<std::int32_t>(rng.integer(-1, of.experts - 1)); }),
        weights(tokens, of.top_k, [&] { return static_cast<float>(rng.normal()); }),
        x(tokens, of.hidden, [&] { return number(); }),
        d_out(tokens, of.hidden_out, [&] { return number(); }),
        out(tokens, of.hidden_out),
        d_x(tokens, of.hidden, [&] { return number(); }),
        d_w(tokens, of.top_k, [&] { return static_cast<float>(rng.normal()); }) {}

  struct routes_type {
    expar::tensor_view<std::int32_t, 2> ids;
    expar::tensor_view<float, 2> weights;
  };
  routes_type routes() { return {ids.view(), weights.view()}; }

  template <class Batch>
  void experts(Batch& batch, int first, int last) {
    if (calls++ == throws_in) throw std::runtime_error("an expert is ill");
    auto const rows = batch.rows(), y = batch.y();
    for (int l = first; l < last; ++l) {
      auto const s = static_cast<std::size_t>(l);
      float const factor = .5f + static_cast<float>(batch.expert_of(l));
      for (auto i = batch.slot_offsets()[s]; i < batch.slot_offsets()[s + 1]; ++i)
        for (expar::index_t c = 0; c < layer.hidden_out; ++c) {
          S v = static_cast<S>(factor) * expar::widen(rows.row(i)[c % layer.hidden]) + S{.25};
          if constexpr (per_row) v *= static_cast<S>(batch.row_weights().data[i]);
          y.row(i)[c] = expar::narrow<T>(v);
        }
    }
  }
  template <class Batch>
  void experts_backward(Batch& batch, int first, int last) {
    if (calls++ == backward_throws_in) throw std::runtime_error("a gradient is lost");
    auto const rows = batch.rows(), d_y = batch.d_y(), d_rows = batch.d_rows();
    of_experts.resize(static_cast<std::size_t>(batch.local_slots()));
    for (int l = first; l < last; ++l) {
      auto const s = static_cast<std::size_t>(l);
      float& sum = of_experts[s];
      sum = 0;
      for (auto i = batch.slot_offsets()[s]; i < batch.slot_offsets()[s + 1]; ++i) {
        for (expar::index_t c = 0; c < layer.hidden; ++c) {
          auto const d = expar::widen(d_y.row(i)[c % layer.hidden_out]);
          sum += static_cast<float>(d * expar::widen(rows.row(i)[c]));
          d_rows.row(i)[c] = expar::narrow<T>(d * S{.75} + S{.125});
        }
        if constexpr (per_row) batch.d_row_weights().data[i] = static_cast<S>(sum);
      }
    }
  }

  template <class Moe>
  made_bytes whole(expar::host_context const& ctx, Moe& moe) {
    auto batch = moe.template make_batch<T>();
    if (layer.quotas)
      moe.dispatch(ctx, x.view(), routes(), batch, expar::even_quotas);
    else
      moe.dispatch(ctx, x.view(), routes(), batch);
    experts(batch, 0, batch.local_slots());
    moe.combine(ctx, batch, out.view());
    if constexpr (at_decode)
      moe.combine_backward(ctx, batch, d_out.view(), expar::add_to(d_w.view()));
    else
      moe.combine_backward(ctx, batch, d_out.view());
    experts_backward(batch, 0, batch.local_slots());
    if constexpr (at_decode)
      moe.dispatch_backward(ctx, batch, expar::add_to(d_x.view()));
    else if constexpr (at_encode)
      moe.dispatch_backward(ctx, batch, x.view(), expar::add_to(d_x.view()),
                            expar::add_to(d_w.view()));
    else
      moe.dispatch_backward(ctx, batch, expar::add_to(d_x.view()), expar::add_to(d_w.view()));
    return all_of(batch);
  }
  template <class Moe, class Batch>
  made_bytes by_chunks(expar::host_context const& ctx, Moe& moe, Batch& batch) {
    auto const forward = [&](auto& b, expar::slot_range s) { experts(b, s.first, s.last); };
    auto const back = [&](auto& b, expar::slot_range s) { experts_backward(b, s.first, s.last); };
    if (layer.quotas)
      moe.run(ctx, x.view(), routes(), batch, forward, out.view(), expar::even_quotas);
    else
      moe.run(ctx, x.view(), routes(), batch, forward, out.view());
    calls = 0;
    if constexpr (at_encode)
      moe.run_backward(ctx, d_out.view(), batch, back, x.view(), expar::add_to(d_x.view()),
                       expar::add_to(d_w.view()));
    else
      moe.run_backward(ctx, d_out.view(), batch, back, expar::add_to(d_x.view()),
                       expar::add_to(d_w.view()));
    return all_of(batch);
  }
  template <class Batch>
  made_bytes all_of(Batch& batch) {
    made_bytes all;
    put_bytes(all, out.view()), put_bytes(all, d_x.view()), put_bytes(all, d_w.view());
    put_bytes(all, batch.rows()), put_bytes(all, batch.d_y());
    put_bytes(all, expar::make_view(of_experts.data(), 1,
                                    static_cast<expar::index_t>(of_experts.size())));
    for (auto const n : batch.slot_counts()) all.push_back(static_cast<unsigned char>(n));
    return all;
  }
};

/// Empty if a layer by chunks makes the bytes that the whole makes, on this rank.
template <class T, class Site, class Comm, class Layout>
std::string wrong_by_chunks(expar::host_context const& ctx, Comm& comm,
                            layer_by_chunks const& layer, int chunks, Layout layout) {
  expar::messages<Comm> x(comm);
  expar::expert_parallel whole(x, layer.shape(), layout, Site{});
  expar::overlapped_layer moe(comm, layer.shape(), chunks, layout, Site{});
  whole.place(layer.place), moe.place(layer.place);
  auto batch = moe.template make_batch<T>();
  for (int step = 0; step < 2; ++step) {  // other routes, in the same batch
    layer_run<T, Site> one(layer, comm.rank(), step), other(layer, comm.rank(), step);
    made_bytes const expected = one.whole(ctx, whole), got = other.by_chunks(ctx, moe, batch);
    if (got != expected)
      return "seed " + std::to_string(layer.seed) + ", " + std::to_string(comm.size()) +
             " ranks, " + std::to_string(chunks) + " chunks, step " + std::to_string(step) +
             ": rank " + std::to_string(comm.rank()) + " makes other bytes";
    if (other.calls != chunks) return "experts are not called once for each chunk";
  }
  return "";
}
template <class T, class Site, class Comm>
std::string wrong_in_any_layout(expar::host_context const& ctx, Comm& comm,
                                layer_by_chunks const& layer, int chunks) {
  int const alignment = static_cast<int>(layer.alignment);
  std::string wrong = wrong_by_chunks<T, Site>(ctx, comm, layer, chunks, expar::ragged{alignment});
  if (wrong.empty())
    wrong = wrong_by_chunks<T, Site>(
        ctx, comm, layer, chunks,
        expar::fixed_capacity{.factor = 1, .alignment = alignment, .rows = layer.capacity});
  if (wrong.empty())
    wrong =
        wrong_by_chunks<T, Site>(ctx, comm, layer, chunks, expar::row_budget{20, alignment, true});
  return wrong;
}

}  // namespace expar_test
