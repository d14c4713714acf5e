// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <cstdio>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include <expar/report.hpp>

#include "faults.hpp"
#include "options.hpp"
#include "page.hpp"
#include "progress.hpp"
#include "train.hpp"

namespace digits {

/// Trains and tests. Collective; the outcome is the same on every rank, but for the times.
template <class Network>
outcome train_and_test(Network& net, options const& o, std::string const& transport, fault planned,
                       std::function<void()> leave) {
  auto const train = train_split(), test = test_split();
  progress const shown(o.epochs);
  outcome result;
  result.transport = transport;
  result.seed = o.seed;
  training taught(net, std::move(planned), std::move(leave));

  net.look(train);
  result.before = net.report();

  for (int epoch = 0; epoch < o.epochs; ++epoch) {
    float const left = 1 - static_cast<float>(epoch) / static_cast<float>(o.epochs);
    stopwatch const watch;
    result.losses.push_back(taught.learn(train, epoch, .006f * left));
    result.training_seconds += watch.seconds();
    result.test_sights = net.look(test);
    result.accuracies.push_back(accuracy(result.test_sights));
    if (net.speaks()) shown.show(epoch + 1, result.losses.back(), result.accuracies.back());
  }

  result.happened = taught.happened();
  result.train_sights = net.look(train);
  result.after = net.report();
  result.capped = net.report_with_capacity(1.0);
  result.checksum = net.weights_checksum();
  return result;
}

inline void print(outcome const& r) {
  index_t most = 0;
  for (auto const* counts : {&r.before.counts, &r.after.counts})
    for (index_t count : *counts) most = count > most ? count : most;
  std::printf("\nload of the experts before training (routes, and their ratio to the mean)\n%s",
              expar::load_bars(r.before.counts, 40, most).c_str());
  std::printf("\nload of the experts after training\n%s",
              expar::load_bars(r.after.counts, 40, most).c_str());
  std::printf("\nexperts on ranks after training (darker: more rows)\n%s",
              expar::placement_chart(r.place(), r.after.slot_counts).c_str());
  std::printf("\ntraffic between ranks after training\n%s", expar::traffic_matrix(r.after).c_str());
  std::string const lost = lost_experts(r.place());
  std::printf("\ndropped routes: %.2f%% (%s); a capacity factor of 1.0 would drop %.2f%%\n",
              100 * r.after.dropped_share(), lost.empty() ? "dropless" : (lost + " lost").c_str(),
              100 * r.capped.dropped_share());
  std::printf("tokens per second: %.0f\n", r.tokens_per_second());
}

/// The whole program on one rank. `leave` ends the rank that is to be killed, and does not return.
template <class Network>
void run_demo(Network& net, options const& o, std::string const& transport, fault planned = {},
              std::function<void()> leave = {}) {
  if (net.speaks())
    std::printf("%s; %s, %d training images, %d test images, seed %d\n",
                placement_text(net.placement()).c_str(), transport.c_str(), train_count,
                image_count - train_count, o.seed);
  outcome const result = train_and_test(net, o, transport, std::move(planned), std::move(leave));
  if (!net.speaks()) return;
  print(result);
  write_file(o.report, page(result));
  std::printf("report: %s\n", o.report.c_str());
  std::printf("test accuracy: %.2f%%\n", 100 * result.accuracies.back());
  std::printf("checksum: %016llx\n", static_cast<unsigned long long>(result.checksum));
}

}  // namespace digits
