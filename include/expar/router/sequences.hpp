// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <concepts>
#include <cstdint>
#include <type_traits>

#include <expar/context.hpp>
#include <expar/router/count_choices.hpp>
#include <expar/router/token_loss.hpp>
#include <expar/tensor.hpp>

namespace expar::inline v0 {

/// How the tokens of a batch fall into sequences:
///   x.count(tokens)        how many sequences there are
///   x.of(t, tokens)        the sequence of token t
///   x.validate(what, tokens)  throws unless it fits so many tokens
template <class S>
concept sequence_policy = requires(S const s, char const* what, index_t n) {
  s.validate(what, n);
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
template <class I>
struct packed_sequences {
  tensor_view<I const, 1> offsets;

  index_t count(index_t /*tokens*/) const { return offsets.extents[0] - 1; }
  index_t of(index_t t, index_t /*tokens*/) const {
    I const* const first = offsets.data;
    I const* const behind =
        std::upper_bound(first, first + offsets.extents[0], t,
                         [](index_t a, I b) { return a < static_cast<index_t>(b); });
    return behind - first - 1;
  }
  void validate(char const* what, index_t tokens) const {
    detail::check_offsets(what, offsets, "sequences", tokens, "tokens");
  }
};
template <class I>
packed_sequences(tensor_view<I, 1>) -> packed_sequences<std::remove_const_t<I>>;

struct count_sequence_choices_fn {
  template <sequence_policy Sequences, class Ids, class Counts>
  void operator()(host_context const& ctx, Sequences const& sequences, Ids const& ids, int choices,
                  Counts&& counts) const {
    (*this)(ctx, sequences, ids, choices, detail::every_token{}, counts);
  }
  template <sequence_policy Sequences, class Ids, class Valid, class Counts>
  void operator()(host_context const& ctx, Sequences const& sequences, Ids const& ids, int choices,
                  Valid const& valid, Counts&& counts) const {
    constexpr char const* op = "count_sequence_choices";
    auto const i = detail::as_view<2>(ctx, ids);
    auto const n = detail::as_output<2>(ctx, counts);
    index_t const tokens = i.extents[0], experts = n.extents[1];
    auto const marks = detail::marks_of(detail::argument(op, "valid"), ctx, valid, tokens);
    sequences.validate(op, tokens);
    detail::argument const what(op, "counts");
    detail::check_counts(what, n);
    detail::check_output(what, n);
    detail::check_extent(what, n, 0, sequences.count(tokens), "the number of sequences");
    using Count = detail::element_of<decltype(n)>;
    detail::check_leading_ids<Count>(op, i, choices, experts, marks);
    for (index_t b = 0; b < n.extents[0]; ++b) std::fill_n(n.row(b), experts, Count{});
    for (index_t t = 0; t < tokens; ++t)
      for (index_t j = 0; marks(t) && j < choices; ++j)
        if (std::int32_t const id = i.row(t)[j]; id >= 0) ++n.row(sequences.of(t, tokens))[id];
  }
};
/// count_choices() of each sequence: count_sequence_choices(ctx, sequences, ids, choices, [valid,]
/// counts), with counts [sequences, experts], overwritten. Cost: one pass, on the caller's thread.
inline constexpr count_sequence_choices_fn count_sequence_choices{};

struct count_sequence_tokens_fn {
  template <sequence_policy Sequences, class Lengths>
  void operator()(host_context const& ctx, Sequences const& sequences, index_t tokens,
                  Lengths&& lengths) const {
    (*this)(ctx, sequences, tokens, detail::every_token{}, lengths);
  }
  template <sequence_policy Sequences, class Valid, class Lengths>
  void operator()(host_context const& ctx, Sequences const& sequences, index_t tokens,
                  Valid const& valid, Lengths&& lengths) const {
    constexpr char const* op = "count_sequence_tokens";
    auto const n = detail::as_output<1>(ctx, lengths);
    detail::expects(tokens >= 0, op, ": tokens is ", tokens, "; it is at least 0");
    auto const marks = detail::marks_of(detail::argument(op, "valid"), ctx, valid, tokens);
    sequences.validate(op, tokens);
    detail::argument const what(op, "lengths");
    detail::check_counts(what, n);
    detail::check_extent(what, n, 0, sequences.count(tokens), "the number of sequences");
    using Count = detail::element_of<decltype(n)>;
    detail::check_countable<Count>(op, tokens);
    std::fill_n(n.data, n.extents[0], Count{});
    for (index_t t = 0; t < tokens; ++t)
      if (marks(t)) ++n.data[sequences.of(t, tokens)];
  }
};
/// How many tokens each sequence has: count_sequence_tokens(ctx, sequences, tokens, [valid,]
/// lengths).
///   tokens: T, of which the sequences are made
///   valid: [T] of bool or std::uint8_t; tokens whose mark is 0 are left out
///   lengths: [sequences] integers, overwritten. They add up over ranks that share sequences
/// Cost: one pass, on the caller's thread.
inline constexpr count_sequence_tokens_fn count_sequence_tokens{};

}  // namespace expar::inline v0
