// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/config.hpp>

namespace expar::inline v0 {

/// Which rank holds an expert: consecutive blocks, the first experts % ranks ranks hold one more.
struct block_placement {
  int experts;
  int ranks;

  EXPAR_HD constexpr int count(int rank) const {
    return experts / ranks + (rank < experts % ranks ? 1 : 0);
  }
  EXPAR_HD constexpr int first(int rank) const {
    int const extra = experts % ranks;
    return rank * (experts / ranks) + (rank < extra ? rank : extra);
  }
  EXPAR_HD constexpr int owner(int expert) const {
    int const share = experts / ranks, longer = experts % ranks * (share + 1);
    return expert < longer ? expert / (share + 1) : experts % ranks + (expert - longer) / share;
  }
  /// The most experts that one rank holds.
  EXPAR_HD constexpr int most() const { return (experts + ranks - 1) / ranks; }
};

}  // namespace expar::inline v0
