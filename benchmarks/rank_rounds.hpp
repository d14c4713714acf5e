// SPDX-License-Identifier: Apache-2.0
// rounds.hpp for ranks: all do the same at once. A sample begins and ends with a barrier, and is
// taken again where threads of some rank waited for a core.
#pragma once

#include <algorithm>

#include <expar/expert_parallel.hpp>
#include <rounds.hpp>

namespace benchmarks {

template <class Comm>
class rank_rounds {
 public:
  explicit rank_rounds(Comm& comm) : comm_(comm) {}

  /// `before` each call is not timed.
  void add(kind is, std::string const& name, action run, verdict right, action before = {}) {
    runners_.push_back({{is, name}, std::move(run), std::move(right), std::move(before)});
  }

  /// Runs each once; ends the program where a result is wrong.
  void check() {
    for (runner& r : runners_) {
      if (r.before) r.before();
      comm_.barrier(ctx_);
      r.run();
      comm_.barrier(ctx_);
      if (!r.right()) fail(r.name);
    }
  }

  std::vector<timing> measure(index_t rounds, int& disturbed) {
    int repeats_left = static_cast<int>(rounds) * static_cast<int>(runners_.size()) / 2;
    for (index_t round = 0; round < rounds; ++round)
      for (runner& r : runners_)
        for (int i = 1;; ++i) {
          bool alone = true;
          double const s = sample(r, alone);
          if (!alone && i < tries && repeats_left-- > 0) continue;
          r.seconds.push_back(s);
          disturbed += !alone;
          break;
        }
    return {runners_.begin(), runners_.end()};
  }

 private:
  using index_t = expar::index_t;
  struct runner : timing {
    action run;
    verdict right;
    action before;
  };

  /// The same on every rank: what the slowest took, and whether none waited.
  double sample(runner const& r, bool& alone) {
    if (r.before) r.before();
    comm_.barrier(ctx_);
    double const waited = seconds_waited(), start = seconds_now();
    r.run();
    comm_.barrier(ctx_);
    double const s = seconds_now() - start;
    double const mine[2] = {s, seconds_waited() - waited};
    std::vector<double> all(static_cast<std::size_t>(comm_.size()) * 2);
    expar::all_gather(ctx_, comm_, mine, all.data(), sizeof mine);
    double slowest = 0;
    for (std::size_t i = 0; i < all.size(); i += 2) slowest = std::max(slowest, all[i]);
    for (std::size_t i = 1; i < all.size(); i += 2) alone &= all[i] <= most_waited * slowest;
    return slowest;
  }

  Comm& comm_;
  expar::host_context ctx_;
  std::vector<runner> runners_;
};

}  // namespace benchmarks
