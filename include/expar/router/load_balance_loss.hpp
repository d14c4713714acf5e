// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/context.hpp>
#include <expar/detail/buffer.hpp>
#include <expar/element.hpp>
#include <expar/router/count_choices.hpp>
#include <expar/router/score.hpp>
#include <expar/router/token_loss.hpp>
#include <expar/tensor.hpp>

namespace expar::inline v0 {

struct load_balance_options {
  double coefficient = 1;
  /// By how many choices of each token the counts are divided, at least 1: systems differ, see the
  /// table below. It must be given.
  int choices = 0;
  /// How many tokens the loss is a mean over; 0: the valid tokens of this call, at least 1. Where
  /// the counts are summed over ranks, the tokens of all ranks: then the ranks' parts add up to the
  /// loss.
  index_t tokens = 0;
  /// How many tokens the counts are of, where these are others than `tokens`, as in counts that are
  /// summed over micro-batches; 0: `tokens`.
  index_t counted_tokens = 0;
};

namespace detail {

/// `choices` of a balancing loss is never a silent choice: 0 says that nobody gave it.
inline void check_divisor(char const* op, int choices) {
  expects(choices >= 1, op, ": choices is ", choices,
          "; options.choices must be given, and is at least 1");
}
inline void check_balance_options(char const* op, load_balance_options const& o) {
  check_divisor(op, o.choices);
  expects(o.tokens >= 0, op, ": tokens is ", o.tokens, "; it is at least 0");
  expects(o.counted_tokens >= 0, op, ": counted_tokens is ", o.counted_tokens,
          "; it is at least 0");
}

/// What one count adds to dL/dq of each token it concerns, of a loss that compares `parts` parts:
/// coefficient * parts / (choices * counted_tokens * tokens).
template <class Valid>
double balance_unit(load_balance_options const& o, index_t parts, index_t tokens, Valid valid) {
  double const n = token_count(o.tokens, tokens, valid);
  double const counted = o.counted_tokens > 0 ? static_cast<double>(o.counted_tokens) : n;
  return o.coefficient * static_cast<double>(parts) / (o.choices * counted * n);
}

/// Checks, and gives the term of the loss.
template <class Score, class T, class Counts, class Valid>
score_sum<Score> make_balance_term(char const* op, host_context const& ctx, Score const& score,
                                   tensor_view<T, 2> logits, Counts const& counts, Valid valid,
                                   load_balance_options const& o, buffer<double>& slopes) {
  auto const n = as_view<1>(ctx, counts);
  argument const what(op, "counts");
  check_loss_logits(argument(op, "logits"), logits);
  check_counts(what, n);
  index_t const experts = logits.extents[1];
  check_extent(what, n, 0, experts, "the number of experts");
  check_balance_options(op, o);
  check_score(op, score, experts, logits.extents[0]);
  double const unit = balance_unit(o, experts, logits.extents[0], valid);
  slopes.resize(experts);
  for (index_t e = 0; e < experts; ++e) slopes[e] = unit * static_cast<double>(n.data[e]);
  return {score, slopes.data(), static_cast<int>(experts)};
}

}  // namespace detail

struct load_balance_loss_fn {
  template <class Logits, class Counts>
  double operator()(host_context const& ctx, Logits const& logits, Counts const& counts,
                    load_balance_options const& options) const {
    return part(ctx, softmax_score{}, logits, counts, detail::every_token{}, options);
  }
  template <class Logits, class Counts, class Valid>
  double operator()(host_context const& ctx, Logits const& logits, Counts const& counts,
                    Valid const& valid, load_balance_options const& options) const {
    return part(ctx, softmax_score{}, logits, counts, valid, options);
  }
  template <score_policy Score, class Logits, class Counts>
  double operator()(host_context const& ctx, Score const& score, Logits const& logits,
                    Counts const& counts, load_balance_options const& options) const {
    return part(ctx, score, logits, counts, detail::every_token{}, options);
  }
  template <score_policy Score, class Logits, class Counts, class Valid>
  double operator()(host_context const& ctx, Score const& score, Logits const& logits,
                    Counts const& counts, Valid const& valid,
                    load_balance_options const& options) const {
    return part(ctx, score, logits, counts, valid, options);
  }

