// SPDX-License-Identifier: Apache-2.0
// How the host benchmarks time. Ours, the variants of its limit and the algorithms of peers take
// turns in every round, so that what changes about the machine changes for all of them. Each is
// first run once on poisoned memory, and what it made compared with a plain reference: where that
// differs, the program ends with 1.
//
// A sample takes 2 ms or more, behind a call that is not timed. It is taken again, at most three
// times, where threads of the process waited for a core for more than 2 % of it: the second number
// of /proc/self/task/*/schedstat, over all threads. What the host of a virtual machine takes is not
// in it.
//
// Counters, medians over the rounds, with the quartiles as NAME_25 and NAME_75:
//   of_limit    time of the limit / our time: 1 is as fast. The limit is the variant with the
//   lowest
//               median, named in the label
//   limit_NAME  of each variant of the limit: its time / our time
//   NAME        of each peer: its time / our time, so many times is ours as fast
//   disturbed   samples that were kept although threads had waited
#pragma once

#include <benchmark/benchmark.h>
#include <dirent.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <utility>
#include <vector>

namespace benchmarks {

/// Seconds for which threads of this process have waited for a core.
inline double seconds_waited() {
  double sum = 0;
  DIR* const tasks = opendir("/proc/self/task");
  if (tasks == nullptr) return 0;
  while (dirent const* const entry = readdir(tasks)) {
    if (entry->d_name[0] == '.') continue;
    std::string const path = std::string("/proc/self/task/") + entry->d_name + "/schedstat";
    if (std::FILE* const file = std::fopen(path.c_str(), "r")) {
      unsigned long long ran = 0, waited = 0;
      if (std::fscanf(file, "%llu %llu", &ran, &waited) == 2)
        sum += static_cast<double>(waited) * 1e-9;
      std::fclose(file);
    }
  }
  closedir(tasks);
  return sum;
}

inline double seconds_now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

/// Median and quartiles of ratios, as counters.
inline void put_quartiles(benchmark::State& state, std::string const& name,
                          std::vector<double> ratios) {
  std::sort(ratios.begin(), ratios.end());
  std::size_t const n = ratios.size();
  state.counters[name] = ratios[n / 2];
  state.counters[name + "_25"] = ratios[n / 4];
  state.counters[name + "_75"] = ratios[n * 3 / 4];
}

enum class kind { ours, limit, peer };

/// Seconds of one call, in every round.
struct timing {
  kind is;
  std::string name;
  std::vector<double> seconds = {};

  double median() const {
    auto v = seconds;
    std::nth_element(v.begin(), v.begin() + static_cast<std::ptrdiff_t>(v.size() / 2), v.end());
    return v[v.size() / 2];
  }
};

inline void report(benchmark::State& state, std::vector<timing> const& timings, int disturbed) {
  timing const* mine = nullptr;
  timing const* best = nullptr;
  for (timing const& t : timings) {
    if (t.is == kind::ours) mine = &t;
    if (t.is == kind::limit && (!best || t.median() < best->median())) best = &t;
  }
  std::size_t i = 0;
  for (auto _ : state) state.SetIterationTime(mine->seconds[i++ % mine->seconds.size()]);
  for (timing const& t : timings) {
    if (&t == mine) continue;
    std::vector<double> ratios;
    for (std::size_t n = 0; n < t.seconds.size(); ++n)
      ratios.push_back(t.seconds[n] / mine->seconds[n]);
    if (&t == best) put_quartiles(state, "of_limit", ratios);
    put_quartiles(state, (t.is == kind::limit ? "limit_" : "") + t.name, ratios);
  }
  if (best) state.SetLabel("limit: " + best->name);
  state.counters["disturbed"] = disturbed;
}

using action = std::function<void()>;
using verdict = std::function<bool()>;

[[noreturn]] inline void fail(std::string const& name) {
  std::fprintf(stderr, "%s: the result is wrong\n", name.c_str());
  std::fflush(nullptr);
  std::_Exit(1);  // other ranks may run in this process
}

/// The most of a sample for which threads may have waited.
constexpr double most_waited = 0.02;
constexpr int tries = 4;

class comparison {
 public:
  /// `poison` destroys what all of them write.
  explicit comparison(
      benchmark::State& state, action poison = [] {})
      : state_(state), poison_(std::move(poison)) {}

  void ours(action run, verdict right) { add(kind::ours, "ours", run, right); }
  void limit(std::string const& name, action run, verdict right) {
    add(kind::limit, name, run, right);
  }
  void peer(std::string const& name, action run, verdict right) {
    add(kind::peer, name, run, right);
  }

  /// As many rounds as the benchmark has iterations. `before` each sample is not timed; where it is
  /// given, a sample is one call, with none before it.
  void run(action const& before = {}) {
    for (runner& r : runners_) {
      poison_();
      if (before) before();
      bool const is_long = r.time() >= long_enough;
      if (!r.right()) fail(r.name);
      if (!before && !is_long) r.calibrate();
    }
    int disturbed = 0;
    repeats_left_ = static_cast<int>(state_.max_iterations * static_cast<int>(runners_.size()) / 2);
    for (benchmark::IterationCount round = 0; round < state_.max_iterations; ++round)
      for (runner& r : runners_) disturbed += !sample(r, before);
    report(state_, {runners_.begin(), runners_.end()}, disturbed);
  }

 private:
  static constexpr double long_enough = 25e-3;  // for caches to forget what was before it
  struct runner : timing {
    action run;
    verdict right;
    int calls = 1;
    bool warms = false;

    double time() const {
      double const start = seconds_now();
      for (int i = 0; i < calls; ++i) run();
      benchmark::ClobberMemory();
      return seconds_now() - start;
    }
    void calibrate() {
      constexpr double enough = 2e-3;
      for (double s = time(); calls < 1 << 24; s = time()) {
        warms = s < long_enough;
        if (s >= enough) break;
        calls *= s < enough / 8 ? 8 : 2;
      }
    }
  };

  void add(kind is, std::string const& name, action& run, verdict& right) {
    runners_.push_back({{is, name}, std::move(run), std::move(right)});
  }
  /// Whether no thread waited.
  bool sample(runner& r, action const& before) {
    for (int i = 1;; ++i) {
      if (before) before();
      if (r.warms) r.run();
      double const waited = seconds_waited(), s = r.time();
      bool const alone = seconds_waited() - waited <= most_waited * s;
      if (!alone && i < tries && repeats_left_-- > 0) continue;
      r.seconds.push_back(s / r.calls);
      return alone;
    }
  }

  benchmark::State& state_;
  action poison_;
  std::vector<runner> runners_;
  int repeats_left_ = 0;
};

}  // namespace benchmarks
