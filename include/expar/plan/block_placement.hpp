// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/config.hpp>
#include <expar/error.hpp>

namespace expar::inline v0 {

/// Which rank holds an expert: consecutive blocks, the first experts % ranks ranks hold one more.
/// On the host, functions throw where there is no such rank or expert; first(ranks) is `experts`.
struct block_placement {
  int experts;
  int ranks;

  EXPAR_HD constexpr int count(int rank) const {
    validate(rank >= 0 && rank < ranks, "rank", rank);
    return experts / ranks + (rank < experts % ranks ? 1 : 0);
  }
  EXPAR_HD constexpr int first(int rank) const {
    validate(rank >= 0 && rank <= ranks, "rank", rank);
    int const extra = experts % ranks;
    return rank * (experts / ranks) + (rank < extra ? rank : extra);
  }
  EXPAR_HD constexpr int owner(int expert) const {
    validate(expert >= 0 && expert < experts, "expert", expert);
    int const share = experts / ranks, longer = experts % ranks * (share + 1);
    return expert < longer ? expert / (share + 1) : experts % ranks + (expert - longer) / share;
  }
  /// The most experts that one rank holds.
  EXPAR_HD constexpr int most() const {
    validate(true, "ranks", ranks);
    return experts / ranks + (experts % ranks != 0);
  }

 private:
  EXPAR_HD constexpr void validate([[maybe_unused]] bool fits, [[maybe_unused]] char const* name,
                                   [[maybe_unused]] int value) const {
#if !defined(__CUDA_ARCH__)
    detail::expects(fits && experts >= 0 && ranks >= 1, "block_placement: ", name, " is ", value,
                    "; there are ", experts, " experts on ", ranks, " ranks");
#endif
  }
};

}  // namespace expar::inline v0
