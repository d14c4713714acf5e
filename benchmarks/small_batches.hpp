// SPDX-License-Identifier: Apache-2.0
// What dispatch and combine of few tokens cost beside the collectives that they cannot do without:
// one all_gather of the counts, and one all_to_all_v of the rows to other ranks in each direction,
// of as many bytes and on the same communicator. Each round times both, some calls of one behind
// some of the other; the counters are medians and quartiles over the rounds:
//   of_collectives  operation / collectives (1 = as fast)
//   of_phases       operation / four exchange_phase() with a copy of the rows out and home
// Hidden is 64, top_k 2; of the routes of a token one stays on its rank.
#pragma once

#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include <expar/expert_parallel.hpp>

namespace small_batches {

using expar::index_t;
constexpr int hidden = 64, top_k = 2, ranks = 2, calls = 8;

/// Microseconds of one call in every round.
struct figures {
  std::vector<double> operation, collectives, phases, bare;
};

inline std::size_t size_of(index_t n) {
  return static_cast<std::size_t>(n);
}

/// One rank of two, which measures while both do the same.
template <class Comm, class Transport>
class rank_of_two {
 public:
  rank_of_two(Comm& comm, Transport& transport, int tokens, int experts)
      : comm_(comm),
        moe_(transport, {experts, top_k, hidden}),
        tokens_(tokens),
        ids_(size_of(tokens * top_k)),
        weights_(ids_.size(), 0.5f),
        x_(size_of(tokens * hidden), 1),
        out_(x_.size()),
        counts_(size_of(numbers_before + experts)),
        all_counts_(counts_.size() * ranks),
        rows_(x_),
        arrived_(x_.size()) {
    for (int t = 0; t < tokens; ++t)
      for (int j = 0; j < top_k; ++j)
        ids_[size_of(t * top_k + j)] = (t * 7 + comm.rank() * 3) % (experts / 2) + j * experts / 2;
    auto const peer = size_of(1 - comm.rank());
    bytes_[peer] = x_.size() * sizeof(float);
  }

  /// `bare`: others whose collectives are timed as well.
  template <class Bare = Comm>
  figures measure(index_t rounds, Bare const* bare = nullptr) {
    figures f;
    for (index_t i = -1; i < rounds; ++i) {
      double const operation = microseconds([&] { dispatch_and_combine(); });
      double const collectives = microseconds([&] { collectives_of(comm_); });
      double phases = 0;
      if constexpr (expar::window_communicator<Comm>) phases = microseconds([&] { bare_phases(); });
      double const others = bare != nullptr ? microseconds([&] { collectives_of(*bare); }) : 0;
      if (i < 0) continue;  // the first round allocates
      f.operation.push_back(operation);
      f.collectives.push_back(collectives);
      f.phases.push_back(phases);
      f.bare.push_back(others);
    }
    return f;
  }

 private:
  // The word of a rank, tokens and element types stand before its counts.
  static constexpr int numbers_before = expar::detail::numbers_of_word + 4;

  struct routes {
    expar::tensor_view<std::int32_t const, 2> ids;
    expar::tensor_view<float const, 2> weights;
  };
  void dispatch_and_combine() {
    auto const x = expar::make_view(static_cast<float const*>(x_.data()), tokens_, hidden);
    routes const r{expar::make_view(static_cast<std::int32_t const*>(ids_.data()), tokens_, top_k),
                   expar::make_view(static_cast<float const*>(weights_.data()), tokens_, top_k)};
    moe_.dispatch(ctx_, x, r, batch_);
    benchmark::DoNotOptimize(batch_.y().data);
    moe_.combine(ctx_, batch_, expar::make_view(out_.data(), tokens_, hidden));
  }
  template <class C>
  void collectives_of(C& comm) {
    comm.all_gather(ctx_, counts_.data(), all_counts_.data(),
                    counts_.size() * sizeof(std::uint64_t));
    comm.all_to_all_v(ctx_, rows_.data(), bytes_, zero_, arrived_.data(), bytes_, zero_);
    comm.all_to_all_v(ctx_, arrived_.data(), bytes_, zero_, rows_.data(), bytes_, zero_);
  }
  // Rows are written to both ranks, and read from both.
  void bare_phases() {
    std::size_t const bytes = x_.size() * sizeof(float);
    if (!window_.size_bytes()) window_ = comm_.allocate_window(ranks * bytes);
    auto const view = window_.view();
    auto const mine = bytes * size_of(comm_.rank());
    comm_.exchange_phase(ctx_);
    for (int p = 0; p < ranks; ++p) std::memcpy(view.peer(p, mine), x_.data(), bytes);
    comm_.exchange_phase(ctx_);
    comm_.exchange_phase(ctx_);
    for (int p = 0; p < ranks; ++p) std::memcpy(out_.data(), view.peer(p, mine), bytes);
    comm_.exchange_phase(ctx_);
  }

  template <class F>
  double microseconds(F f) {
    comm_.barrier(ctx_);
    auto const start = std::chrono::steady_clock::now();
    for (int i = 0; i < calls; ++i) f();
    return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start)
               .count() /
           calls;
  }

  template <class C>
  struct window_of {
    struct type {};
  };
  template <expar::window_communicator C>
  struct window_of<C> {
    using type = decltype(std::declval<C&>().allocate_window(std::size_t{}));
  };

  Comm& comm_;
  expar::expert_parallel<Transport> moe_;
  expar::host_context ctx_;
  expar::expert_batch<float> batch_;
  index_t tokens_;
  std::vector<std::int32_t> ids_;
  std::vector<float> weights_, x_, out_;
  std::vector<std::uint64_t> counts_, all_counts_;
  std::vector<float> rows_, arrived_;
  std::size_t bytes_[ranks] = {}, zero_[ranks] = {};
  typename window_of<Comm>::type window_{};
};

/// Reports what has been measured, as many iterations as it has rounds.
inline void report(benchmark::State& state, figures const& f) {
  std::size_t i = 0;
  for (auto _ : state) state.SetIterationTime(f.operation[i++ % f.operation.size()] * 1e-6);
  auto const put = [&](char const* name, std::vector<double> const& limit) {
    std::vector<double> ratio;
    for (std::size_t r = 0; r < limit.size(); ++r) ratio.push_back(f.operation[r] / limit[r]);
    std::sort(ratio.begin(), ratio.end());
    std::string const of(name);
    state.counters[of] = ratio[ratio.size() / 2];
    state.counters[of + "_25"] = ratio[ratio.size() / 4];
    state.counters[of + "_75"] = ratio[ratio.size() * 3 / 4];
  };
  put("of_collectives", f.collectives);
  if (!f.phases.empty() && f.phases[0] > 0) put("of_phases", f.phases);
  if (!f.bare.empty() && f.bare[0] > 0) put("of_mpi", f.bare);
}

/// T, E.
inline void shapes(benchmark::internal::Benchmark* b) {
  for (int const tokens : {1, 16})
    for (int const experts : {8, 64}) b->Args({tokens, experts});
  b->UseManualTime()->Iterations(1000);
}

}  // namespace small_batches
