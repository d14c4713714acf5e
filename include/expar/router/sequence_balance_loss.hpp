// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/context.hpp>
#include <expar/detail/buffer.hpp>
#include <expar/element.hpp>
#include <expar/router/count_choices.hpp>
#include <expar/router/load_balance_loss.hpp>  // check_divisor
#include <expar/router/score.hpp>
#include <expar/router/sequences.hpp>
#include <expar/router/token_loss.hpp>
#include <expar/tensor.hpp>

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

template <class Score, class Sequences, class T, class Counts, class Lengths>
sequence_term<Score, Sequences> make_sequence_term(char const* op, host_context const& ctx,
                                                   Score const& score, Sequences const& sequences,
                                                   tensor_view<T, 2> logits, Counts const& counts,
                                                   Lengths const& lengths,
                                                   sequence_balance_options const& o,
                                                   buffer<double>& slopes) {
  auto const n = as_view<2>(ctx, counts);
  auto const of = as_view<1>(ctx, lengths);
  index_t const tokens = logits.extents[0], experts = logits.extents[1];
  check_loss_logits(argument(op, "logits"), logits);
  sequences.validate(op, tokens);
  argument const what(op, "counts"), what_lengths(op, "lengths");
  index_t const all = sequences.count(tokens);
  check_counts(what, n);
  check_extent(what, n, 0, all, "the number of sequences");
  check_extent(what, n, 1, experts, "the number of experts");
  check_counts(what_lengths, of);
  check_extent(what_lengths, of, 0, all, "the number of sequences");
  check_divisor(op, o.choices);
  expects(o.sequences >= 0, op, ": sequences is ", o.sequences, "; it is at least 0");
  check_score(op, score, experts, tokens);
  double const among = static_cast<double>(o.sequences > 0 ? o.sequences : all);
  slopes.resize(all * experts);
  for (index_t b = 0; b < all; ++b) {
    double const length = of.data[b] > 1 ? static_cast<double>(of.data[b]) : 1;
    double const unit =
        o.coefficient * static_cast<double>(experts) / (among * o.choices * length * length);
    for (index_t e = 0; e < experts; ++e)
      slopes[b * experts + e] = unit * static_cast<double>(n.row(b)[e]);
  }
  return {{score, slopes.data(), static_cast<int>(experts)}, sequences, tokens};
}

}  // namespace detail

struct sequence_balance_loss_fn {
  template <score_policy Score, sequence_policy Sequences, class Logits, class Counts,
            class Lengths>
  double operator()(host_context const& ctx, Score const& score, Sequences const& sequences,
                    Logits const& logits, Counts const& counts, Lengths const& lengths,
                    sequence_balance_options const& options) const {
    return (*this)(ctx, score, sequences, logits, counts, lengths, detail::every_token{}, options);
  }
  template <score_policy Score, sequence_policy Sequences, class Logits, class Counts,
            class Lengths, class Valid>
  double operator()(host_context const& ctx, Score const& score, Sequences const& sequences,
                    Logits const& logits, Counts const& counts, Lengths const& lengths,
                    Valid const& valid, sequence_balance_options const& options) const {
    constexpr char const* op = "sequence_balance_loss";
    auto const z = detail::as_view<2>(ctx, logits);
    auto const marks = detail::marks_of(detail::argument(op, "valid"), ctx, valid, z.extents[0]);
    detail::buffer<double> slopes(ctx.memory());
    auto const term =
        detail::make_sequence_term(op, ctx, score, sequences, z, counts, lengths, options, slopes);
    return detail::sum_over_tokens(ctx, z, marks, term);
  }
};
/// The load balancing loss within each sequence, as a mean over sequences (the sequence-wise loss
/// of DeepSeek-V2 and V3; Megatron-LM's seq_aux_loss; seq_aux of Hugging Face's deepseek_v2),
///   L = mean over b of coefficient * experts * sum over e of f[b,e] * P[b,e],
///   f[b,e] = counts[b,e] / (length[b] * choices),  P[b,e] = mean over tokens of b of q[e],
/// as sequence_balance_loss(ctx, score, sequences, logits, counts, lengths, [valid,] options):
///   score: makes q; softmax_score for DeepSeek-V2, normalized_score of sigmoid_score for V3
///   sequences: even_sequences, interleaved_sequences or packed_sequences
///   logits: [T, experts], any element type, after the transforms of the router; NaN and -inf have
///           q = 0
///   counts: [sequences, experts] integers; see count_sequence_choices. They have no gradient
///   lengths: [sequences] integers; see count_sequence_tokens, with the same `valid`. One below 1
///            divides as 1
///   valid: [T] of bool or std::uint8_t; tokens whose mark is 0 are left out
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
    (*this)(ctx, score, sequences, logits, counts, lengths, detail::every_token{}, options,
            d_logits);
  }
  template <score_policy Score, sequence_policy Sequences, class Logits, class Counts,
            class Lengths, class Valid, class DLogits>
  void operator()(host_context const& ctx, Score const& score, Sequences const& sequences,
                  Logits const& logits, Counts const& counts, Lengths const& lengths,
                  Valid const& valid, sequence_balance_options const& options,
                  DLogits&& d_logits) const {
    constexpr char const* op = "sequence_balance_loss_backward";
    auto const z = detail::as_view<2>(ctx, logits);
    auto const dz = detail::as_output<2>(ctx, d_logits);
    auto const marks = detail::marks_of(detail::argument(op, "valid"), ctx, valid, z.extents[0]);
    detail::buffer<double> slopes(ctx.memory());
    auto const term =
        detail::make_sequence_term(op, ctx, score, sequences, z, counts, lengths, options, slopes);
    detail::check_loss_gradient(detail::argument(op, "d_logits"), z, dz);
    detail::add_gradients(ctx, z, marks, term, dz);
  }
};
/// ADDS the gradient of sequence_balance_loss() to d_logits [T, experts]; the last argument, after
/// those of the loss. Tokens that are not valid stay as they are.
inline constexpr sequence_balance_loss_backward_fn sequence_balance_loss_backward{};

}  // namespace expar::inline v0
