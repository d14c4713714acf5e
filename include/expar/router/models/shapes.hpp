// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/router/router.hpp>

namespace expar::inline v0::models {

/// A router whose weights are multiplied by a constant at last.
struct scaled_shape {
  int experts;
  int top_k;
  double scale = 1;  // the model's routed_scaling_factor

  constexpr operator router_shape() const { return {experts, top_k}; }
};

/// The same, with experts in groups of which a few are taken.
struct grouped_shape {
  int experts;
  int top_k;
  int groups;
  int top_groups;
  double scale = 1;

  constexpr operator router_shape() const { return {experts, top_k}; }
};

}  // namespace expar::inline v0::models
