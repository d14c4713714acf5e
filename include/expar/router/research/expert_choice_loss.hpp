// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/detail/arguments.hpp>
#include <expar/router/per_token.hpp>
#include <expar/router/score.hpp>
#include <expar/router/token_loss.hpp>

EXPAR_IEEE_BEGIN
namespace expar::inline v0 {

struct expert_choice_loss_options {
  double coefficient = 1;
};

namespace detail {

/// The softmax over the valid tokens, expert by expert.
template <class Logits>
struct token_softmax {
  Logits const& logits;
  index_t experts;
  buffer<double> most, sum;

  token_softmax(host_context const& ctx, Logits const& z)
      : logits(z), experts(z.extents[1]), most(ctx.memory()), sum(ctx.memory()) {
    most.assign(static_cast<std::size_t>(experts), -infinity<double>);
    sum.resize(experts);
    for (index_t t = 0; t < z.extents[0]; ++t)
      for (index_t e = 0; z.valid(t) && e < experts; ++e)
        if (double const x = at(t, e); x > most[e]) most[e] = x;
    sum_rows<double>(ctx, z.extents[0], 0, z.valid, make_view(sum.data(), experts),
                     [&](int, index_t t, double* row) { write(t, row); });
  }

  double at(index_t t, index_t e) const { return static_cast<double>(widen(logits.row(t)[e])); }
  /// exp(z - most) of token t
  void write(index_t t, double* row) const {
    for (index_t e = 0; e < experts; ++e) {
      double const x = at(t, e);
      row[e] = masked(x) ? 0 : shifted_exp(x, most[e]);
    }
  }
  /// The probabilities of token t, and their mean over experts.
  double probabilities(index_t t, double* row) const {
    write(t, row);
    double mean = 0;
    for (index_t e = 0; e < experts; ++e) {
      if (sum[e] > 0) row[e] /= sum[e];
      mean += row[e];
    }
    return mean / static_cast<double>(experts);
  }
};

}  // namespace detail

struct expert_choice_loss_fn {
  template <class Logits>
  double operator()(host_context const& ctx, Logits const& logits,
                    expert_choice_loss_options const& options) const {
    detail::arguments a(ctx, "expert_choice_loss");
    auto const z = a.masked("logits", logits);
    if (z.size() == 0) return 0;
    detail::token_softmax const softmax(ctx, z);
    double squares;
    detail::sum_rows<double>(ctx, z.extents[0], z.extents[1], z.valid, make_view(&squares, 1),
                             [&](int, index_t t, double* row) {
                               double const mean = softmax.probabilities(t, row + 1);
                               row[0] = mean * mean;
                             });
    return options.coefficient * detail::token_count(0, z) * squares;
  }
};
/// `expert_choice_loss(ctx, logits, options)`: the loss of Mesh TensorFlow's expert choice (moe.py,
/// _expert_selection_gating), which asks that every token be chosen as much as any other,
///   L = coefficient * n * sum over tokens of (mean over e of S[t,e])^2,
/// where S is the softmax of the logits over the n valid tokens, expert by expert.
///   logits: [T, experts] of one group, any element type, or only(valid, logits): tokens left out
///           are in no softmax and no sum. NaN and -inf have S = 0
/// It is the coefficient where all logits are equal. Over groups, Mesh TensorFlow takes the mean: a
/// call for each group, with a coefficient that is divided by their number.
inline constexpr expert_choice_loss_fn expert_choice_loss{};

struct expert_choice_loss_backward_fn {
  template <class Logits, class DLogits>
  void operator()(host_context const& ctx, Logits const& logits,
                  expert_choice_loss_options const& options, DLogits&& d_logits) const {
    detail::arguments a(ctx, "expert_choice_loss_backward");
    auto const z = a.masked("logits", logits);
    auto const dz = detail::gradient_of_loss(a, z, d_logits);
    if (z.size() == 0) return;
    index_t const tokens = z.extents[0], experts = z.extents[1];
    detail::token_softmax const softmax(ctx, z);
    // With g[t] = dL/dS[t,e], the same for all e: dz[t,e] = S[t,e] (g[t] - sum over u of S g).
    double const unit =
        2 * options.coefficient * detail::token_count(0, z) / static_cast<double>(experts);
    detail::buffer<double> means(ctx.memory());
    means.resize(experts);
    detail::sum_rows<double>(ctx, tokens, 0, z.valid, make_view(means.data(), experts),
                             [&](int, index_t t, double* row) {
                               double const g = unit * softmax.probabilities(t, row);
                               for (index_t e = 0; e < experts; ++e) row[e] *= g;
                             });
    detail::for_each_token_with<double>(ctx, tokens, experts, experts, [&](index_t t, double* row) {
      if (!z.valid(t)) return dz.put_zeros(dz.row(t), experts);
      double const g = unit * softmax.probabilities(t, row);
      for (index_t e = 0; e < experts; ++e) row[e] *= g - means[e];
      dz.put_row(dz.row(t), row, experts);
    });
  }
};
/// `expert_choice_loss_backward(ctx, logits, options, d_logits)`: the gradient of
/// expert_choice_loss() to d_logits [T, experts], any element type, overwritten, or added to by
/// add_to(d_logits). That of tokens left out is 0.
inline constexpr expert_choice_loss_backward_fn expert_choice_loss_backward{};

}  // namespace expar::inline v0
EXPAR_IEEE_END
