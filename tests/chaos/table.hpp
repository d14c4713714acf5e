// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <unistd.h>

#include <chrono>
#include <cstdio>

#include "layer.hpp"

namespace chaos {

/// How rows travel: over a communicator that checks sizes, by windows, or over one that does not;
/// and by a chain of hops over either communicator.
enum class kind { messages, windows, unchecked, hops, hops_unchecked };
constexpr char const* kind_names[] = {"messages", "windows", "unchecked", "hops", "hops unchecked"};
constexpr int kinds = 5;
constexpr char const* name_of(kind k) {
  return kind_names[static_cast<int>(k)];
}

constexpr bool checks_sizes(kind k) {
  return k != kind::unchecked && k != kind::hops_unchecked;
}

/// Whether something can fail, and ranks can find out: not if all call the same.
constexpr bool applies(fault f, step s, kind k) {
  using enum fault;
  bool const prepares = s == step::prepare || s == step::quotas || s == step::fused;
  if (f == view || f == pool) return s > step::place;
  if (f == before || f == after) return checks_sizes(k);  // else nobody knows where ranks are
  if (f == object) return s != step::construct;
  if (f == batch) return s > step::place && !prepares;
  if (f == user) return s != step::place;  // with which the next batch begins
  // Windows have theirs from the communicator; ranks that ask before have theirs from dispatch.
  if (f == memory && k == kind::windows) return s <= step::fused || s == step::combine_backward;
  if (f == memory && k == kind::unchecked) return s != step::dispatch_backward;
  return true;
}

using clock = std::chrono::steady_clock;

/// What happened in each cell of fault x step x transport.
class tally {
 public:
  struct cell {
    long fired = 0, same = 0, recovered = 0;
    int depth = 0;  // the first time at which it has not failed
  };

  cell& at(fault f, step s, kind k) {
    return cells_[static_cast<int>(f)][static_cast<int>(s)][static_cast<int>(k)];
  }
  void count(cell& c, int times, bool same, bool recovered) {
    ++fired_, ++c.fired, c.same += same, c.recovered += recovered;
    if (times == c.depth) ++c.depth;
  }
  long fired() const { return fired_; }

  double seconds() const { return std::chrono::duration<double>(clock::now() - begun_).count(); }
  /// A line each second.
  void show_progress(int ranks, fault f, step s, kind k) {
    if (clock::now() - last_line_ < std::chrono::seconds(1)) return;
    last_line_ = clock::now();
    bool const screen = isatty(1) != 0;
    std::printf("%s%5.0f s  %9ld firings  %d ranks, %s, %s, %s%s", screen ? "\r" : "", seconds(),
                fired_, ranks, name_of(k), name_of(f), name_of(s), screen ? "\033[K" : "\n");
    std::fflush(stdout);
  }
  void print(bool const (&used)[kinds]) {
    std::printf("%s%-17s%-20s", isatty(1) != 0 ? "\r\033[K" : "", "fault", "step");
    for (int k = 0; k < kinds; ++k)
      if (used[k]) std::printf("%29s", kind_names[k]);
    std::printf("\n%37s", "");
    for (int k = 0; k < kinds; ++k)
      if (used[k]) std::printf("%29s", "fired    same  recovered");
    std::printf("\n");
    for (int f = 0; f < faults; ++f)
      for (int s = 0; s < steps; ++s) {
        std::printf("%-17s%-20s", fault_names[f], step_names[s]);
        for (int k = 0; k < kinds; ++k) {
          cell const& c = cells_[f][s][k];
          if (used[k] && applies(fault{f}, step{s}, kind{k}))
            std::printf("%10ld%8ld%11ld", c.fired, c.same, c.recovered);
          else if (used[k])
            std::printf("%29s", "-");
        }
        std::printf("\n");
      }
  }
  template <class F>
  static void each(F f) {
    for (int fault = 0; fault < faults; ++fault)
      for (int s = 0; s < steps; ++s)
        for (int k = 0; k < kinds; ++k)
          if (applies(chaos::fault{fault}, step{s}, kind{k}))
            f(chaos::fault{fault}, step{s}, kind{k});
  }

 private:
  cell cells_[faults][steps][kinds];
  long fired_ = 0;
  clock::time_point begun_ = clock::now(), last_line_ = begun_;
};

}  // namespace chaos
