// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <unistd.h>

#include <chrono>
#include <cstdio>

#include "layer.hpp"

namespace chaos {

/// How rows travel: over a communicator that checks sizes, by windows, or over one that does not.
enum class kind { messages, windows, unchecked };
constexpr char const* kind_names[] = {"messages", "windows", "unchecked"};
constexpr int kinds = 3;
constexpr char const* name_of(kind k) {
  return kind_names[static_cast<int>(k)];
}

/// Whether ranks can find out: not if they call the same, or nothing that could fail.
constexpr bool applies(fault f, step s, kind k) {
  bool const prepares = s == step::prepare || s == step::quotas || s == step::fused;
  switch (f) {
    case fault::argument:
    case fault::skip:
    case fault::sum:
    case fault::report:
      return true;
    case fault::view:
    case fault::pool:
      return s > step::place;
    case fault::memory:
      // Windows have theirs from the communicator; ranks that ask before have theirs from dispatch.
      return k == kind::messages || s <= step::fused || s == step::combine_backward ||
             (k == kind::unchecked && s != step::dispatch_backward);
    case fault::before:
    case fault::after:
      return k != kind::unchecked;  // else nobody knows where ranks are
    case fault::object:
      return s != step::construct;
    case fault::batch:
      return s > step::place && !prepares;
    case fault::user:
      return s != step::place;  // with which the next batch begins
  }
  return false;
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
    std::printf("%-17s%-20s", "fault", "step");
    for (int k = 0; k < kinds; ++k)
      if (used[k]) std::printf("%32s", kind_names[k]);
    std::printf("\n%37s", "");
    for (int k = 0; k < kinds; ++k)
      if (used[k]) std::printf("%32s", "fired  one sentence  recovered");
    std::printf("\n");
    for (int f = 0; f < faults; ++f)
      for (int s = 0; s < steps; ++s) {
        std::printf("%-17s%-20s", fault_names[f], step_names[s]);
        for (int k = 0; k < kinds; ++k) {
          cell const& c = cells_[f][s][k];
          if (used[k] && applies(fault{f}, step{s}, kind{k}))
            std::printf("%7ld%14ld%11ld", c.fired, c.same, c.recovered);
          else if (used[k])
            std::printf("%32s", "-");
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
