// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/detail/arguments.hpp>
#include <expar/router/count_choices.hpp>

namespace expar::inline v0 {

/// How the tokens of a batch fall into sequences:
///   x.count(tokens)        how many sequences there are
///   x.of(t, tokens)        the sequence of token t
///   x.validate(a, tokens)  throws unless it fits so many tokens; its tensors become arguments
template <class S>
concept sequence_policy = requires(S const s, detail::argument_table& a, index_t n) {
  s.validate(a, n);
  { s.count(n) } -> std::same_as<index_t>;
  { s.of(n, n) } -> std::same_as<index_t>;
};

/// Sequences of equal length, one after the other: tokens [sequences, length].
struct even_sequences {
  index_t sequences;

  index_t count(index_t /*tokens*/) const { return sequences; }
  index_t of(index_t t, index_t tokens) const { return t / (tokens / sequences); }
  void validate(char const* what, index_t tokens) const {
    detail::expects(sequences >= 1 && tokens % sequences == 0, what, ": sequences is ", sequences,
                    "; it is at least 1 and divides the ", tokens, " tokens");
  }
};

/// Sequences of equal length, side by side: tokens [length, sequences], as Megatron-LM lays them
/// out.
struct interleaved_sequences {
  index_t sequences;

  index_t count(index_t /*tokens*/) const { return sequences; }
  index_t of(index_t t, index_t /*tokens*/) const { return t % sequences; }
  void validate(char const* what, index_t tokens) const {
    even_sequences{sequences}.validate(what, tokens);
  }
};

/// Sequences of any length, one after the other: sequence b has the tokens from offsets[b] to
/// before offsets[b + 1]. offsets [sequences + 1] integers, from 0 to the number of tokens.
template <class Index>
struct packed_sequences {
  tensor_view<Index const, 1> offsets;

  index_t count(index_t /*tokens*/) const { return offsets.extents[0] - 1; }
  index_t of(index_t t, index_t /*tokens*/) const {
    index_t first = 0, behind = offsets.extents[0];  // offsets before first are at most t
    while (first < behind) {
      index_t const middle = first + (behind - first) / 2;
      if (static_cast<index_t>(offsets(middle)) <= t)
        first = middle + 1;
      else
        behind = middle;
    }
    return first - 1;
  }
  void validate(detail::argument_table& a, index_t tokens) const {
    a.reads("offsets", offsets);
    detail::check_offsets(a, offsets, "sequences", tokens, "tokens");
  }
};
template <class Index>
packed_sequences(tensor_view<Index, 1>) -> packed_sequences<std::remove_const_t<Index>>;

struct count_sequence_choices_fn {
  template <sequence_policy Sequences, class Ids, class Counts>
  void operator()(host_context const& ctx, Sequences const& sequences, Ids const& ids, int choices,
                  Counts&& counts) const {
    detail::arguments a(ctx, "count_sequence_choices");
    auto const i = a.masked_ids("ids", ids);
    index_t const tokens = i.extents[0];
    sequences.validate(a, tokens);
    auto const n = detail::as_counts(
        a.written_any("counts", counts, {{sequences.count(tokens), "the number of sequences"}}));
    index_t const experts = n.extents[1];
    using Count = detail::element_of<decltype(n)>;
    auto const leading = detail::leading_ids<Count>(a, i, choices);
    detail::check_expert_ids("count_sequence_choices: ids", leading, experts, i.valid);
    for (index_t b = 0; b < n.extents[0]; ++b)
      for (index_t e = 0; e < experts; ++e) n.row(b)[e] = Count{};
    for (index_t t = 0; t < tokens; ++t)
      for (index_t j = 0; i.valid(t) && j < choices; ++j)
        if (std::int32_t const id = i.row(t)[j]; id >= 0) ++n.row(sequences.of(t, tokens))[id];
  }
};
/// `count_sequence_choices(ctx, sequences, ids, choices, counts)`: count_choices() of each
/// sequence, with counts [sequences, experts], overwritten. Cost: one pass, on the caller's thread.
inline constexpr count_sequence_choices_fn count_sequence_choices{};

struct count_sequence_tokens_fn {
  template <sequence_policy Sequences, class Tokens, class Lengths>
  void operator()(host_context const& ctx, Sequences const& sequences, Tokens const& number,
                  Lengths&& lengths) const {
    detail::arguments a(ctx, "count_sequence_tokens");
    index_t const tokens = a.unmasked(number);
    detail::expects(tokens >= 0, a, ": tokens is ", tokens, "; it is at least 0");
    auto const valid = a.valid_tokens(number, tokens);
    sequences.validate(a, tokens);
    auto const n = detail::as_counts(a.written_any_vector(
        "lengths", lengths, {{sequences.count(tokens), "the number of sequences"}}));
    detail::check_countable<detail::element_of<decltype(n)>>(a, tokens);
    for (index_t b = 0; b < n.extents[0]; ++b) n(b) = 0;
    for (index_t t = 0; t < tokens; ++t)
      if (valid(t)) ++n(sequences.of(t, tokens));
  }
};
/// `count_sequence_tokens(ctx, sequences, tokens, lengths)`: how many tokens each sequence has.
///   tokens: the number T of tokens of which the sequences are made, or only(valid, T)
///   lengths: [sequences] integers, overwritten. They add up over ranks that share sequences
/// Cost: one pass, on the caller's thread.
inline constexpr count_sequence_tokens_fn count_sequence_tokens{};

}  // namespace expar::inline v0
