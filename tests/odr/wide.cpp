// SPDX-License-Identifier: Apache-2.0
// Compiled for vectors of another width than first.cpp.
#include <expar/expar.hpp>

#include "routing.hpp"

int wide_sum();

int wide_sum() {
  return sum_of_ids();
}
