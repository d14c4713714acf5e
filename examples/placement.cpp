// SPDX-License-Identifier: Apache-2.0
// One expert gets most of the tokens. It gets copies on all ranks, while a batch is on its way.
#include <cstdio>
#include <cstdlib>
#include <vector>

#include <expar/expar.hpp>

namespace {

constexpr int ranks = 4, experts = 4, top_k = 2, tokens = 60, hidden = 8;
using numbers = std::vector<float>;

/// Stands for the caller's GEMMs: expert e gives (e + 1) * row.
template <class Batch>
void run_experts(Batch& batch) {
  auto const rows = batch.rows(), y = batch.y();
  for (int slot = 0; slot < batch.local_slots(); ++slot) {
    auto const s = static_cast<std::size_t>(slot);
    for (auto i = batch.slot_offsets()[s]; i < batch.slot_offsets()[s + 1]; ++i)
      for (int h = 0; h < hidden; ++h)
        y.row(i)[h] = static_cast<float>(batch.expert_of(slot) + 1) * rows.row(i)[h];
  }
}

template <class Comm>
bool place_and_run(Comm& comm) {
  expar::host_context const ctx;
  numbers x(tokens * hidden);
  for (std::size_t i = 0; i < x.size(); ++i) x[i] = static_cast<float>(i % 11);
  expar::routes<float> routes(tokens, top_k);
  for (int t = 0; t < tokens; ++t)  // the first choice of every token is expert 0
    for (int j = 0; j < top_k; ++j)
      routes.ids(t, j) = j == 0 ? 0 : 1 + (t + comm.rank()) % 3, routes.weights(t, j) = .5f;
  auto const in = expar::make_view(x.data(), tokens, hidden);

  numbers outs[3] = {numbers(x.size()), numbers(x.size()), numbers(x.size())};
  auto const out = [&](int i) { return expar::make_view(outs[i].data(), tokens, hidden); };
  auto const show = [&](char const* name, auto& batch) {
    auto const report = expar::gather_report(ctx, comm, batch);
    if (comm.rank() != 0) return;
    std::printf("%s:\n%s", name, expar::placement_chart(report.place, report.slot_counts).c_str());
  };

  expar::expert_parallel moe(comm, {.experts = experts, .top_k = top_k, .hidden = hidden});
  auto first = moe.dispatch(ctx, in, routes);  // an expert on each rank
  show("expert 0 has one rank", first);

  //! [place]
  moe.place(expar::placement::table(experts, {{0}, {1, 0}, {2, 0}, {3, 0}}));
  auto second = moe.dispatch(ctx, in, routes);  // `first` stays where it is
  //! [place]
  show("copies of it are on all ranks, and take routes in turn", second);

  //! [quotas]
  // Of this expert's routes on each rank, half go to the copy on the rank that has no other expert.
  auto const quotas = [](auto counts, expar::placement const& place, auto to) {
    for (int from = 0; from < place.ranks(); ++from)
      for (int e = 0; e < place.experts(); ++e) {
        expar::index_t left = counts(from, e), n = left / 2;
        for (int copy = 0; copy + 1 < place.copies(e); ++copy, n = counts(from, e) / 6)
          to(from, place.slot(e, copy)) = n, left -= n;
        to(from, place.slot(e, place.copies(e) - 1)) = left;
      }
  };
  expar::expert_batch<float> third;
  moe.dispatch(ctx, in, routes, third, quotas);
  //! [quotas]
  show("they take routes by quotas", third);

  run_experts(first), run_experts(second), run_experts(third);
  moe.combine(ctx, third, out(2));  // in any order
  moe.combine(ctx, first, out(0));
  moe.combine(ctx, second, out(1));

  bool const equal = outs[1] == outs[0] && outs[2] == outs[0];
  bool const right =
      outs[0][1] == .5f * x[1] + .5f * x[1] * static_cast<float>(2 + comm.rank() % 3);
  return equal && right && first.placement() == expar::placement::blocks(experts, ranks) &&
         third.row_count() == ranks * tokens * top_k / ranks;
}

}  // namespace

int main() {
  bool good[ranks];
  expar::run_ranks(ranks, [&](auto& comm) { good[comm.rank()] = place_and_run(comm); });
  for (bool g : good)
    if (!g) return EXIT_FAILURE;
}
