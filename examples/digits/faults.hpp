// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstring>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include <expar/expar.hpp>

#include "network.hpp"
#include "options.hpp"
#include "progress.hpp"
#include "svg.hpp"
#include "train.hpp"

namespace digits {

/// What a rank was told of a fault, and how long after its experts had run.
struct hearing {
  int rank;  // as it was numbered before
  double milliseconds;
  char sentence[expar::error::room];
};

/// What happens to a rank in the middle of the training, and what came of it.
struct fault {
  int rank = -1;  // -1: nothing happens
  bool kills = false;
  int step = 0;
  std::vector<hearing> heard{};  // by all ranks that go on
};

/// Throws bad_usage where there is no such rank.
inline fault fault_of(options const& o, int ranks) {
  fault f;
  f.kills = o.kill >= 0, f.rank = f.kills ? o.kill : o.skip;
  f.step = o.epochs * steps_of_epoch / 2;
  char const* const name = f.kills ? "--kill" : "--skip";
  if (f.rank < 0) return f;
  if (ranks < 2) throw bad_usage(std::string(name) + " needs at least 2 ranks");
  if (f.rank >= ranks)
    throw bad_usage(std::string(name) + " is " + std::to_string(f.rank) + "; the ranks are 0 to " +
                    std::to_string(ranks - 1));
  return f;
}

inline std::string what_happens(fault const& f) {
  return format("epoch %d, batch %d: rank %d ", 1 + f.step / steps_of_epoch,
                1 + f.step % steps_of_epoch, f.rank) +
         (f.kills ? "ends between dispatch and combine"
                  : "throws between dispatch and combine, catches that, and begins the step again");
}
inline std::string what_goes_on(fault const& f, expar::placement const& place) {
  if (!f.kills) return "all ranks repeat the step, and have the weights that they would have had";
  std::string const lost = lost_experts(place);
  return ranks_text(place.ranks()) +
         (place.ranks() == 1 ? " repeats the step, and has all images; "
                             : " repeat the step, and share its images; ") +
         (lost.empty() ? "every expert has a copy yet"
                       : "the routes of " + lost + " are dropped from now on");
}
inline std::string fault_text(fault const& f, expar::placement const& place) {
  std::string text = what_happens(f) + "\n";
  for (hearing const& h : f.heard)
    text += format("rank %3d hears, %.1f ms after its experts: %s\n", h.rank, h.milliseconds,
                   h.sentence);
  return text + what_goes_on(f, place) + (f.kills ? ":\n" + placement_chart(place) : "\n");
}

/// The training of a network, in the middle of which a fault may happen.
template <class Network>
class training {
 public:
  /// `leave` ends the rank that is killed, and does not return.
  training(Network& net, fault planned, std::function<void()> leave)
      : net_(net), fault_(std::move(planned)), leave_(std::move(leave)) {}

  fault const& happened() const { return fault_; }

  double learn(std::vector<int> const& images, int epoch, float rate) {
    if constexpr (requires { net_.comm(); })
      if (fault_.rank >= 0)
        return net_.learn(images, epoch, rate, [&](auto step) { return run(step); });
    return net_.learn(images, epoch, rate);
  }

 private:
  struct missed_combine {};

  template <class Step>
  double run(Step step) {
    if (done_++ != fault_.step) return step([] {});
    int const rank = net_.comm().rank();
    stopwatch watch;
    bool struck = false;
    auto const strike = [&] {
      if (std::exchange(struck, true)) return;
      watch = {};
      if (rank != fault_.rank) return;
      if (fault_.kills) leave_();
      throw missed_combine();
    };
    // What fails on one rank fails on all, before any has changed a weight: they repeat the step.
    for (;;) {
      try {
        return step(strike);
      } catch (missed_combine const&) {  // of which the others hear when this rank begins again
      } catch (expar::error const& e) {
        double const milliseconds = 1000 * watch.seconds();
        if (!fault_.heard.empty()) throw;
        if (auto const* lost = dynamic_cast<expar::lost_rank const*>(&e))
          net_.go_on_without(lost->rank());
        tell(rank, milliseconds, e.what());
      }
    }
  }

  /// Collective over the ranks that go on.
  void tell(int rank, double milliseconds, char const* sentence) {
    hearing mine{rank, milliseconds, {}};
    std::strncpy(mine.sentence, sentence, sizeof mine.sentence - 1);
    int const ranks = net_.comm().size();
    fault_.heard = gather(expar::host_context(), net_.comm(), expar::block_placement{ranks, ranks},
                          std::vector<hearing>{mine});
    if (net_.speaks()) std::printf("\n%s\n", fault_text(fault_, net_.placement()).c_str());
    std::fflush(stdout);
  }

  Network& net_;
  fault fault_;
  std::function<void()> leave_;
  int done_ = 0;
};

}  // namespace digits
