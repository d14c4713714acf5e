// SPDX-License-Identifier: Apache-2.0
// A layer on ranks of which some are far: tokens cross between nodes once. What far_ranks does with
// threads, far_ranks_mpi does with processes.
#pragma once

#include <cmath>
#include <cstdio>
#include <cstring>
#include <vector>

#include <expar/exchange/hops.hpp>
#include <expar/exchange/wire.hpp>
#include <expar/expar.hpp>

namespace far_ranks {

constexpr int experts = 8, top_k = 4, tokens = 200, hidden = 256;

/// The rows of a batch times the number of their expert + 1, in place of experts.
inline void run_experts(expar::expert_batch<float>& batch) {
  auto const rows = batch.rows(), y = batch.y();
  for (int slot = 0; slot < batch.local_slots(); ++slot) {
    auto const s = static_cast<std::size_t>(slot);
    for (auto i = batch.slot_offsets()[s]; i < batch.slot_offsets()[s + 1]; ++i)
      for (int h = 0; h < hidden; ++h)
        y(i, h) = static_cast<float>(batch.expert_of(slot) + 1) * rows(i, h);
  }
}

/// Counts the rows that another communicator takes from node to node.
template <class Comm>
struct between_nodes {
  static constexpr expar::communicator_traits traits = expar::traits_of<Comm>();
  Comm& to;
  expar::topology const& nodes;
  std::size_t bytes = 0;

  int rank() const noexcept { return to.rank(); }
  int size() const noexcept { return to.size(); }
  void all_to_all_v(expar::host_context const& on, void const* in, expar::byte_counts counts,
                    expar::byte_counts from, void* out, expar::byte_counts out_counts,
                    expar::byte_counts at) {
    for (std::size_t p = 0; p < counts.size(); ++p)
      if (nodes.node_of(static_cast<int>(p)) != nodes.node_of(rank())) bytes += counts[p];
    to.all_to_all_v(on, in, counts, from, out, out_counts, at);
  }
};

/// Whether all that was promised holds on this rank.
template <class Comm>
bool run(Comm& comm, expar::topology const& nodes) {
  expar::host_context const ctx;
  std::vector<float> x(tokens * hidden), out(x.size()), straight(x.size()), summed(x.size());
  for (std::size_t i = 0; i < x.size(); ++i)
    x[i] = std::sin(static_cast<float>(i) + static_cast<float>(comm.rank()));
  expar::routes<float> routes(tokens, top_k);
  for (int t = 0; t < tokens; ++t)
    for (int j = 0; j < top_k; ++j)
      routes.ids(t, j) = (t + j * (1 + t % 2)) % experts, routes.weights(t, j) = .25f;
  auto const in = expar::make_view(x.data(), tokens, hidden);
  expar::expert_shape const shape{.experts = experts, .top_k = top_k, .hidden = hidden};
  between_nodes<Comm> counted{comm, nodes};

  // Straight, for comparison.
  expar::messages direct(counted);
  expar::expert_parallel plain(direct, shape);
  auto first = plain.dispatch(ctx, in, routes);
  auto const bytes_straight = std::exchange(counted.bytes, 0);
  run_experts(first);
  plain.combine(ctx, first, expar::make_view(straight.data(), tokens, hidden));

  counted.bytes = 0;
  //! [hops]
  expar::hops way(counted, expar::chain::once_per_node(nodes));
  expar::expert_parallel moe(way, shape);  // and all else as before
  auto batch = moe.dispatch(ctx, in, routes);
  //! [hops]
  auto const bytes_once = std::exchange(counted.bytes, 0);
  run_experts(batch);
  moe.combine(ctx, batch, expar::make_view(out.data(), tokens, hidden));
  bool good = std::memcmp(out.data(), straight.data(), out.size() * sizeof(float)) == 0;

  counted.bytes = 0;
  expar::hops both_ways(counted, expar::chain::once_per_node(nodes, expar::sum::per_hop));
  expar::expert_parallel summing(both_ways, shape);
  auto third = summing.dispatch(ctx, in, routes);
  run_experts(third);
  counted.bytes = 0;
  summing.combine(ctx, third, expar::make_view(summed.data(), tokens, hidden));
  auto const bytes_home = std::exchange(counted.bytes, 0);
  for (std::size_t i = 0; i < out.size(); ++i)
    good = good && std::fabs(summed[i] - out[i]) <= 1e-5f * (1 + std::fabs(out[i]));

  counted.bytes = 0;
  //! [wire]
  expar::expert_batch<float> packed;
  moe.prepare(ctx, routes, packed);
  moe.dispatch(ctx, in, packed, expar::wire<expar::float8_e4m3>{});  // a quarter of the bytes

  std::vector<std::int64_t> position(tokens), at(static_cast<std::size_t>(packed.row_count()));
  for (int t = 0; t < tokens; ++t) position[static_cast<std::size_t>(t)] = t;
  moe.carry(ctx, expar::make_view(position.data(), tokens, 1), packed,
            expar::make_view(at.data(), packed.row_count(), 1));  // the token of each row
  //! [wire]
  auto const bytes_packed = counted.bytes;
  for (expar::index_t i = 0; i < packed.row_count(); ++i) {
    float most = 0;
    for (int h = 0; h < hidden; ++h) most = std::fmax(most, std::fabs(batch.rows()(i, h)));
    for (int h = 0; h < hidden; ++h)
      good = good && std::fabs(packed.rows()(i, h) - batch.rows()(i, h)) <=
                         std::fmax(std::fabs(batch.rows()(i, h)) / 16, most / 448 / 1024) * 1.001f;
    good = good && at[static_cast<std::size_t>(i)] >= 0 && at[static_cast<std::size_t>(i)] < tokens;
  }

  if (comm.rank() == 0 && nodes.nodes() > 1) {
    auto const bar = [&](char const* what, std::size_t bytes) {
      std::printf("%-44s %8.2f MB ", what, static_cast<double>(bytes) * 1e-6);
      for (auto n = bytes * 40 / (1 + bytes_straight); n > 0; --n) std::printf("#");
      std::printf("\n");
    };
    std::printf("what rank 0 of %d, on %d nodes, sends to other nodes\n", comm.size(),
                nodes.nodes());
    bar("out, straight", bytes_straight);
    bar("out, each token once to a node", bytes_once);
    bar("the same as E4M3, with positions beside", bytes_packed);
    bar("home, summed at every hop", bytes_home);
  }
  return good;
}

}  // namespace far_ranks
