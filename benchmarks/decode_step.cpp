// SPDX-License-Identifier: Apache-2.0
// One step of decoding on one rank: plan, encode and decode of 1 token and of 4, beside the loop
// that an engine has for it: count, offsets, a memcpy for each route and a weighted sum, on arrays
// that were sized before, with no id checked. In nanoseconds; see rounds.hpp.
#include <batch.hpp>
#include <rounds.hpp>

namespace {

using namespace benchmarks;

/// Written for this: the ids are right, and the arrays have the right size.
template <class T>
class hand_loop {
 public:
  explicit hand_loop(shape s)
      : s_(s),
        next_(size_of(s.experts)),
        rows_of_(size_of(s.tokens * s.top_k)),
        sum_(size_of(s.hidden)) {}

  void operator()(std::int32_t const* ids, T const* x, float const* weights, T* rows, T* out) {
    int const routes = s_.tokens * s_.top_k;
    index_t const hidden = s_.hidden;
    std::fill(next_.begin(), next_.end(), 0);
    for (int i = 0; i < routes; ++i) ++next_[size_of(ids[i])];
    int first = 0;
    for (int& n : next_) {
      int const count = n;
      n = first, first += count;
    }
    for (int i = 0; i < routes; ++i) {
      index_t const row = next_[size_of(ids[i])]++;
      rows_of_[size_of(i)] = row;
      std::memcpy(rows + row * hidden, x + i / s_.top_k * hidden, size_of(hidden) * sizeof(T));
    }
    benchmark::ClobberMemory();  // the experts come here
    for (int t = 0; t < s_.tokens; ++t) {
      float* const sum = sum_.data();
      for (int j = 0; j < s_.top_k; ++j) {
        int const i = t * s_.top_k + j;
        T const* const row = rows + rows_of_[size_of(i)] * hidden;
        float const weight = weights[i];
        if (j == 0)
          for (index_t h = 0; h < hidden; ++h) sum[h] = weight * expar::widen(row[h]);
        else
          for (index_t h = 0; h < hidden; ++h) sum[h] += weight * expar::widen(row[h]);
      }
      for (index_t h = 0; h < hidden; ++h) out[t * hidden + h] = expar::narrow<T>(sum[h]);
    }
  }

 private:
  shape s_;
  std::vector<int> next_;
  std::vector<index_t> rows_of_;
  std::vector<float> sum_;
};

template <class T>
void decode_step(benchmark::State& state) {
  shape const s = shape_of(state);
  batch<T> b(s, 1);
  auto const ids = draw_ids(s);
  auto const right = [&b] {
    return b.rows_are_tokens(batch<T>::order::plan) && b.out_is_sum(batch<T>::order::plan, true);
  };
  comparison c(state, [&] { b.rows.poison(), b.out.poison(); });
  c.ours(
      [&] {
        expar::make_plan(b.ctx, expar::make_view(ids.data(), s.tokens, s.top_k), s.experts,
                         expar::ragged{}, b.plan);
        expar::encode(b.ctx, b.plan, b.view(b.x), b.view(b.rows));
        benchmark::ClobberMemory();
        expar::decode(b.ctx, b.plan, b.view(b.rows), b.view_of_routes(b.weights), b.view(b.out));
      },
      right);
  hand_loop<T> by_hand(s);
  c.peer(
      "by_hand",
      [&] { by_hand(ids.data(), b.x.data(), b.weights.data(), b.rows.data(), b.out.data()); },
      right);
  c.run();
}
void steps(benchmark::internal::Benchmark* b) {
  b->ArgNames({"tokens", "hidden", "experts", "top_k"});
  b->Args({1, 2048, 128, 8})->Args({4, 7168, 256, 8});
  b->UseManualTime()->Iterations(25)->Unit(benchmark::kNanosecond);
}
using expar::bfloat16;
BENCHMARK_TEMPLATE(decode_step, float)->Apply(steps);
BENCHMARK_TEMPLATE(decode_step, bfloat16)->Apply(steps);

}  // namespace
