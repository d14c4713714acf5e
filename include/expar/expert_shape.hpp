// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <type_traits>

#include <expar/exchange/agreement.hpp>
#include <expar/plan/layout.hpp>

namespace expar::inline v0 {

/// What all ranks agree on: experts of the whole group, choices per token, elements of a row, and
/// of a row of what experts make of it (0: as many).
struct expert_shape {
  int experts;
  int top_k;
  index_t hidden;
  index_t hidden_out = 0;
};

namespace detail {

/// Throws unless the shape and the layout are possible.
template <class Layout>
void check_shape(char const* what, expert_shape shape, Layout layout) {
  expects(shape.experts >= 1, what, ": experts is ", shape.experts, "; at least 1 is needed");
  expects(shape.top_k >= 1 && shape.top_k <= shape.experts, what, ": top_k is ", shape.top_k,
          "; it lies between 1 and the ", shape.experts, " experts");
  constexpr index_t most = index_t{1} << 48;  // so that the bytes of a row are an index
  expects(shape.hidden >= 1, what, ": hidden is ", shape.hidden, "; at least 1 is needed");
  expects(shape.hidden <= most, what, ": hidden is ", shape.hidden, "; at most ", most,
          " is possible");
  expects(shape.hidden_out >= 0 && shape.hidden_out <= most, what, ": hidden_out is ",
          shape.hidden_out, "; it lies between 0, for hidden, and ", most);
  check_layout(what, layout);
}

/// Collective. The same, on all ranks alike, and unless all ranks pass the same; `wrong`: whether
/// this rank lacks memory. Returns the `id` that rank 0 passes.
template <class Comm, class Layout>
std::uint64_t check_group(host_context const& ctx, Comm& comm, agreement& agreed, char const* what,
                          expert_shape shape, Layout layout, int site, failure const& wrong,
                          std::uint64_t own_id) {
  constexpr bool has_capacity = std::is_same_v<Layout, fixed_capacity>;
  constexpr bool has_budget = std::is_same_v<Layout, row_budget>;
  double factor = 0, rows = -1;
  if constexpr (has_capacity) factor = layout.factor, rows = static_cast<double>(layout.rows);
  if constexpr (has_budget) factor = layout.drops, rows = static_cast<double>(layout.rows);
  std::uint64_t const id = expects_agreement(
      ctx, comm, agreed, step::construct, what,
      {{"the layout (0: ragged, 1: fixed_capacity, 2: row_budget)", has_capacity ? 1.0
                                                                    : has_budget ? 2.0
                                                                                 : 0.0},
       {"where weights are applied (0: decode, 1: encode, 2: per row)", site + 0.0},
       {"experts", static_cast<double>(shape.experts)},
       {"top_k", static_cast<double>(shape.top_k)},
       {"hidden", static_cast<double>(shape.hidden)},
       {"hidden_out", static_cast<double>(shape.hidden_out)},
       {has_budget ? "drops" : "capacity factor", factor},
       {has_budget ? "budget rows" : "capacity rows", rows},
       {"alignment", static_cast<double>(layout.alignment)}},
      wrong, own_id);
  check_shape(what, shape, layout);
  return id;
}

}  // namespace detail

/// Where the weight of a route is applied: to the expert's output on the token's rank (the
/// default), to the row on its way out, or by the caller's expert, which gets one weight per row.
struct weights_at_decode {};
struct weights_at_encode {};
struct weights_per_row {};

}  // namespace expar::inline v0
