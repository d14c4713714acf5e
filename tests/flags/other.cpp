// SPDX-License-Identifier: Apache-2.0
// Compiled with each option that changes floating point.
#include "bits.hpp"

std::uint64_t bits_of_other_file();

std::uint64_t bits_of_other_file() {
  return bits();
}
