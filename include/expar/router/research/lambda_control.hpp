// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/detail/arguments.hpp>
#include <expar/router/count_choices.hpp>  // as_counts, add_count

namespace expar::inline v0 {

struct route_sparsity_fn {
  template <class Counts>
  double operator()(host_context const& ctx, Counts const& counts, index_t tokens) const {
    detail::arguments a(ctx, "route_sparsity");
    auto const n = detail::as_counts(a.read_any_vector("counts", counts));
    detail::expects(n.extents[0] >= 1, a, ": counts has no experts; at least 1 is needed");
    detail::expects(tokens >= 1, a, ": tokens is ", tokens, "; it is at least 1");
    index_t sum = 0;
    for (index_t e = 0; e < n.extents[0]; ++e)
      detail::add_count("route_sparsity: counts", e, n(e), sum);
    return 1 - static_cast<double>(sum) /
                   (static_cast<double>(tokens) * static_cast<double>(n.extents[0]));
  }
};
/// `route_sparsity(ctx, counts, tokens)`: how sparse the routes of a batch are, 1 - sum(counts) /
/// (tokens * experts), the share of pairs of token and expert that are not routes.
///   counts: [experts] integers, how many routes name each expert. Of several layers or ranks: the
///           sums, with the tokens of all
///   tokens: at least 1
inline constexpr route_sparsity_fn route_sparsity{};

/// What keeps a ReLU router as sparse as one that selects top_k (ReMoE, arXiv:2412.14711, whose
/// lambda starts at 1e-8): the coefficient of its L1 loss, by the sparsity of the step before.
struct lambda_control {
  int experts;
  int top_k;            ///< how many routes a token is to have on average
  double factor = 1.2;  ///< how much lambda changes in a step

  /// The sparsity aimed at.
  constexpr double target() const { return 1 - static_cast<double>(top_k) / experts; }

  /// lambda * factor below the target, lambda / factor above it. Call it once per optimizer step,
  /// with the sparsity over all layers and ranks.
  constexpr double next(double lambda, double sparsity) const {
    if (top_k < 1 || top_k > experts || !(factor > 1)) refuse();
    return sparsity < target() ? lambda * factor : sparsity > target() ? lambda / factor : lambda;
  }

 private:
  void refuse() const {
    detail::expects(top_k >= 1 && top_k <= experts, "lambda_control: top_k is ", top_k,
                    "; it is at least 1 and at most the ", experts, " experts");
    detail::expects(factor > 1, "lambda_control: factor is ", factor, "; it is greater than 1");
  }
};

}  // namespace expar::inline v0
