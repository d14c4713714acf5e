// SPDX-License-Identifier: Apache-2.0
// One layer with experts, by hand and with Expar, under one interface. What stands between the
// marks is what is counted: moe_by_hand.hpp beside its user on one side, the user of Expar on the
// other.
#pragma once

#include <by_hand/moe_by_hand.hpp>

#include <expar/comm/mpi_node.hpp>
#include <expar/expert_parallel.hpp>

struct layer_shape {
  int experts, top_k, hidden;
};

/// Tokens and their routes, what comes of them, and the gradients. Experts are a function
/// f(expert, rows, first, last, out), the same forward and backward.
struct layer_data {
  int tokens, hidden, top_k;
  std::vector<float> x, weights, out, d_out, d_x, d_weights;
  std::vector<int> ids;
};

// by hand: begin
class layer_by_hand {
 public:
  layer_by_hand(MPI_Comm comm, layer_shape s)
      : local_(s.experts), moe_(comm, s.experts, s.top_k, s.hidden) {
    int size = 1;
    MPI_Comm_rank(comm, &rank_);
    MPI_Comm_size(comm, &size);
    local_ /= size;
  }
  template <class Experts>
  void forward(layer_data& d, Experts experts) {
    moe_.dispatch(d.x.data(), d.ids.data(), d.weights.data(), d.tokens);
    run(experts, moe_.rows, moe_.y);
    moe_.combine(d.out.data());
  }
  template <class Experts>
  void backward(layer_data& d, Experts experts) {
    moe_.combine_backward(d.d_out.data(), d.d_weights.data());
    run(experts, moe_.d_y, moe_.d_rows);
    moe_.dispatch_backward(d.d_x.data());
  }

 private:
  template <class Experts>
  void run(Experts experts, std::vector<float> const& in, std::vector<float>& out) {
    for (int l = 0; l < local_; ++l)
      experts(rank_ * local_ + l, in.data(), moe_.offsets[static_cast<std::size_t>(l)],
              moe_.offsets[static_cast<std::size_t>(l) + 1], out.data());
  }
  int rank_ = 0, local_;
  moe_by_hand moe_;
};
// by hand: end

// with Expar: begin
template <class Comm>  // mpi_communicator, or mpi_node_communicator on one machine
class layer_with_expar {
 public:
  layer_with_expar(MPI_Comm comm, layer_shape s)
      : comm_(comm), moe_(comm_, {s.experts, s.top_k, s.hidden}) {}
  template <class Experts>
  void forward(layer_data& d, Experts experts) {
    struct {
      expar::tensor_view<int, 2> ids;
      expar::tensor_view<float, 2> weights;
    } const routes{expar::make_view(d.ids.data(), d.tokens, d.top_k),
                   expar::make_view(d.weights.data(), d.tokens, d.top_k)};
    moe_.dispatch(ctx_, expar::make_view(d.x.data(), d.tokens, d.hidden), routes, batch_);
    run(experts, batch_.rows().data, batch_.y().data);
    moe_.combine(ctx_, batch_, expar::make_view(d.out.data(), d.tokens, d.hidden));
  }
  template <class Experts>
  void backward(layer_data& d, Experts experts) {
    moe_.combine_backward(ctx_, batch_, expar::make_view(d.d_out.data(), d.tokens, d.hidden),
                          expar::make_view(d.d_weights.data(), d.tokens, d.top_k));
    run(experts, batch_.d_y().data, batch_.d_rows().data);
    moe_.dispatch_backward(ctx_, batch_, expar::make_view(d.d_x.data(), d.tokens, d.hidden));
  }

 private:
  template <class Experts>
  void run(Experts experts, float const* in, float* out) {
    for (int l = 0; l < batch_.local_slots(); ++l)
      experts(batch_.expert_of(l), in, batch_.slot_offsets()[static_cast<std::size_t>(l)],
              batch_.slot_offsets()[static_cast<std::size_t>(l) + 1], out);
  }
  expar::host_context ctx_;
  Comm comm_;
  expar::expert_parallel<Comm> moe_;
  expar::expert_batch<float> batch_;
};
// with Expar: end
