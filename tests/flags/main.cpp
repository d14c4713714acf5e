// SPDX-License-Identifier: Apache-2.0
// Of the library's functions that this file and the other one have in common, the linker keeps
// those of the file that it sees first; either way both find the bits of a build without options.
#include "bits.hpp"

std::uint64_t bits_of_other_file();

int main() {
  constexpr std::uint64_t expected = 0x3eb7d358f966ed2b;
  return (bits() == expected ? 0 : 1) + (bits_of_other_file() == expected ? 0 : 2);
}
