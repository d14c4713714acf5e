// SPDX-License-Identifier: Apache-2.0
// encode() and decode() beside GShard's dense dispatch, a mask times the tokens by OpenBLAS, for
// the smallest configuration: it grows with the square of the tokens. See rounds.hpp.
#include <peers/dense.hpp>

#include <batch.hpp>
#include <rounds.hpp>

namespace {

using namespace benchmarks;

void dense(benchmark::State& state, bool home) {
  shape const s = shape_of(state);
  int const threads = static_cast<int>(state.range(4));
  openblas_set_num_threads(threads);
  batch<float> b(s, threads);
  using order = batch<float>::order;
  peers::dense const einsum(b.plan, b.weights.data(), s.hidden);
  array<float> const slots(einsum.slots() * s.hidden);
  auto const each_slot = [&](auto f) {  // f(row of ours, row of the slot)
    for (index_t t = 0; t < s.tokens; ++t)
      for (int j = 0; j < s.top_k; ++j)
        if (!f(b.rows.data() + b.plan.view().row(t, j) * s.hidden,
               slots.data() + einsum.slot(b.plan, t, j) * s.hidden))
          return false;
    return true;
  };
  auto const bytes = size_of(s.hidden) * sizeof(float);
  if (home)
    each_slot([&](float* row, float* slot) { return std::memcpy(slot, row, bytes) != nullptr; });
  comparison c(state, [&] { home ? b.out.poison() : (b.rows.poison(), slots.poison()); });
  if (home) {
    c.ours(
        [&] {
          expar::decode(b.ctx, b.plan, b.view(b.rows), b.view_of_routes(b.weights), b.view(b.out));
        },
        [&] { return b.out_is_sum(order::plan, true); });
    c.peer(
        "einsum", [&] { einsum.decode(slots.data(), b.out.data()); },
        [&] { return b.out_is_sum(order::plan, true); });
  } else {
    c.ours([&] { expar::encode(b.ctx, b.plan, b.view(b.x), b.view(b.rows)); },
           [&] { return b.rows_are_tokens(order::plan); });
    c.peer(
        "einsum", [&] { einsum.encode(b.x.data(), slots.data()); },
        [&] {
          each_slot(
              [&](float* row, float* slot) { return std::memcpy(row, slot, bytes) != nullptr; });
          return b.rows_are_tokens(order::plan);
        });
  }
  c.run();
}
void smallest(benchmark::internal::Benchmark* b) {
  b->ArgNames({"tokens", "hidden", "experts", "top_k", "threads"});
  shape const s = shapes[0];
  for (int const threads : {1, 2}) b->Args({s.tokens, s.hidden, s.experts, s.top_k, threads});
  b->UseManualTime()->Iterations(3)->Unit(benchmark::kMicrosecond);
}
void encode_dense(benchmark::State& state) {
  dense(state, false);
}
void decode_dense(benchmark::State& state) {
  dense(state, true);
}
BENCHMARK(encode_dense)->Apply(smallest);
BENCHMARK(decode_dense)->Apply(smallest);

}  // namespace
