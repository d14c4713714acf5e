// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/context.hpp>
#include <expar/detail/buffer.hpp>
#include <expar/element.hpp>
#include <expar/router/per_token.hpp>
#include <expar/router/score.hpp>
#include <expar/router/token_loss.hpp>
#include <expar/tensor.hpp>

namespace expar::inline v0 {

struct expert_choice_loss_options {
  double coefficient = 1;
};

namespace detail {

/// The softmax over the valid tokens, expert by expert.
template <class T, class Valid>
struct token_softmax {
  tensor_view<T, 2> logits;
  Valid valid;
  index_t experts;
  buffer<double> most, sum;

  token_softmax(host_context const& ctx, tensor_view<T, 2> z, Valid marks)
      : logits(z), valid(marks), experts(z.extents[1]), most(ctx.memory()), sum(ctx.memory()) {
    most.assign(static_cast<std::size_t>(experts), -infinity<double>);
    sum.resize(experts);
    for (index_t t = 0; t < z.extents[0]; ++t)
      for (index_t e = 0; valid(t) && e < experts; ++e)
        if (double const x = at(t, e); x > most[e]) most[e] = x;
    sum_rows<double>(ctx, z.extents[0], experts, 0, valid, sum.data(),
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
    return (*this)(ctx, logits, detail::every_token{}, options);
  }
  template <class Logits, class Valid>
  double operator()(host_context const& ctx, Logits const& logits, Valid const& valid,
                    expert_choice_loss_options const& options) const {
    auto const z = detail::as_view<2>(ctx, logits);
    detail::check_loss_logits("expert_choice_loss: logits", z);
    index_t const tokens = z.extents[0];
    auto const marks = detail::marks_of("expert_choice_loss: valid", ctx, valid, tokens);
    if (z.size() == 0) return 0;
    detail::token_softmax const softmax(ctx, z, marks);
    double squares;
    detail::sum_rows<double>(ctx, tokens, 1, z.extents[1], marks, &squares,
                             [&](int, index_t t, double* row) {
                               double const mean = softmax.probabilities(t, row + 1);
                               row[0] = mean * mean;
                             });
    return options.coefficient * detail::token_count(0, tokens, marks) * squares;
  }
};
/// The loss of Mesh TensorFlow's expert choice (moe.py, _expert_selection_gating), which asks that
/// every token be chosen as much as any other,
///   L = coefficient * n * sum over tokens of (mean over e of S[t,e])^2,
/// where S is the softmax of the logits over the n valid tokens, expert by expert, as
/// expert_choice_loss(ctx, logits, [valid,] options):
///   logits: [T, experts] of one group, any element type; NaN and -inf have S = 0
///   valid: [T] of bool or std::uint8_t; tokens whose mark is 0 are in no softmax and no sum
/// It is the coefficient where all logits are equal. Over groups, Mesh TensorFlow takes the mean: a
/// call for each group, with a coefficient that is divided by their number.
inline constexpr expert_choice_loss_fn expert_choice_loss{};

struct expert_choice_loss_backward_fn {
  template <class Logits, class DLogits>
  void operator()(host_context const& ctx, Logits const& logits,
                  expert_choice_loss_options const& options, DLogits&& d_logits) const {
    (*this)(ctx, logits, detail::every_token{}, options, d_logits);
  }
  template <class Logits, class Valid, class DLogits>
  void operator()(host_context const& ctx, Logits const& logits, Valid const& valid,
                  expert_choice_loss_options const& options, DLogits&& d_logits) const {
    auto const z = detail::as_view<2>(ctx, logits);
    auto const dz = detail::as_output<2>(ctx, d_logits);
    using D = detail::element_of<decltype(dz)>;
    detail::check_loss_logits("expert_choice_loss_backward: logits", z);
    index_t const tokens = z.extents[0], experts = z.extents[1];
    auto const marks = detail::marks_of("expert_choice_loss_backward: valid", ctx, valid, tokens);
    detail::check_loss_gradient("expert_choice_loss_backward: d_logits", z, dz);
    if (z.size() == 0) return;
    detail::token_softmax const softmax(ctx, z, marks);
    // With g[t] = dL/dS[t,e], the same for all e: dz[t,e] = S[t,e] (g[t] - sum over u of S g).
    double const unit = 2 * options.coefficient * detail::token_count(0, tokens, marks) /
                        static_cast<double>(experts);
    detail::buffer<double> means(ctx.memory());
    means.resize(experts);
    detail::sum_rows<double>(ctx, tokens, experts, 0, marks, means.data(),
                             [&](int, index_t t, double* row) {
                               double const g = unit * softmax.probabilities(t, row);
                               for (index_t e = 0; e < experts; ++e) row[e] *= g;
                             });
    detail::for_each_token_with<double>(ctx, tokens, experts, experts, [&](index_t t, double* row) {
      if (!marks(t)) return;
      double const g = unit * softmax.probabilities(t, row);
      D* const d = dz.row(t);
      for (index_t e = 0; e < experts; ++e)
        d[e] = narrow<D>(widen(d[e]) + static_cast<accumulator_t<D>>(row[e] * (g - means[e])));
    });
  }
};
/// ADDS the gradient of expert_choice_loss() to d_logits [T, experts]; the last argument, after
/// those of the loss. Tokens that are not valid stay as they are.
inline constexpr expert_choice_loss_backward_fn expert_choice_loss_backward{};

}  // namespace expar::inline v0
