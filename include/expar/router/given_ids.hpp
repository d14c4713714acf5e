// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include <expar/config.hpp>
#include <expar/detail/argument_table.hpp>
#include <expar/detail/expert_ids.hpp>
#include <expar/error.hpp>
#include <expar/router/score.hpp>  // masked
#include <expar/tensor.hpp>

namespace expar::inline v0 {

namespace detail {

/// The id, or -1 where that expert is not to be selected.
template <class A>
EXPAR_HD std::int32_t unless_out(A const* keys, std::int32_t id) {
  return id >= 0 && masked(keys[id]) ? -1 : id;
}

/// The ids that stand there, whatever the keys are, but for experts that are out.
struct ids_of_row {
  std::int32_t const* row;

  template <class A>
  EXPAR_HD void select(A const* keys, A const* /*s*/, int /*experts*/, int k, std::int32_t* ids,
                       A* /*scratch*/) const {
    for (int j = 0; j < k; ++j) ids[j] = unless_out(keys, row[j]);
  }
};

}  // namespace detail

/// The experts that the caller names, ids [T, top_k]: a choice that was recorded and is replayed,
/// or made elsewhere. The weights are those of the logits at hand; the id of an expert that is
/// masked becomes -1.
struct given_ids {
  tensor_view<std::int32_t const, 2> ids;

  EXPAR_HD constexpr detail::ids_of_row at(index_t token) const { return {ids.row(token)}; }
  void validate(detail::argument_table& a, int /*experts*/, int top_k, index_t tokens) const {
    a.reads("given ids", ids, {{tokens, "the number of tokens"}, {top_k, "top_k"}});
  }
  void validate_entries(char const* what, int experts, int /*top_k*/, index_t /*tokens*/) const {
    detail::check_expert_ids(detail::sentence(what, ": given ids").c_str(), ids, experts);
  }
};

/// The experts of the token's entry in a fixed table: table[names[token]], where table is
/// [entries, top_k] and names [T] is, say, the vocabulary id of each token (Hash Layers,
/// DeepSeek-V4) or its position. The id of an expert that is masked becomes -1.
struct table_ids {
  tensor_view<std::int32_t const, 2> table;
  tensor_view<std::int32_t const, 1> names;

  EXPAR_HD constexpr detail::ids_of_row at(index_t token) const {
    return {table.row(names(token))};
  }
  void validate(detail::argument_table& a, int /*experts*/, int top_k, index_t tokens) const {
    a.reads("table", table, {detail::any_extent, {top_k, "top_k"}});
    a.reads("names", names, {{tokens, "the number of tokens"}});
  }
  void validate_entries(char const* what, int experts, int top_k, index_t tokens) const {
    for (index_t t = 0; t < tokens; ++t) {
      index_t const at = names(t);
      detail::expects(at >= 0 && at < table.extents[0], what, ": names(", t, ") is ", at,
                      "; the table has ", table.extents[0], " rows");
      for (int j = 0; j < top_k; ++j)
        detail::expects(table(at, j) >= -1 && table(at, j) < experts, what, ": table(", at, ", ", j,
                        ") is ", table(at, j), "; an expert id is -1 (no expert) or 0 to ",
                        experts - 1);
    }
  }
};

namespace detail {

struct experts_in_turn {
  index_t first;

  template <class A>
  EXPAR_HD void select(A const* keys, A const* /*s*/, int experts, int k, std::int32_t* ids,
                       A* /*scratch*/) const {
    for (int j = 0; j < k; ++j)
      ids[j] = unless_out(keys, static_cast<std::int32_t>((first * k + j) % experts));
  }
};

}  // namespace detail

/// Experts in turn, for benchmarks of perfectly balanced load: token t takes those from t * k on.
struct round_robin {
  EXPAR_HD constexpr detail::experts_in_turn at(index_t token) const { return {token}; }
};

}  // namespace expar::inline v0
