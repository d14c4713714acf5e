// SPDX-License-Identifier: Apache-2.0
#include "../examples/digits/device.hpp"

#include <expar/comm/self.hpp>
#include <expar/comm/thread.hpp>

#include "../examples/digits/train.hpp"
#include "gpu/device.cuh"
#include "support/catch.hpp"

namespace {

std::vector<int> some_images(std::size_t first, std::size_t count) {
  auto const all = digits::train_split();
  auto const begin = all.begin() + static_cast<std::ptrdiff_t>(first);
  return {begin, begin + static_cast<std::ptrdiff_t>(count)};
}

bool same(expar::routing_report const& a, expar::routing_report const& b) {
  return a.ranks == b.ranks && a.tokens == b.tokens && a.routes == b.routes &&
         a.dropped == b.dropped && a.capacity == b.capacity &&
         a.needed_capacity == b.needed_capacity && a.counts == b.counts && a.traffic == b.traffic &&
         a.place == b.place && a.slot_counts == b.slot_counts;
}

}  // namespace

TEST_CASE("training on a device gives the same bits for any number of ranks") {
  auto const images = some_images(0, 133);  // a whole batch, and one that ends in half a block
  std::uint64_t wanted = 0;
  for (int ranks : {1, 2, 3, 4}) {
    digits::device_network net(ranks, 5);
    double const loss = net.learn(images, 0, .01f);
    REQUIRE(loss > 0);
    if (ranks == 1) wanted = net.weights_checksum();
    REQUIRE(net.weights_checksum() == wanted);
  }
}

TEST_CASE("with the weights of a device the host sees the same, expert by expert") {
  constexpr int ranks = 3;
  digits::device_network net(ranks, 5);
  net.learn(some_images(0, 100), 0, .01f);
  auto const images = some_images(200, 61);
  auto const seen = net.look(images);
  auto const report = net.report(), capped = net.report_with_capacity(1.0);
  auto const trunk = net.trunk_weights();
  auto const experts = net.expert_weights();
  REQUIRE(capped.dropped > 0);

  std::vector<std::string> wrong(ranks);
  expar::run_ranks(ranks, [&](expar::thread_communicator& comm) {
    auto& mine = wrong[static_cast<std::size_t>(comm.rank())];
    digits::network host(comm, 5);
    host.load(trunk, experts);
    auto const expected = host.look(images);
    for (std::size_t i = 0; i < images.size(); ++i) {
      if (seen[i].image != expected[i].image || seen[i].guess != expected[i].guess) mine = "guess";
      if (seen[i].experts != expected[i].experts) mine = "experts";
      if (seen[i].weights != expected[i].weights) mine = "weights";
    }
    if (!same(host.report(), report)) mine = "report";
    if (!same(host.report_with_capacity(1.0), capped)) mine = "report with a capacity";
  });
  REQUIRE(wrong == std::vector<std::string>(ranks));
}

TEST_CASE("a step on a device is the step of the host, but for how sums over images are rounded") {
  auto const images = some_images(300, 100);
  expar::self_communicator alone;
  digits::network host(alone, 7);
  digits::device_network device(2, 7);
  double const wanted = host.learn(images, 0, .01f);
  REQUIRE_THAT(device.learn(images, 0, .01f), Catch::Matchers::WithinAbs(wanted, 1e-5));
  auto const trunk = device.trunk_weights();
  auto const from_host = host.trunk_weights();
  for (int i = 0; i < digits::width; ++i)
    for (int c = 0; c < digits::classes; ++c)
      REQUIRE_THAT(
          trunk.readout.weight[i][c],
          Catch::Matchers::WithinAbs(static_cast<double>(from_host.readout.weight[i][c]), 1e-5));
}
