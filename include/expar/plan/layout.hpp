// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include <expar/config.hpp>
#include <expar/detail/sizes.hpp>
#include <expar/error.hpp>
#include <expar/tensor.hpp>

namespace expar::inline v0 {

/// Dropless: the rows of each expert follow one another, and each expert begins at a multiple of
/// `alignment` rows. Rows that only fill up to the multiple are zero.
struct ragged {
  int alignment = 1;
};

/// Ragged, with at most `rows` rows on a rank, padding included: also what its windows hold. Where
/// a rank would get more, dispatch throws on all ranks and says how many; or, with `drops`, the
/// slots of that rank keep at most L rows each, L the largest number with which they fit: first
/// those of lower source ranks, and of one rank those of earlier tokens.
struct row_budget {
  index_t rows;
  int alignment = 1;
  bool drops = false;
};

/// [experts, capacity, hidden]: every expert has the same number of rows, what exceeds it is
/// dropped and counted, what is unused is zero. First choices of all tokens take their place before
/// second choices. The capacity is `rows`, or follows Tutel where that is -1; see capacity_of().
/// Among ranks it is that of each rank for an expert, and a slot has room for as many rows from
/// every rank; copies that are taken in turn share it, rounded up.
struct fixed_capacity {
  double factor = 1.0;
  int alignment = 1;
  index_t rows = -1;
};

namespace detail {

constexpr void check_layout(char const* what, ragged layout) {
  expects(layout.alignment >= 1, what, ": alignment is ", layout.alignment, "; it is at least 1");
}
constexpr void check_layout(char const* what, row_budget layout) {
  expects(layout.rows >= 0, what, ": the budget has ", layout.rows, " rows; it is at least 0");
  check_layout(what, ragged{layout.alignment});
}
constexpr void check_layout(char const* what, fixed_capacity layout) {
  expects(layout.alignment >= 1, what, ": alignment is ", layout.alignment, "; it is at least 1");
  expects(layout.factor > -1e6 && layout.factor < 1e6, what, ": capacity factor is ", layout.factor,
          "; it lies between -1000000 and 1000000");
  expects(layout.rows >= -1 && layout.rows <= INT32_MAX, what, ": capacity rows is ", layout.rows,
          "; it is at least 0, or -1 for the factor, and at most ", INT32_MAX);
}

}  // namespace detail

EXPAR_HD constexpr index_t round_up(index_t n, index_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}
namespace detail {
/// round_up(), without a division where there is nothing to round.
constexpr index_t aligned(index_t n, index_t multiple) {
  return multiple == 1 ? n : round_up(n, multiple);
}
}  // namespace detail

/// Rows per expert: layout.rows, or by the rule of Tutel (tutel/impls/fast_dispatch.py,
/// extract_critical), where `tokens` and `most` are maxima over the ranks: the tokens of a rank,
/// and the routes that a rank has for one expert. With s = ceil(tokens / experts):
///   factor > 0: top_k * int(factor * s)
///   factor = 0: most, so that nothing is dropped
///   factor < 0: min(most, top_k * int(-factor * s))
/// then rounded up to a multiple of `alignment`. Where tokens exist, the bound by a factor is at
/// least 1. What no index can count is PTRDIFF_MAX. On the host, throws where a number is out of
/// its range.
EXPAR_HD constexpr index_t capacity_of(fixed_capacity layout, index_t tokens, int experts,
                                       int top_k, index_t most) {
#if !defined(__CUDA_ARCH__)
  detail::check_layout("capacity_of", layout);
  detail::expects(experts >= 1, "capacity_of: experts is ", experts, "; at least 1 is needed");
  detail::expects(tokens >= 0 && top_k >= 0 && most >= 0, "capacity_of: tokens is ", tokens,
                  ", top_k ", top_k, " and most ", most, "; none is negative");
#endif
  index_t const share = tokens / experts + (tokens % experts != 0);
  double const factor = layout.factor < 0 ? -layout.factor : layout.factor;
  double const each = factor * static_cast<double>(share);
  index_t bound =
      detail::size_product(top_k, each < 0x1p62 ? static_cast<index_t>(each) : detail::uncountable);
  if (bound < 1 && tokens > 0) bound = 1;
  bool const takes_most = factor <= 0 || (layout.factor < 0 && most < bound);
  index_t const n = layout.rows >= 0 ? layout.rows : takes_most ? most : bound;
  return detail::size_product(n / layout.alignment + (n % layout.alignment != 0), layout.alignment);
}

}  // namespace expar::inline v0
