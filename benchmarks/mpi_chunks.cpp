// SPDX-License-Identifier: Apache-2.0
// A layer by chunks on two ranks that are processes: run() and run_backward() with 1, 2 and 4
// chunks in turn, in one run, so that whatever else the machine does meets all alike. Reported is
// the median of the rounds' ratios to one chunk, and the fastest round of each in microseconds.
// Experts read and write their rows `experts` times.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <string>
#include <vector>

#include <expar/comm/mpi.hpp>
#include <expar/overlap.hpp>

namespace {

using expar::index_t;
using clock_type = std::chrono::steady_clock;

constexpr int ways = 3, chunks_of[ways] = {1, 2, 4}, experts = 16, top_k = 4;
constexpr index_t hidden = 1024;

class layer {
 public:
  layer(expar::mpi_communicator& comm, index_t tokens, int work)
      : comm_(comm),
        tokens_(tokens),
        work_(work),
        x_(static_cast<std::size_t>(tokens * hidden)),
        out_(x_.size()),
        d_x_(x_.size()),
        weights_(static_cast<std::size_t>(tokens * top_k), .25f),
        d_w_(weights_.size()) {
    for (std::size_t i = 0; i < x_.size(); ++i) x_[i] = static_cast<float>(i % 31);
    for (index_t t = 0; t < tokens; ++t)
      for (int j = 0; j < top_k; ++j)
        ids_.push_back(static_cast<std::int32_t>((t * 7 + j * 5 + comm.rank()) % experts));
  }

  template <class Moe, class Batch>
  double us_of(Moe& moe, Batch& batch) {
    expar::host_context const ctx;
    struct {
      expar::tensor_view<std::int32_t, 2> ids;
      expar::tensor_view<float, 2> weights;
    } const routes{expar::make_view(ids_.data(), tokens_, index_t{top_k}),
                   expar::make_view(weights_.data(), tokens_, index_t{top_k})};
    auto const view = [&](std::vector<float>& v, index_t n = hidden) {
      return expar::make_view(v.data(), tokens_, n);
    };
    auto const run = [&](auto const& from, auto const& to, Batch& b, expar::slot_range s) {
      index_t const first = b.slot_offsets()[static_cast<std::size_t>(s.first)],
                    last = b.slot_offsets()[static_cast<std::size_t>(s.last)];
      for (index_t i = first; i < last; ++i) {
        float const* const in = from.row(i);
        float* const out = to.row(i);
        for (index_t h = 0; h < hidden; ++h) out[h] = in[h] * .75f + 1;
        for (int w = 1; w < work_; ++w)
          for (index_t h = 0; h < hidden; ++h) out[h] = out[h] * .75f + in[h];
      }
    };
    comm_.barrier(ctx);
    auto const begun = clock_type::now();
    moe.run(
        ctx, view(x_), routes, batch,
        [&](Batch& b, expar::slot_range s) { run(b.rows(), b.y(), b, s); }, view(out_));
    moe.run_backward(
        ctx, view(x_), batch,
        [&](Batch& b, expar::slot_range s) { run(b.d_y(), b.d_rows(), b, s); }, view(d_x_),
        view(d_w_, top_k));
    comm_.barrier(ctx);
    return std::chrono::duration<double, std::micro>(clock_type::now() - begun).count();
  }
  std::vector<float> made() const {
    auto all = out_;
    all.insert(all.end(), d_x_.begin(), d_x_.end());
    all.insert(all.end(), d_w_.begin(), d_w_.end());
    return all;
  }

 private:
  expar::mpi_communicator& comm_;
  index_t tokens_;
  int work_;
  std::vector<float> x_, out_, d_x_;
  std::vector<std::int32_t> ids_;
  std::vector<float> weights_, d_w_;
};

double median(std::vector<double> v) {
  std::nth_element(v.begin(), v.begin() + static_cast<std::ptrdiff_t>(v.size() / 2), v.end());
  return v[v.size() / 2];
}

void by_chunks(benchmark::State& state) {
  expar::mpi_communicator comm(MPI_COMM_WORLD);
  layer l(comm, state.range(0), static_cast<int>(state.range(1)));
  expar::expert_shape const shape{experts, top_k, hidden};
  expar::overlapped_layer one(comm, shape, chunks_of[0]), two(comm, shape, chunks_of[1]),
      four(comm, shape, chunks_of[2]);
  decltype(one)* const moes[ways] = {&one, &two, &four};
  std::vector<expar::expert_batch<float>> batches(ways);
  std::vector<float> first;
  std::vector<double> us[ways], ratio[ways];
  for (int w = 0; w < ways; ++w) {
    l.us_of(*moes[w], batches[static_cast<std::size_t>(w)]);
    auto const made = l.made();
    if (w == 0) first = made;
    if (std::memcmp(made.data(), first.data(), made.size() * sizeof(float)) != 0)
      return state.SkipWithError("chunks make other bytes than one");
  }
  for (auto _ : state) {
    for (int w = 0; w < ways; ++w)
      us[w].push_back(l.us_of(*moes[w], batches[static_cast<std::size_t>(w)]));
    for (int w = 0; w < ways; ++w) ratio[w].push_back(us[w].back() / us[0].back());
  }
  for (int w = 0; w < ways; ++w) {
    std::string const n = std::to_string(chunks_of[w]);
    state.counters["us_" + n] = *std::min_element(us[w].begin(), us[w].end());
    state.counters["ratio_" + n] = median(ratio[w]);
    state.counters["fastest_ratio_" + n] = *std::min_element(us[w].begin(), us[w].end()) /
                                           *std::min_element(us[0].begin(), us[0].end());
  }
}
// As many rounds on both ranks.
BENCHMARK(by_chunks)
    ->Name("by_chunks<mpi>")
    ->ArgNames({"tokens", "experts"})
    ->Args({128, 4})
    ->Args({1024, 4})
    ->Args({1024, 40})
    ->Iterations(60)
    ->Unit(benchmark::kMicrosecond);

}  // namespace
