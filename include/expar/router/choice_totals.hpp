// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory_resource>

#include <expar/detail/arguments.hpp>
#include <expar/detail/sizes.hpp>
#include <expar/router/count_choices.hpp>

namespace expar::inline v0 {

/// Counts of choices that add up over micro-batches, and of how many tokens they are: what a
/// balancing loss over the global batch reads (Qwen; Megatron-LM's global_aux_loss), and what a
/// bias is updated by once per step. Add counts that are summed over ranks already, with the tokens
/// of all these ranks; a load_balance_loss() then takes counts() and, as its counted_tokens,
/// tokens().
class choice_totals {
 public:
  explicit choice_totals(index_t experts,
                         std::pmr::memory_resource* memory = std::pmr::get_default_resource())
      : counts_(memory) {
    detail::expects(experts >= 0, "choice_totals: experts is ", experts, "; it is at least 0");
    counts_.assign(static_cast<std::size_t>(experts), 0);
  }

  /// counts: [experts] integers, of `tokens` tokens.
  template <class Counts>
  void add(host_context const& ctx, Counts const& counts, index_t tokens) {
    detail::arguments a(ctx, "choice_totals");
    auto const n = detail::as_counts(a.read_any_vector(
        "counts", counts, {{static_cast<index_t>(counts_.size()), "the number of experts"}}));
    detail::expects(tokens >= 0, a, ": tokens is ", tokens, "; it is at least 0");
    index_t const all = detail::size_sum(tokens_, tokens);
    detail::expects(all < detail::uncountable, a, ": tokens is ", tokens, "; with the ", tokens_,
                    " before they are more than can be counted");
    for (index_t e = 0; e < n.extents[0]; ++e) {
      index_t sum = counts_[e];
      detail::add_count("choice_totals: counts", e, n(e), sum);
    }
    for (index_t e = 0; e < n.extents[0]; ++e) counts_[e] += static_cast<index_t>(n(e));
    tokens_ = all;
  }
  /// All zero again, for the next step.
  void clear() {
    counts_.assign(counts_.size(), 0);
    tokens_ = 0;
  }

  tensor_view<index_t const, 1> counts() const {
    return make_view(counts_.data(), static_cast<index_t>(counts_.size()));
  }
  index_t tokens() const { return tokens_; }

 private:
  detail::buffer<index_t> counts_;
  index_t tokens_ = 0;
};

}  // namespace expar::inline v0
