// SPDX-License-Identifier: Apache-2.0
// Host code that nvcc compiles for a processor with the widest vectors.
#include "../odr/routing.hpp"

int sum_in_wide_vectors();

int sum_in_wide_vectors() {
  return sum_of_ids();
}
