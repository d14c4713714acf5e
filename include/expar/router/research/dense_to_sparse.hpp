// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/detail/arguments.hpp>
#include <expar/detail/arithmetic.hpp>
#include <expar/router/per_token.hpp>
#include <expar/router/score.hpp>

namespace expar::inline v0 {

struct count_above_fn {
  template <class Logits>
  index_t operator()(host_context const& ctx, Logits const& logits, double threshold) const {
    detail::arguments a(ctx, "count_above");
    auto const z = a.masked("logits", logits);
    detail::expects(!detail::is_nan(threshold), a, ": threshold is ", threshold,
                    "; it is a number");
    using A = accumulator_t<detail::element_of<decltype(z)>>;
    index_t const tokens = z.extents[0], experts = z.extents[1];
    int const n = detail::row_size(a, "logits", experts, "experts");
    detail::buffer<std::int32_t> counts(ctx.memory());
    counts.assign(static_cast<std::size_t>(tokens), 0);
    detail::for_each_token_with<A>(ctx, tokens, experts, experts, [&](index_t t, A* s) {
      if (!z.valid(t)) return;
      detail::widen_row(z.row(t), s, experts);
      softmax_score{}(static_cast<A const*>(s), s, n);
      std::int32_t above = 0;
      for (index_t e = 0; e < experts; ++e) above += s[e] > static_cast<A>(threshold);
      counts[t] = above;
    });
    index_t total = 0;
    for (std::int32_t const above : counts) total += above;
    return total;
  }
};
/// `count_above(ctx, logits, threshold)`: how many scores are above a threshold, over all tokens.
/// The scores are the softmax of logits [T, experts] of any element type, or only(valid, logits),
/// as they are after the transforms of a router. Counts add up over ranks.
inline constexpr count_above_fn count_above{};

/// The top_k of a router that becomes sparse as it trains: the larger of `least` and the mean over
/// tokens, rounded down, of the number of experts whose score is above the threshold (EvoMoE,
/// arXiv:2112.14397; CustomDTSGate of Random-MoE-as-Dropout, with Gumbel noise, a temperature that
/// falls, and a threshold of .001). `above` is what count_above() counted for `tokens` tokens, the
/// valid ones of all ranks that shall have the same top_k.
constexpr int dense_to_sparse_k(int least, index_t above, index_t tokens) {
  index_t const mean = tokens > 0 ? above / tokens : 0;
  detail::expects(mean <= INT32_MAX, "dense_to_sparse_k: above is ", above, " for ", tokens,
                  " tokens; their mean is at most ", INT32_MAX);
  return mean > least ? static_cast<int>(mean) : least;
}

}  // namespace expar::inline v0
