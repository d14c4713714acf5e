// SPDX-License-Identifier: Apache-2.0
// Dispatch and combine of two ranks, beside what moves the same rows with nothing around it. The
// configurations are those whose rows exceed every cache; ranks have `tokens` tokens each.
#pragma once

#include <limits/rows.hpp>
#include <problem.hpp>
#include <rank_rounds.hpp>

#include <expar/expert_parallel.hpp>

namespace benchmarks {

constexpr int ranks = 2;

inline void shape_of_ranks(benchmark::internal::Benchmark* b, shape s) {
  b->ArgNames({"tokens", "hidden", "experts", "top_k"});
  b->Args({s.tokens, s.hidden, s.experts, s.top_k});
  b->UseManualTime()->Iterations(9)->Unit(benchmark::kMicrosecond);
}
inline void float_ranks(benchmark::internal::Benchmark* b) {
  shape_of_ranks(b, shapes[1]);
}
inline void bfloat16_ranks(benchmark::internal::Benchmark* b) {
  shape_of_ranks(b, shapes[2]);
}

/// One rank of two: its tokens, where their rows go, and the rows that it gets. Tokens of all ranks
/// are the same, and so is what experts make of row i; routes are not.
template <class T, class Comm, class Transport>
class rank_of_two {
 public:
  rank_of_two(Comm& comm, Transport& transport, shape s)
      : x(index_t{s.tokens} * s.hidden),
        out(x.size()),
        weights(index_t{s.tokens} * s.top_k),
        s_(s),
        comm_(comm),
        moe_(transport, {s.experts, s.top_k, s.hidden}) {
    numbers random;
    for (int i = 0; i < comm.rank(); ++i) random.next();
    ids_ = draw_ids(s, random);
    dispatch();
    find_rows();
  }

  void dispatch() {
    struct {
      expar::tensor_view<std::int32_t const, 2> ids;
      expar::tensor_view<float const, 2> weights;
    } const routes{expar::make_view(ids_.data(), s_.tokens, s_.top_k),
                   expar::make_view(weights.data(), s_.tokens, s_.top_k)};
    moe_.dispatch(ctx, view(x), routes, batch);
  }
  void combine() { moe_.combine(ctx, batch, view(out)); }
  void fill_y() { copy_to_y(y.data()); }

  limits::extent extent() const { return {s_.hidden, s_.top_k}; }
  int locals() const { return s_.experts / ranks; }
  int owner(index_t route) const { return ids_[size_of(route)] / locals(); }
  index_t row_of(index_t route) const { return rows_of_[size_of(route)]; }
  /// How many rows this rank sends to rank p.
  index_t rows_to(int p) const {
    index_t n = 0;
    for (int e = p * locals(); e < (p + 1) * locals(); ++e) n += batch.plan().kept(e);
    return n;
  }

  /// By the way back: the sum of weighted tokens.
  bool dispatch_is_right() {
    copy_to_y(batch.rows().data);
    combine();
    for (index_t t = 0; t < s_.tokens; ++t) {
      double weight = 0;
      for (int j = 0; j < s_.top_k; ++j) weight += weights.data()[t * s_.top_k + j];
      for (index_t h = t * s_.hidden; h < (t + 1) * s_.hidden; ++h)
        if (!close(expar::widen(out.data()[h]), weight * expar::widen(x.data()[h]), tolerance<T>()))
          return false;
    }
    return true;
  }
  bool rows_are_those_of_the_batch() {
    return std::memcmp(rows.data(), batch.rows().data, bytes_of_batch()) == 0;
  }
  bool combine_is_right() const {
    for (index_t t = 0; t < s_.tokens; ++t)
      for (index_t h = 0; h < s_.hidden; ++h) {
        float sum = 0;
        for (index_t i = t * s_.top_k; i < (t + 1) * s_.top_k; ++i)
          sum += weights.data()[i] * expar::widen(y.data()[row_of(i) * s_.hidden + h]);
        if (!close(expar::widen(out.data()[t * s_.hidden + h]), sum, tolerance<T>())) return false;
      }
    return true;
  }

  expar::host_context ctx;
  array<T> x, out;
  array<float> weights;
  expar::expert_batch<T> batch;
  array<T> rows, y;  // of the rank that has most

 private:
  // Rows of a rank for an expert stand together, from where the rank that has it says.
  void find_rows() {
    std::vector<index_t> first{batch.row_count()};
    for (int r = 0; r < ranks; ++r)
      for (int l = 0; l < locals(); ++l) first.push_back(batch.first_row_from(r, l));
    std::vector<index_t> all(first.size() * ranks);
    expar::all_gather(ctx, comm_, first.data(), all.data(), first.size() * sizeof(index_t));
    for (index_t i = 0; i < weights.size(); ++i) {
      std::size_t const there = size_of(owner(i)) * first.size();
      int const expert = comm_.rank() * locals() + ids_[size_of(i)] % locals();
      rows_of_.push_back(all[there + 1 + size_of(expert)] +
                         batch.plan().locations()(i / s_.top_k, i % s_.top_k));
    }
    index_t most = 0;
    for (std::size_t r = 0; r < ranks; ++r) most = std::max(most, all[r * first.size()]);
    rows = array<T>(most * s_.hidden), y = array<T>(most * s_.hidden);
  }
  auto view(array<T> const& a) const {
    return expar::make_view(a.data(), a.size() / s_.hidden, index_t{s_.hidden});
  }
  std::size_t bytes_of_batch() const { return size_of(batch.row_count() * s_.hidden) * sizeof(T); }
  void copy_to_y(T const* from) { std::memcpy(batch.y().data, from, bytes_of_batch()); }

  shape s_;
  Comm& comm_;
  expar::expert_parallel<Transport> moe_;
  std::vector<std::int32_t> ids_;
  std::vector<index_t> rows_of_;
};

}  // namespace benchmarks
