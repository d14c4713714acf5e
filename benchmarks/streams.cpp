// SPDX-License-Identifier: Apache-2.0
// What the machine gives to a copy and to STREAM's triad, in GB/s that are read and written, for
// each way to store (limits/streams.hpp), beside memcpy or the plain loop: medians of interleaved
// rounds.
#include <limits/streams.hpp>
#include <problem.hpp>
#include <rounds.hpp>

namespace {

using namespace benchmarks;
using limits::streaming, limits::temporal;

template <class F>
auto on_all(expar::host_context const& ctx, index_t n, F f) {
  constexpr index_t piece = limits::block<float>;
  return [&ctx, n, f] {
    ctx.for_each_chunk(n / piece, 1,
                       [&](int, index_t first, index_t last) { f(first * piece, last * piece); });
  };
}

void put_rates(benchmark::State& state, double bytes) {
  state.counters["GB_per_s"] =
      benchmark::Counter(bytes / 1e9, benchmark::Counter::kIsIterationInvariantRate);
}

void copy(benchmark::State& state) {
  expar::host_context const ctx(static_cast<int>(state.range(1)));
  index_t const n = state.range(0) * 1024 / index_t{sizeof(float)};
  array<float> const from(n), to(n);
  auto const right = [&] { return std::memcmp(from.data(), to.data(), from.bytes()) == 0; };
  comparison c(state, [&] { to.poison(); });
  c.ours(on_all(ctx, n,
                [&](index_t first, index_t last) {
                  limits::copy_by_memcpy(from.data(), to.data(), first, last);
                }),
         right);
  c.limit("temporal",
          on_all(ctx, n,
                 [&](index_t first, index_t last) {
                   limits::copy<temporal>(from.data(), to.data(), first, last);
                 }),
          right);
  c.limit("streaming",
          on_all(ctx, n,
                 [&](index_t first, index_t last) {
                   limits::copy<streaming>(from.data(), to.data(), first, last);
                 }),
          right);
  c.run();
  put_rates(state, 2 * static_cast<double>(from.bytes()));
}

void triad(benchmark::State& state) {
  constexpr float scale = 3;
  expar::host_context const ctx(static_cast<int>(state.range(1)));
  index_t const n = state.range(0) * 1024 / index_t{sizeof(float)};
  array<float> const a(n), b(n), d(n);
  auto const right = [&] {
    for (index_t i = 0; i < n; ++i)
      if (!close(a.data()[i], b.data()[i] + scale * d.data()[i], 1e-6)) return false;
    return true;
  };
  auto const run = [&](auto f) {
    return on_all(ctx, n, [&, f](index_t first, index_t last) {
      f(a.data(), b.data(), d.data(), scale, first, last);
    });
  };
  comparison c(state, [&] { a.poison(); });
  c.ours(run(limits::triad_plain), right);
  c.limit("temporal", run(limits::triad<temporal>), right);
  c.limit("streaming", run(limits::triad<streaming>), right);
  c.run();
  put_rates(state, 3 * static_cast<double>(a.bytes()));
}

void sizes(benchmark::internal::Benchmark* b) {
  b->ArgNames({"KiB", "threads"});
  for (int const threads : {1, 2})
    for (int const kib : {256, 4096, 65536, 262144}) b->Args({kib, threads});
  b->UseManualTime()->Iterations(9)->Unit(benchmark::kMicrosecond);
}
BENCHMARK(copy)->Apply(sizes);
BENCHMARK(triad)->Apply(sizes);

}  // namespace
