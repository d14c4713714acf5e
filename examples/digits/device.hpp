// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include <expar/plan/placement.hpp>
#include <expar/report.hpp>

#include "network.hpp"

namespace digits {

/// The network of train.hpp on a CUDA device, its ranks side by side on it: the same layers, the
/// same router, dispatch, combine and their adjoints. Sums over images have one order, so that the
/// weights have the same bits for any number of ranks. With the same weights the experts, rows and
/// scores of an image are those of the host, but where cuBLAS runs the experts.
class device_network {
 public:
  /// Throws expar::error where there is no device.
  device_network(int ranks, std::uint64_t seed);
  ~device_network();

  /// The device, and what runs the experts.
  std::string name() const;
  expar::placement const& placement() const { return place_; }
  bool speaks() const { return true; }
  std::vector<sight> look(std::vector<int> const& images);
  double learn(std::vector<int> const& images, int epoch, float rate);
  expar::routing_report report();
  expar::routing_report report_with_capacity(double capacity_factor);
  std::uint64_t weights_checksum();

  /// All weights: the trunk and the experts in order.
  trunk trunk_weights();
  std::vector<expert> expert_weights();

 private:
  class implementation;
  expar::placement place_;
  std::unique_ptr<implementation> it_;
};

}  // namespace digits
