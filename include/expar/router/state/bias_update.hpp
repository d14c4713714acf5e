// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <type_traits>

#include <expar/context.hpp>
#include <expar/router/count_choices.hpp>
#include <expar/tensor.hpp>

namespace expar::inline v0 {

struct bias_update_options {
  double rate = 1e-3;
  /// Whether the mean of the step over experts is taken off it.
  bool centered = false;
};

namespace detail {

/// A bias that is moved from step to step.
template <class B>
void check_moved_bias(char const* what, tensor_view<B, 1> const& bias, index_t experts,
                      char const* because = "the number of experts") {
  static_assert(std::is_same_v<B, float> || std::is_same_v<B, double>,
                "expar: a bias that is moved is float or double; in fewer bits, small steps would "
                "be lost");
  check_view(what, bias);
  check_extent(what, bias, 0, experts, because);
}

}  // namespace detail

struct update_bias_fn {
  template <class Counts, class Bias>
  void operator()(host_context const& ctx, Counts const& counts, bias_update_options const& options,
                  Bias&& bias) const {
    auto const n = detail::as_view<1>(ctx, counts);
    auto const b = detail::as_output<1>(ctx, bias);
    using T = detail::element_of<decltype(b)>;
    detail::check_counts("update_bias: counts", n);
    index_t const experts = n.extents[0];
    detail::check_moved_bias("update_bias: bias", b, experts);
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
      b.data[e] += static_cast<T>(step);
    }
  }
};
/// Moves the selection bias towards a balanced load, without a loss (DeepSeek-V3,
/// arXiv:2408.15664), as update_bias(ctx, counts, options, bias):
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
