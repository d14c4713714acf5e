// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/detail/arguments.hpp>
#include <expar/detail/arithmetic.hpp>
#include <expar/router/count_choices.hpp>  // as_counts, add_count

namespace expar::inline v0 {

struct bias_update_options {
  double rate = 1e-3;
  /// Whether the mean of the step over experts is taken off it.
  bool centered = false;
};

namespace detail {

/// A bias that is moved from step to step.
template <class Context, class Bias>
auto moved_bias(arguments<Context>& a, Bias&& bias, rule const& experts) {
  auto const b = a.written_any_vector("bias", bias, {experts});
  using T = element_of<decltype(b)>;
  static_assert(std::is_same_v<T, float> || std::is_same_v<T, double>,
                "expar: a bias that is moved is float or double; in fewer bits, small steps would "
                "be lost");
  return b;
}

}  // namespace detail

struct update_bias_fn {
  template <class Counts, class Bias>
  void operator()(host_context const& ctx, Counts const& counts, bias_update_options const& options,
                  Bias&& bias) const {
    detail::arguments a(ctx, "update_bias");
    auto const n = detail::as_counts(a.read_any_vector("counts", counts));
    index_t const experts = n.extents[0];
    auto const b = detail::moved_bias(a, bias, {experts, "the number of experts"});
    using T = detail::element_of<decltype(b)>;
    detail::expects(detail::is_finite(options.rate), a, ": rate is ", options.rate,
                    "; it is finite");
    index_t sum = 0, signs = 0;
    for (index_t e = 0; e < experts; ++e) detail::add_count("update_bias: counts", e, n(e), sum);
    auto const sign = [&](index_t e) {  // of sum / experts - counts[e], without a product
      index_t const mine = static_cast<index_t>(n(e)), mean = sum / experts;
      return mine > mean ? -1 : mine < mean || sum % experts != 0 ? 1 : 0;
    };
    for (index_t e = 0; options.centered && e < experts; ++e) signs += sign(e);
    double const mean = signs == 0 ? 0 : static_cast<double>(signs) / static_cast<double>(experts);
    for (index_t e = 0; e < experts; ++e) {
      double const step = options.rate * (sign(e) - mean);
      b(e) += static_cast<T>(step);
    }
  }
};
/// `update_bias(ctx, counts, options, bias)` moves the selection bias towards a balanced load,
/// without a loss (DeepSeek-V3, arXiv:2408.15664):
///   bias[e] += rate * (s[e] - m),  s[e] = sign(mean(counts) - counts[e]),
///   m = mean of s where centered, else 0
///   counts: [experts] integers, how many routes each expert has got; see count_choices
///   bias: [experts] of float or double
/// Megatron-LM (get_updated_expert_bias) and OLMo-core do not center, torchtitan does; their rate
/// is 1e-3. Call it once per optimizer step, after it, with counts of the actual selection, bias
/// and all, that are summed over all micro-batches and ranks of the step; then every rank makes the
/// same step. The sign is exact.
inline constexpr update_bias_fn update_bias{};

}  // namespace expar::inline v0
