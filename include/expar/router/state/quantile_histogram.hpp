// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/detail/arguments.hpp>
#include <expar/detail/arithmetic.hpp>
#include <expar/router/count_choices.hpp>  // as_counts, check_countable
#include <expar/router/detail/steps.hpp>   // validate_step
#include <expar/router/per_token.hpp>
#include <expar/router/score.hpp>
#include <expar/router/state/quantile_balance.hpp>

EXPAR_IEEE_BEGIN
namespace expar::inline v0 {

/// The range that the bins of a histogram divide evenly. What is outside is in the outer bins.
struct quantile_bins {
  double lower, upper;
};

namespace detail {

inline void check_bins(char const* op, quantile_bins const& bins, index_t n) {
  expects(n >= 1 && n < INT32_MAX, op, ": histogram has ", n,
          " bins; there is at least 1, and fewer than ", INT32_MAX);
  double const range = bins.upper - bins.lower;
  expects(range > 0 && range < infinity<double>, op, ": the bins reach from ", bins.lower, " to ",
          bins.upper, "; their range is finite and not empty");
}

template <class A>
std::int32_t bin_of(A x, A lower, A per_bin, std::int32_t bins) {
  A const at = multiply(add(x, -lower), per_bin);
  if (!(at > A(0))) return 0;
  return at < static_cast<A>(bins) ? static_cast<std::int32_t>(at) : bins - 1;
}

}  // namespace detail

struct add_quantile_histogram_fn {
  template <score_policy Score, class Logits, class Bias, class Histogram>
  void operator()(host_context const& ctx, Score const& score, Logits const& logits,
                  Bias const& bias, int top_k, quantile_bins const& bins,
                  Histogram&& histogram) const {
    detail::arguments a(ctx, "add_quantile_histogram");
    auto const z = detail::read_balanced(a, logits, top_k);
    index_t const tokens = z.extents[0], experts = z.extents[1];
    detail::validate_step(a, score, static_cast<int>(experts), top_k, tokens);
    auto const b = a.read_vector("bias", bias, {{experts, "the number of experts"}});
    auto const h = detail::as_counts(
        a.written_any("histogram", histogram, {{experts, "the number of experts"}}));
    detail::check_bins(a, bins, h.extents[1]);
    using A = accumulator_t<detail::element_of<decltype(z)>>;
    index_t most = 0;
    for (index_t e = 0; e < experts; ++e)
      for (index_t i = 0; i < h.extents[1]; ++i)
        if (auto const n = static_cast<index_t>(h.row(e)[i]); n > most) most = n;
    detail::check_countable<detail::element_of<decltype(h)>>(a, detail::size_sum(most, tokens));
    auto const n = static_cast<std::int32_t>(h.extents[1]);
    A const lower = static_cast<A>(bins.lower);
    A const per_bin = static_cast<A>(static_cast<double>(n) / (bins.upper - bins.lower));
    // The bins of a block of tokens, token by token, and then the counts, expert by expert.
    constexpr index_t block = 1024;
    index_t const grain = 4096 / (experts + 1) + 1, room = 2 * experts + top_k + 1;
    int const parts = ctx.chunks(tokens < block ? tokens : block, grain);
    detail::buffer<A> scratch(ctx.memory());
    detail::buffer<std::int32_t> ids(ctx.memory()), found(ctx.memory());
    scratch.resize(room * parts);
    ids.resize(index_t{top_k + 1} * parts);
    found.resize((tokens < block ? tokens : block) * experts);
    for (index_t start = 0; start < tokens; start += block) {
      index_t const count = tokens - start < block ? tokens - start : block;
      ctx.for_each_chunk(count, grain, [&](int part, index_t first, index_t last) {
        A *const x = scratch.data() + part * room, *const s = x + experts;
        for (index_t i = first; i < last; ++i) {
          std::int32_t* const mine = found.data() + i * experts;
          bool const counted = z.valid(start + i);
          if (counted) {
            detail::widen_row(z.row(start + i), x, experts);
            score(static_cast<A const*>(x), s, static_cast<int>(experts));
            for (index_t e = 0; e < experts; ++e)
              x[e] = detail::masked(x[e]) ? -detail::infinity<A>
                                          : detail::add(s[e], static_cast<A>(widen(b(e))));
          }
          A const cutoff = counted ? detail::cutoff_of(
                                         static_cast<A const*>(x), static_cast<int>(experts), top_k,
                                         ids.data() + index_t{part} * (top_k + 1), s + experts)
                                   : A(0);
          for (index_t e = 0; e < experts; ++e)
            mine[e] = counted && !detail::masked(x[e])
                          ? detail::bin_of(detail::add(cutoff, -s[e]), lower, per_bin, n)
                          : -1;
        }
      });
      ctx.for_each_chunk(experts, 16, [&](int, index_t first, index_t last) {
        for (index_t i = 0; i < count; ++i)
          for (index_t e = first; e < last; ++e)
            if (std::int32_t const bin = found[i * experts + e]; bin >= 0) ++h.row(e)[bin];
      });
    }
  }
};
/// `add_quantile_histogram(ctx, score, logits, bias, top_k, bins, histogram)` ADDS to a histogram,
/// for each expert, which bias would just have won it each token: quantile balancing by counts that
/// add up exactly over micro-batches and ranks (Transformer Engine, fused_router, qb_histogram;
/// Megatron-LM):
///   cutoff[t] = the (top_k + 1)-th largest of score[t,e] + bias[e] over experts,
///   histogram[e, floor((cutoff[t] - score[t,e] - lower) * n / (upper - lower))] += 1
///   score: sigmoid_score in Transformer Engine
///   logits: [T, experts], any element type, or only(valid, logits); NaN and -inf are counted
///           nowhere
///   bias: [experts] of any element type, the bias of biased_key
///   histogram: [experts, n] integers. What is outside of the n bins is in the first or last
inline constexpr add_quantile_histogram_fn add_quantile_histogram{};

struct histogram_bias_fn {
  template <class Histogram, class Bias>
  void operator()(host_context const& ctx, Histogram const& histogram, int top_k,
                  quantile_bins const& bins, Bias&& bias) const {
    detail::arguments a(ctx, "histogram_bias");
    auto const h = detail::as_counts(a.read_any("histogram", histogram));
    index_t const experts = h.extents[0], n = h.extents[1];
    auto const b = detail::moved_bias(a, bias, {experts, "the number of experts"});
    detail::expects(top_k >= 1 && top_k <= experts, a, ": top_k is ", top_k,
                    "; it is at least 1 and at most the ", experts, " experts");
    detail::check_bins(a, bins, h.extents[1]);
    double const width = (bins.upper - bins.lower) / static_cast<double>(n);
    detail::buffer<double> now(ctx.memory());
    now.resize(experts);
    for (index_t e = 0; e < experts; ++e) {
      auto const* const row = h.row(e);
      double all = 0, below = 0;
      now[e] = static_cast<double>(b(e));
      for (index_t i = 0; i < n; ++i) all += detail::count_at(a, "histogram", h, e, i);
      if (!(all > 0)) continue;
      double const share = all * top_k / static_cast<double>(experts);
      index_t bin = 0;
      while (bin + 1 < n && (row[bin] == 0 || below + static_cast<double>(row[bin]) < share))
        below += static_cast<double>(row[bin++]);
      double const inside = row[bin] > 0 ? (share - below) / static_cast<double>(row[bin]) : 1;
      now[e] = bins.lower + width * (static_cast<double>(bin) + inside);
    }
    detail::set_centered(now, b);
  }
};
/// `histogram_bias(ctx, histogram, top_k, bins, bias)`: the bias at which each expert gets its
/// share, from a histogram. bias[e] = the value below which lie top_k / experts of the tokens in
/// histogram[e], where the tokens of a bin lie evenly in it, and then minus the mean over experts.
/// A token for which an expert is masked is not in its histogram: the share is one of the others,
/// unlike in quantile_bias(), where it is one of all tokens.
///   histogram: [experts, n] integers, summed over all micro-batches and ranks of the step
///   bins: those that the histogram was made with
///   bias: [experts] of float or double; where an expert has no tokens, its bias stays, until the
///         mean is taken off
/// Call it once per optimizer step. Source: Megatron-LM, moe_utils.py,
/// get_updated_expert_bias_with_quantile.
inline constexpr histogram_bias_fn histogram_bias{};

struct score_bins_fn {
  template <class Bias>
  quantile_bins operator()(host_context const& ctx, Bias const& bias) const {
    detail::arguments a(ctx, "score_bins");
    auto const b = a.read_vector("bias", bias);
    detail::expects(b.extents[0] >= 1, a, ": bias has no experts; at least 1 is needed");
    double low = static_cast<double>(widen(b(0))), high = low;
    for (index_t e = 0; e < b.extents[0]; ++e) {
      double const x = static_cast<double>(widen(b(e)));
      detail::expects(x - x == 0, a, ": bias(", e, ") is ", x, "; it is finite");
      low = x < low ? x : low;
      high = x > high ? x : high;
    }
    return {low - 1, high + 1};
  }
};
/// `score_bins(ctx, bias)`: the bins that hold all there can be for scores from 0 to 1, from the
/// least bias minus 1 to the largest plus 1. Take them anew after each histogram_bias().
inline constexpr score_bins_fn score_bins{};

}  // namespace expar::inline v0
EXPAR_IEEE_END
