// SPDX-License-Identifier: Apache-2.0
// One step of a mixture-of-experts layer on four ranks, forward and backward. The README shows the
// marked part.
#include <cstdio>
#include <vector>

#include <expar/expar.hpp>

namespace {

constexpr int tokens = 100, hidden = 32, experts = 8, top_k = 2;

/// A packed matrix, zero at first.
struct matrix : std::vector<float> {
  expar::index_t rows, columns;
  matrix(expar::index_t r, expar::index_t c)
      : std::vector<float>(static_cast<std::size_t>(r * c)), rows(r), columns(c) {}
};

/// Stands for the caller's GEMMs: expert e gives (e + 1) * row, and takes gradients back the same
/// way.
template <class Batch, class Rows>
void run_experts(Batch const& batch, Rows in, Rows out) {
  for (int l = 0; l < batch.local_slots(); ++l) {
    auto const slot = static_cast<std::size_t>(l);
    for (auto i = batch.slot_offsets()[slot]; i < batch.slot_offsets()[slot + 1]; ++i)
      for (int h = 0; h < hidden; ++h)
        out.row(i)[h] = static_cast<float>(batch.expert_of(l) + 1) * in.row(i)[h];
  }
}

}  // namespace

template <>
struct expar::tensor_traits<matrix> {
  static auto view(auto& m) { return expar::make_view(m.data(), m.rows, m.columns); }
};

//! [tour]
template <class Comm>
float layer(Comm& comm) {         // called by every rank
  expar::host_context const ctx;  // where work runs: threads, memory, or a pool of yours
  matrix x(tokens, hidden), logits(tokens, experts), out(tokens, hidden);
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i % 7);
  for (std::size_t i = 0; i < logits.size(); ++i) logits[i] = static_cast<float>(i * 37 % 11);

  // Which experts does each token go to? A router is written as the policies that it runs.
  expar::router const router({.experts = experts, .top_k = top_k}, expar::softmax_score{},
                             expar::score_key{}, expar::renormalize{});
  expar::routes<float> routes(tokens, top_k);  // ids [T,k], weights [T,k]
  expar::route(ctx, router, logits, routes);

  // Send each token's row to its experts, run them, bring the results home.
  expar::expert_parallel moe(comm, {.experts = experts, .top_k = top_k, .hidden = hidden});
  auto batch = moe.dispatch(ctx, x, routes);    // batch.rows(): [N,H], grouped by local expert
  run_experts(batch, batch.rows(), batch.y());  // yours: from rows to y, [N,H] as well
  moe.combine(ctx, batch, out);                 // out[t] = sum of weight[t,j] * y[row(t,j)]

  // Training: the adjoint of every step, with no second exchange of counts.
  matrix d_x = x, d_weights(tokens, top_k), d_logits = logits;
  moe.combine_backward(ctx, batch, out, d_weights);  // for a loss of |out|^2 / 2
  run_experts(batch, batch.d_y(), batch.d_rows());
  moe.dispatch_backward(ctx, batch, d_x);
  expar::route_backward(ctx, router, logits, routes, d_weights, d_logits);
  float norm = 0;
  for (float g : d_logits) norm += g * g;
  return norm;
}

float layer_on_four_ranks() {
  float norm[4];  // four threads here; with expar::mpi_communicator one process each
  expar::run_ranks(4, [&](auto& comm) { norm[comm.rank()] = layer(comm); });
  return norm[0];
}
//! [tour]

int main() {
  float const norm = layer_on_four_ranks();
  expar::self_communicator alone;
  std::printf("|d_logits|^2 = %g on four ranks, %g on one\n", norm, layer(alone));
  return norm > 0 && norm == layer(alone) ? 0 : 1;
}
