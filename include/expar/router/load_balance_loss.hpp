// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/detail/arguments.hpp>
#include <expar/router/count_choices.hpp>
#include <expar/router/score.hpp>
#include <expar/router/token_loss.hpp>

EXPAR_IEEE_BEGIN
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
inline void check_divisor(argument_table const& a, int choices) {
  expects(choices >= 1, a, ": choices is ", choices,
          "; options.choices must be given, and is at least 1");
}
/// What one count adds to dL/dq of each token of z that it concerns, of a loss that compares
/// `parts` parts: coefficient * parts / (choices * counted_tokens * tokens).
template <class Logits>
double balance_unit(argument_table const& a, load_balance_options const& o, index_t parts,
                    Logits const& z) {
  check_divisor(a, o.choices);
  expects(o.tokens >= 0, a, ": tokens is ", o.tokens, "; it is at least 0");
  expects(o.counted_tokens >= 0, a, ": counted_tokens is ", o.counted_tokens, "; it is at least 0");
  double const n = token_count(o.tokens, z);
  double const counted = o.counted_tokens > 0 ? static_cast<double>(o.counted_tokens) : n;
  return o.coefficient * static_cast<double>(parts) / (o.choices * counted * n);
}

template <class Score, class Logits, class Counts, class... DLogits>
double load_balance_loss_of(host_context const& ctx, char const* operation, Score const& score,
                            Logits const& logits, Counts const& counts,
                            load_balance_options const& o, DLogits&... d_logits) {
  arguments a(ctx, operation);
  auto const z = logits_of_loss(a, "logits", logits);
  index_t const experts = z.extents[1];
  auto const n =
      as_counts(a.read_any_vector("counts", counts, {{experts, "the number of experts"}}));
  auto const dz = gradient_of_loss(a, z, d_logits...);
  check_score(a, score, z);
  double const unit = balance_unit(a, o, experts, z);
  buffer<double> slopes(ctx.memory());
  slopes.resize(experts);
  for (index_t e = 0; e < experts; ++e) slopes[e] = unit * count_at(a, "counts", n, e);
  score_sum<Score> const term{score, slopes.data(), static_cast<int>(experts)};
  return loss_of_tokens(ctx, z, term, dz);
}

}  // namespace detail

struct load_balance_loss_fn {
  template <class Logits, class Counts>
  double operator()(host_context const& ctx, Logits const& logits, Counts const& counts,
                    load_balance_options const& options) const {
    return (*this)(ctx, softmax_score{}, logits, counts, options);
  }
  template <score_policy Score, class Logits, class Counts>
  double operator()(host_context const& ctx, Score const& score, Logits const& logits,
                    Counts const& counts, load_balance_options const& options) const {
    return detail::load_balance_loss_of(ctx, "load_balance_loss", score, logits, counts, options);
  }
};
/// `load_balance_loss(ctx, [score,] logits, counts, options)`: the load balancing loss of GShard
/// and Switch,
///   L = coefficient * experts * sum over e of f[e] * P[e],
///   f[e] = counts[e] / (counted_tokens * choices),  P[e] = mean over tokens of q[e].
///   score: the score policy that makes q of a token's logits; softmax_score unless given. A router
///          that scores each expert for itself takes normalized_score; ReMoE takes relu_score
///   logits: [T, experts], any element type, or only(valid, logits), as the score gets them in the
///           system that is meant: after the transforms of its router, see transform_logits. NaN
///           and -inf have q = 0
///   counts: [experts] integers, how many routes name each expert; see count_choices. They have no
///           gradient
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
    (*this)(ctx, softmax_score{}, logits, counts, options, d_logits);
  }
  template <score_policy Score, class Logits, class Counts, class DLogits>
  void operator()(host_context const& ctx, Score const& score, Logits const& logits,
                  Counts const& counts, load_balance_options const& options,
                  DLogits&& d_logits) const {
    detail::load_balance_loss_of(ctx, "load_balance_loss_backward", score, logits, counts, options,
                                 d_logits);
  }
};
/// `load_balance_loss_backward(ctx, [score,] logits, counts, options, d_logits)`: the gradient of
/// load_balance_loss() to d_logits [T, experts], any element type, overwritten, or added to by
/// add_to(d_logits). That of tokens left out is 0.
inline constexpr load_balance_loss_backward_fn load_balance_loss_backward{};

}  // namespace expar::inline v0
EXPAR_IEEE_END
