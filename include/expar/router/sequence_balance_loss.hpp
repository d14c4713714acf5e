// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/detail/arguments.hpp>
#include <expar/router/count_choices.hpp>
#include <expar/router/load_balance_loss.hpp>  // check_divisor
#include <expar/router/score.hpp>
#include <expar/router/sequences.hpp>
#include <expar/router/token_loss.hpp>

namespace expar::inline v0 {

struct sequence_balance_options {
  double coefficient = 1;
  /// By how many choices of each token the counts are divided, at least 1. It must be given.
  int choices = 0;
  /// How many sequences the loss is a mean over; 0: those of this call.
  index_t sequences = 0;
};

namespace detail {

template <class Score, class Sequences>
struct sequence_term {
  score_sum<Score> first;  // of sequence 0; those of the others have their slopes behind
  Sequences sequences;
  index_t tokens;

  score_sum<Score> at(index_t t) const {
    score_sum<Score> mine = first;
    mine.slopes += sequences.of(t, tokens) * first.experts;
    return mine;
  }
};

template <class Score, class Sequences, class Logits, class Counts, class Lengths, class... DLogits>
double sequence_balance_loss_of(host_context const& ctx, char const* operation, Score const& score,
                                Sequences const& sequences, Logits const& logits,
                                Counts const& counts, Lengths const& lengths,
                                sequence_balance_options const& o, DLogits&... d_logits) {
  arguments a(ctx, operation);
  auto const z = logits_of_loss(a, "logits", logits);
  index_t const tokens = z.extents[0], experts = z.extents[1];
  sequences.validate(a, tokens);
  index_t const all = sequences.count(tokens);
  rule const each_sequence{all, "the number of sequences"};
  auto const n =
      as_counts(a.read_any("counts", counts, {each_sequence, {experts, "the number of experts"}}));
  auto const of = as_counts(a.read_any_vector("lengths", lengths, {each_sequence}));
  auto const dz = gradient_of_loss(a, z, d_logits...);
  check_divisor(a, o.choices);
  expects(o.sequences >= 0, a, ": sequences is ", o.sequences, "; it is at least 0");
  check_score(a, score, z);
  double const among = static_cast<double>(o.sequences > 0 ? o.sequences : all);
  buffer<double> slopes(ctx.memory());
  slopes.resize(all * experts);
  for (index_t b = 0; b < all; ++b) {
    double const tokens_of = count_at(a, "lengths", of, b), length = tokens_of > 1 ? tokens_of : 1;
    double const unit =
        o.coefficient * static_cast<double>(experts) / (among * o.choices * length * length);
    for (index_t e = 0; e < experts; ++e)
      slopes[b * experts + e] = unit * count_at(a, "counts", n, b, e);
  }
  sequence_term<Score, Sequences> const term{
      {score, slopes.data(), static_cast<int>(experts)}, sequences, tokens};
  return loss_of_tokens(ctx, z, term, dz);
}

}  // namespace detail

struct sequence_balance_loss_fn {
  template <score_policy Score, sequence_policy Sequences, class Logits, class Counts,
            class Lengths>
  double operator()(host_context const& ctx, Score const& score, Sequences const& sequences,
                    Logits const& logits, Counts const& counts, Lengths const& lengths,
                    sequence_balance_options const& options) const {
    return detail::sequence_balance_loss_of(ctx, "sequence_balance_loss", score, sequences, logits,
                                            counts, lengths, options);
  }
};
/// `sequence_balance_loss(ctx, score, sequences, logits, counts, lengths, options)`: the load
/// balancing loss within each sequence, as a mean over sequences (the sequence-wise loss of
/// DeepSeek-V2 and V3; Megatron-LM's seq_aux_loss; seq_aux of Hugging Face's deepseek_v2),
///   L = mean over b of coefficient * experts * sum over e of f[b,e] * P[b,e],
///   f[b,e] = counts[b,e] / (length[b] * choices),  P[b,e] = mean over tokens of b of q[e].
///   score: makes q; softmax_score for DeepSeek-V2, normalized_score of sigmoid_score for V3
///   sequences: even_sequences, interleaved_sequences or packed_sequences
///   logits: [T, experts], any element type, after the transforms of the router, or
///           only(valid, logits); NaN and -inf have q = 0
///   counts: [sequences, experts] integers; see count_sequence_choices. They have no gradient
///   lengths: [sequences] integers; see count_sequence_tokens, with the same `valid`. One below 1
///            divides as 1
/// MaxText and systems that do not divide by k: choices = 1 with counts of all k choices. Returns
/// this call's part: where ranks share sequences, counts and lengths are summed over them, see
/// sum_counts, and the ranks' parts add up to the loss.
inline constexpr sequence_balance_loss_fn sequence_balance_loss{};

struct sequence_balance_loss_backward_fn {
  template <score_policy Score, sequence_policy Sequences, class Logits, class Counts,
            class Lengths, class DLogits>
  void operator()(host_context const& ctx, Score const& score, Sequences const& sequences,
                  Logits const& logits, Counts const& counts, Lengths const& lengths,
                  sequence_balance_options const& options, DLogits&& d_logits) const {
    detail::sequence_balance_loss_of(ctx, "sequence_balance_loss_backward", score, sequences,
                                     logits, counts, lengths, options, d_logits);
  }
};
/// `sequence_balance_loss_backward(ctx, score, sequences, logits, counts, lengths, options,
/// d_logits)`: the gradient of sequence_balance_loss() to d_logits [T, experts], any element type,
/// overwritten, or added to by add_to(d_logits). That of tokens left out is 0.
inline constexpr sequence_balance_loss_backward_fn sequence_balance_loss_backward{};

}  // namespace expar::inline v0