 private:
  static constexpr char const* op = "load_balance_loss";
  template <class Score, class Logits, class Counts, class Valid>
  static double part(host_context const& ctx, Score const& score, Logits const& logits,
                     Counts const& counts, Valid const& valid,
                     load_balance_options const& options) {
    auto const z = detail::as_view<2>(ctx, logits);
    auto const marks = detail::marks_of(detail::argument(op, "valid"), ctx, valid, z.extents[0]);
    detail::buffer<double> slopes(ctx.memory());
    auto const term = detail::make_balance_term(op, ctx, score, z, counts, marks, options, slopes);
    return detail::sum_over_tokens(ctx, z, marks, term);
  }
};
/// The load balancing loss of GShard and Switch,
///   L = coefficient * experts * sum over e of f[e] * P[e],
///   f[e] = counts[e] / (counted_tokens * choices),  P[e] = mean over tokens of q[e],
/// as load_balance_loss(ctx, [score,] logits, counts, [valid,] options):
///   score: the score policy that makes q of a token's logits; softmax_score unless given. A router
///          that scores each expert for itself takes normalized_score; ReMoE takes relu_score
///   logits: [T, experts], any element type, as the score gets them in the system that is meant:
///           after the transforms of its router, see transform_logits. NaN and -inf have q = 0
///   counts: [experts] integers, how many routes name each expert; see count_choices. They have no
///           gradient
///   valid: [T] of bool or std::uint8_t; tokens whose mark is 0 are left out
/// Returns this call's part: the sum over its tokens, divided by options.tokens. Where q sums to 1
/// and `choices` of every token are counted, a uniform load makes the loss the coefficient.
/// Systems differ in what they count and divide by:
///
///   system                            counts          choices  coefficient; tokens
///   Megatron-LM aux_loss, OLMo-core,  all k choices   k        c
///   DeepSpeed topkgating
///   Megatron-LM global_aux_loss,      all k choices   k        c; counted_tokens: those of all
///   Qwen                              so far                   calls, see choice_totals
///   MegaBlocks                        all k choices   k        c / layers
///   Hugging Face                      all k choices   1        c; tokens: those of all layers
///   load_balancing_loss_func          of all layers            together
///   flaxformer                        all k choices   1        c
///   Switch, GShard, Tutel, V-MoE,     first choices   1        c; logits of Tutel and V-MoE are
///   DeepSpeed top1gating, top2gating                           the noisy ones
///   Mesh TensorFlow, second place     second choices  1        1 / 2
///   fairscale                         first choices   1        1 / experts^2
///   fastmoe GShard                    first choices   1        (local experts / experts)^2
///   fastmoe Switch                    kept routes     1        1; tokens: the kept routes
///   ReMoE, k = the number aimed at    positive z      k        lambda; score is relu_score
///
/// The counts of a router with a bias or with groups are those of its scores alone in Megatron-LM:
/// route without the bias and without the limit to count them.
inline constexpr load_balance_loss_fn load_balance_loss{};

struct load_balance_loss_backward_fn {
  template <class Logits, class Counts, class DLogits>
  void operator()(host_context const& ctx, Logits const& logits, Counts const& counts,
                  load_balance_options const& options, DLogits&& d_logits) const {
    add(ctx, softmax_score{}, logits, counts, detail::every_token{}, options,
        detail::as_output<2>(ctx, d_logits));
  }
  template <class Logits, class Counts, class Valid, class DLogits>
  void operator()(host_context const& ctx, Logits const& logits, Counts const& counts,
                  Valid const& valid, load_balance_options const& options,
                  DLogits&& d_logits) const {
    add(ctx, softmax_score{}, logits, counts, valid, options, detail::as_output<2>(ctx, d_logits));
  }
  template <score_policy Score, class Logits, class Counts, class DLogits>
  void operator()(host_context const& ctx, Score const& score, Logits const& logits,
                  Counts const& counts, load_balance_options const& options,
                  DLogits&& d_logits) const {
    add(ctx, score, logits, counts, detail::every_token{}, options,
        detail::as_output<2>(ctx, d_logits));
  }
  template <score_policy Score, class Logits, class Counts, class Valid, class DLogits>
  void operator()(host_context const& ctx, Score const& score, Logits const& logits,
                  Counts const& counts, Valid const& valid, load_balance_options const& options,
                  DLogits&& d_logits) const {
    add(ctx, score, logits, counts, valid, options, detail::as_output<2>(ctx, d_logits));
  }

 private:
  static constexpr char const* op = "load_balance_loss_backward";
  template <class Score, class Logits, class Counts, class Valid, class D>
  static void add(host_context const& ctx, Score const& score, Logits const& logits,
                  Counts const& counts, Valid const& valid, load_balance_options const& options,
                  tensor_view<D, 2> dz) {
    auto const z = detail::as_view<2>(ctx, logits);
    auto const marks = detail::marks_of(detail::argument(op, "valid"), ctx, valid, z.extents[0]);
    detail::buffer<double> slopes(ctx.memory());
    auto const term = detail::make_balance_term(op, ctx, score, z, counts, marks, options, slopes);
    detail::check_loss_gradient(detail::argument(op, "d_logits"), z, dz);
    detail::add_gradients(ctx, z, marks, term, dz);
  }
};
/// ADDS the gradient of load_balance_loss() to d_logits [T, experts]; the last argument, after
/// those of the loss. Tokens that are not valid stay as they are.
inline constexpr load_balance_loss_backward_fn load_balance_loss_backward{};

}  // namespace expar::inline v0
