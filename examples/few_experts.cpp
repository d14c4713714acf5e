// SPDX-License-Identifier: Apache-2.0
// Two experts on four ranks: each rank holds half of the inner units of one of them.
#include <cmath>
#include <cstdio>
#include <vector>

#include <expar/expar.hpp>

namespace {

constexpr int ranks = 4, experts = 2, shards = 2, tokens = 50, hidden = 8, inner = 16;

/// Weights of expert e: y = down * relu(up * x), of which a shard computes some inner units.
float up(int e, int unit, int h) {
  return std::sin(static_cast<float>(1 + e + 3 * unit + 7 * h));
}
float down(int e, int unit, int h) {
  return std::cos(static_cast<float>(2 + e + 5 * unit + h));
}

template <class Number>
void add_units(int e, int first, int last, float const* x, Number* y) {
  for (int unit = first; unit < last; ++unit) {
    Number sum = 0;
    for (int h = 0; h < hidden; ++h) sum += Number{up(e, unit, h)} * Number{x[h]};
    if (sum > 0)
      for (int h = 0; h < hidden; ++h) y[h] += sum * Number{down(e, unit, h)};
  }
}

/// The largest error of this rank's tokens.
template <class Comm>
double few_experts(Comm& comm) {
  expar::host_context const ctx;
  std::vector<float> x(tokens * hidden), out(x.size());
  for (std::size_t i = 0; i < x.size(); ++i)
    x[i] = std::sin(static_cast<float>(i) + static_cast<float>(comm.rank()));
  expar::routes<float> routes(tokens, 1);
  for (int t = 0; t < tokens; ++t) routes.ids(t, 0) = t % 3 == 0, routes.weights(t, 0) = .25f;

  //! [shards]
  expar::expert_parallel moe(comm, {.experts = experts, .top_k = 1, .hidden = hidden});
  moe.place(expar::placement::sharded(experts, ranks, shards));
  auto batch = moe.dispatch(ctx, expar::make_view(x.data(), tokens, hidden), routes);
  for (int slot = 0; slot < batch.local_slots(); ++slot) {
    int const e = batch.expert_of(slot);
    int const shard = batch.placement().shard_of(batch.first_slot() + slot);
    auto const s = static_cast<std::size_t>(slot);
    for (auto i = batch.slot_offsets()[s]; i < batch.slot_offsets()[s + 1]; ++i) {
      float* const y = batch.y().row(i);
      for (int h = 0; h < hidden; ++h) y[h] = 0;
      add_units(e, shard * inner / shards, (shard + 1) * inner / shards, batch.rows().row(i), y);
    }
  }
  moe.combine(ctx, batch, expar::make_view(out.data(), tokens, hidden));  // sums over the shards
  //! [shards]

  auto const report = expar::gather_report(ctx, comm, batch);
  if (comm.rank() == 0)
    std::printf("%s", expar::placement_chart(report.place, report.slot_counts).c_str());

  double worst = 0;
  for (int t = 0; t < tokens; ++t) {
    double y[hidden] = {};
    add_units(routes.ids(t, 0), 0, inner, &x[static_cast<std::size_t>(t * hidden)], y);
    for (int h = 0; h < hidden; ++h)
      worst = std::fmax(
          worst, std::fabs(.25 * y[h] - double{out[static_cast<std::size_t>(t * hidden + h)]}));
  }
  return worst;
}

}  // namespace

int main() {
  double worst[ranks];
  expar::run_ranks(ranks, [&](auto& comm) { worst[comm.rank()] = few_experts(comm); });
  for (int rank = 0; rank < ranks; ++rank) {
    std::printf("rank %d: the largest error is %.1e\n", rank, worst[rank]);
    if (!(worst[rank] < 1e-5)) return 1;
  }
}
