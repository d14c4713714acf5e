// SPDX-License-Identifier: Apache-2.0
// What the host path costs, as a share of a limit that is measured in the same run: each round
// times the operation and its limit one after the other, and the counters are the median, the
// lowest and the highest of limit / operation over the rounds (1 = as fast as the limit).
#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <vector>

#include <expar/permute/decode.hpp>
#include <expar/permute/encode.hpp>

namespace {

struct shape {
  int tokens, hidden, experts, top_k;
};
constexpr shape shapes[] = {{4096, 1024, 8, 2}, {8192, 2048, 64, 6}, {1024, 256, 64, 8}};

template <class T>
class problem {
 public:
  explicit problem(shape s)
      : s_(s),
        ids_(static_cast<std::size_t>(s.tokens * s.top_k)),
        weights_(ids_.size(), 0.5f),
        x_(static_cast<std::size_t>(s.tokens) * static_cast<std::size_t>(s.hidden),
           expar::narrow<T>(1.25f)),
        rows_(x_.size() * static_cast<std::size_t>(s.top_k), expar::narrow<T>(0.75f)),
        copy_(rows_) {
    std::uint32_t state = 1;
    for (auto& id : ids_) {
      state = state * 1664525u + 1013904223u;
      id = static_cast<std::int32_t>(
          static_cast<std::uint64_t>(state) * static_cast<std::uint64_t>(s.experts) >> 32);
    }
    make();
  }

  void make() { expar::make_plan(ctx, ids(), s_.experts, expar::ragged{}, plan); }
  auto ids() const { return expar::make_view(ids_.data(), s_.tokens, s_.top_k); }
  auto weights() const { return expar::make_view(weights_.data(), s_.tokens, s_.top_k); }
  auto x() { return expar::make_view(x_.data(), s_.tokens, s_.hidden); }
  auto rows() { return expar::make_view(rows_.data(), plan.rows(), expar::index_t{s_.hidden}); }

  void copy_rows() {
    std::memcpy(copy_.data(), rows_.data(), rows_.size() * sizeof(T));
    benchmark::DoNotOptimize(copy_.data());
  }
  void copy_ids() {
    for (int pass = 0; pass < 2; ++pass)
      std::memcpy(copy_.data(), ids_.data(), ids_.size() * sizeof(std::int32_t));
    benchmark::DoNotOptimize(copy_.data());
  }
  double row_bytes() const { return static_cast<double>(rows_.size() * sizeof(T)); }
  double routes() const { return static_cast<double>(ids_.size()); }

  expar::host_context ctx;
  expar::route_plan plan;

 private:
  shape s_;
  std::vector<std::int32_t> ids_;
  std::vector<float> weights_;
  std::vector<T> x_, rows_, copy_;
};

/// Times `work` against `limit` in every round; `amount` of work per round becomes a rate.
template <class Work, class Limit>
void compare(benchmark::State& state, double amount, Work work, Limit limit) {
  auto const seconds = [](auto& f) {
    auto const start = std::chrono::steady_clock::now();
    f();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  };
  work(), limit();
  std::vector<double> share;
  for (auto _ : state) {
    double const mine = seconds(work);
    share.push_back(seconds(limit) / mine);
    state.SetIterationTime(mine);
  }
  std::sort(share.begin(), share.end());
  state.counters["of_limit"] = share[share.size() / 2];
  state.counters["of_limit_min"] = share.front();
  state.counters["of_limit_max"] = share.back();
  state.counters["rate"] =
      benchmark::Counter(amount, benchmark::Counter::kIsIterationInvariantRate);
}

// Limit: one copy of the k * T rows.
template <class T>
void encode(benchmark::State& state) {
  problem<T> p(shapes[state.range(0)]);
  compare(
      state, p.row_bytes(), [&] { expar::encode(p.ctx, p.plan, p.x(), p.rows()); },
      [&] { p.copy_rows(); });
}

// Limit: one copy of the k * T rows, of which decode reads all and writes one k-th.
template <class T>
void decode(benchmark::State& state) {
  problem<T> p(shapes[state.range(0)]);
  compare(
      state, p.row_bytes(), [&] { expar::decode(p.ctx, p.plan, p.rows(), p.weights(), p.x()); },
      [&] { p.copy_rows(); });
}

// Limit: two copies of the ids.
void make_plan(benchmark::State& state) {
  problem<float> p(shapes[state.range(0)]);
  compare(
      state, p.routes(), [&] { p.make(); }, [&] { p.copy_ids(); });
}

BENCHMARK_TEMPLATE(encode, float)->DenseRange(0, 2)->UseManualTime();
BENCHMARK_TEMPLATE(encode, expar::bfloat16)->DenseRange(0, 2)->UseManualTime();
BENCHMARK_TEMPLATE(decode, float)->DenseRange(0, 2)->UseManualTime();
BENCHMARK_TEMPLATE(decode, expar::bfloat16)->DenseRange(0, 2)->UseManualTime();
BENCHMARK(make_plan)->DenseRange(0, 2)->UseManualTime();

}  // namespace
