// SPDX-License-Identifier: Apache-2.0
// A layer over matrices of Eigen, forward and backward, checked against every expert on all tokens.
#include <cmath>
#include <cstdio>
#include <cstdlib>

#include <expar/expar.hpp>
#include <expar/interop/eigen.hpp>

namespace {

constexpr int tokens = 40, experts = 6, top_k = 2, hidden = 8, hidden_out = 5;

template <class T>
using rows_of = Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using matrix = rows_of<float>;

// The weights of expert e.
auto expert(auto& w, int e) {
  return w.middleRows(e * hidden, hidden);
}

struct results {
  rows_of<int> ids{tokens, top_k};
  matrix weights{tokens, top_k}, out{tokens, hidden_out};
  matrix d_weights{tokens, top_k}, d_logits{tokens, experts}, d_x{tokens, hidden};
  matrix d_w{experts * hidden, hidden_out};
};

void layer(matrix const& x, matrix const& logits, matrix const& w, matrix const& d_out,
           results& r) {
  expar::host_context ctx;
  expar::self_communicator comm;
  auto const router = expar::models::mixtral({experts, top_k});
  expar::expert_parallel moe(comm, {experts, top_k, hidden, hidden_out});
  auto batch = moe.make_batch<float>();
  auto const of_slot = [&](expar::tensor_view<float, 2> rows, int s) {
    auto const first = batch.slot_offsets()[std::size_t(s)], count = batch.slot_rows(s).extent(0);
    return expar::eigen::map(rows).middleRows(first, count);
  };

  expar::route(ctx, router, logits, r);
  moe.dispatch(ctx, x, r, batch);
  for (int s = 0; s < batch.local_slots(); ++s)
    of_slot(batch.y(), s) = of_slot(batch.rows(), s) * expert(w, batch.expert_of(s));
  moe.combine(ctx, batch, r.out);

  moe.combine_backward(ctx, batch, d_out, r.d_weights);
  for (int s = 0; s < batch.local_slots(); ++s) {
    int const e = batch.expert_of(s);
    expert(r.d_w, e) = of_slot(batch.rows(), s).transpose() * of_slot(batch.d_y(), s);
    of_slot(batch.d_rows(), s) = of_slot(batch.d_y(), s) * expert(w, e).transpose();
  }
  moe.dispatch_backward(ctx, batch, r.d_x);
  expar::route_backward(ctx, router, logits, r, r.d_weights, r.d_logits);
}

// Each expert on all tokens, times its share of a token: 0 where it is not chosen.
results dense(matrix const& x, matrix const& logits, matrix const& w, matrix const& d_out) {
  results r;
  r.out.setZero(), r.d_x.setZero();
  matrix share = matrix::Zero(tokens, experts), d_share(tokens, experts);
  for (int t = 0; t < tokens; ++t) {
    Eigen::RowVectorXf left = logits.row(t);
    for (int j = 0, e = 0; j < top_k; ++j) {
      left.maxCoeff(&e);
      left(e) = -1e30f;
      share(t, e) = std::exp(logits(t, e));
    }
    share.row(t) /= share.row(t).sum();
  }
  for (int e = 0; e < experts; ++e) {
    matrix const y = x * expert(w, e), d_y = share.col(e).asDiagonal() * d_out;
    r.out += share.col(e).asDiagonal() * y;
    r.d_x += d_y * expert(w, e).transpose();
    expert(r.d_w, e) = x.transpose() * d_y;
    d_share.col(e) = y.cwiseProduct(d_out).rowwise().sum();
  }
  matrix const mean = share.cwiseProduct(d_share).rowwise().sum();
  r.d_logits = share.cwiseProduct(d_share - mean.replicate(1, experts));
  return r;
}

}  // namespace

int main() {
  std::srand(1);
  matrix const x = matrix::Random(tokens, hidden), logits = matrix::Random(tokens, experts);
  matrix const w = matrix::Random(experts * hidden, hidden_out);
  matrix const d_out = matrix::Random(tokens, hidden_out);
  results r;
  layer(x, logits, w, d_out, r);
  results const wanted = dense(x, logits, w, d_out);
  bool const same = r.out.isApprox(wanted.out, 1e-5f) && r.d_x.isApprox(wanted.d_x, 1e-5f) &&
                    r.d_w.isApprox(wanted.d_w, 1e-5f) &&
                    r.d_logits.isApprox(wanted.d_logits, 1e-5f);
  std::printf("an Eigen layer: %s every expert on all tokens\n", same ? "the same as" : "NOT");
  return same ? 0 : 1;
}
