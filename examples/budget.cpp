// SPDX-License-Identifier: Apache-2.0
// A rank has room for so many rows and no more: what is beyond is an error, or is dropped.
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include <expar/expar.hpp>

namespace {

constexpr int ranks = 3, experts = 6, top_k = 2, tokens = 40, hidden = 4, room = 70;

/// What came of the routes of one rank.
struct outcome {
  expar::index_t rows, dropped, needed;
  int kept = 0;
  bool refused = false;
};

template <class Comm>
outcome run(Comm& comm) {
  expar::host_context const ctx;
  std::vector<float> x(tokens * hidden, 1.f), out(x.size());
  expar::routes<float> routes(tokens, top_k);
  for (int t = 0; t < tokens; ++t) {  // experts 0 and 1, which one rank holds, are in demand
    routes.ids(t, 0) = t % 4 < 3 ? t % 2 : 2 + t % 3;
    routes.ids(t, 1) = 2 + (t + comm.rank()) % 4;
    routes.weights(t, 0) = routes.weights(t, 1) = 1;
  }
  auto const in = expar::make_view(x.data(), tokens, hidden);
  expar::expert_shape const shape{.experts = experts, .top_k = top_k, .hidden = hidden};

  //! [budget]
  expar::expert_parallel moe(comm, shape, expar::row_budget{.rows = room, .drops = true});
  auto batch = moe.dispatch(ctx, in, routes);
  moe.combine(ctx, batch, batch.rows(), expar::make_view(out.data(), tokens, hidden));
  //! [budget]
  outcome o{batch.row_count(), batch.dropped(), batch.needed_rows()};
  for (int t = 0; t < tokens; ++t)  // an expert gives its row back: a token counts its routes
    o.kept += static_cast<int>(out[static_cast<std::size_t>(t * hidden)]);

  expar::expert_parallel strict(comm, shape, expar::row_budget{.rows = room});
  try {
    strict.dispatch(ctx, in, routes);
  } catch (expar::error const& e) {
    if (comm.rank() == 0) std::printf("without drops: %s\n", e.what());
    o.refused = std::strstr(e.what(), std::to_string(o.needed).c_str()) != nullptr;
  }
  return o;
}

}  // namespace

int main() {
  outcome of[ranks];
  expar::run_ranks(ranks, [&](auto& comm) { of[comm.rank()] = run(comm); });
  bool good = true;
  expar::index_t rows = 0, dropped = 0;
  for (int rank = 0; rank < ranks; ++rank) {
    outcome const& o = of[rank];
    std::printf("rank %d: %td rows, room for %d; %td of its %d routes were dropped\n", rank, o.rows,
                room, o.dropped, tokens * top_k);
    good = good && o.rows <= room && o.refused && o.kept == tokens * top_k - o.dropped;
    rows += o.rows, dropped += o.dropped;
  }
  std::printf("the fullest rank would have had %td rows\n", of[0].needed);
  return good && dropped > 0 && rows + dropped == ranks * tokens * top_k ? 0 : 1;
}
