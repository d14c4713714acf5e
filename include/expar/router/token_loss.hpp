// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <type_traits>

#include <expar/context.hpp>
#include <expar/detail/argument_table.hpp>
#include <expar/detail/buffer.hpp>
#include <expar/detail/token_mask.hpp>
#include <expar/element.hpp>
#include <expar/router/per_token.hpp>
#include <expar/router/score.hpp>
#include <expar/tensor.hpp>

namespace expar::inline v0::detail {

// A loss that is a sum over tokens is a term: value(z, scratch) of one token's logits z [experts],
// with scratch [2 experts], and gradient(z, g), which writes g [experts] and may use as many
// numbers behind them. A term that depends on the token has at(token), which gives the term of that
// token.

template <class Term>
auto term_at(Term const& term, [[maybe_unused]] index_t token) {
  if constexpr (requires { term.at(token); })
    return term.at(token);
  else
    return term;
}

template <class Valid>
auto marks_of(char const* what, host_context const& ctx, Valid const& valid, index_t tokens,
              char const* because = "the number of tokens") {
  auto const v = as_view<1>(ctx, valid);
  using Mark = element_of<decltype(v)>;
  static_assert(std::is_same_v<Mark, bool> || std::is_same_v<Mark, std::uint8_t>,
                "expar: the mask of valid tokens holds bool or std::uint8_t");
  check_view(what, v);
  check_extent(what, v, 0, tokens, because);
  return marked_tokens<Mark>{v};
}
inline every_token marks_of(char const*, host_context const&, every_token all, index_t) {
  return all;
}

/// What the mean over tokens divides by: `given`, or if that is 0 the valid tokens, at least 1.
template <class Valid>
double token_count(index_t given, index_t tokens, Valid valid) {
  if (given > 0) return static_cast<double>(given);
  index_t n = 0;
  for (index_t t = 0; t < tokens; ++t) n += valid(t);
  return static_cast<double>(n > 1 ? n : 1);
}

/// The sum of the term over the valid tokens, by blocks of a fixed size, so that the number of
/// threads does not show.
template <class T, class Valid, class Term>
double sum_over_tokens(host_context const& ctx, tensor_view<T, 2> logits, Valid valid,
                       Term const& term) {
  using A = accumulator_t<T>;
  constexpr index_t block = 64;
  index_t const tokens = logits.extents[0], experts = logits.extents[1];
  index_t const blocks = (tokens + block - 1) / block, stride = 3 * experts + 64;
  buffer<double> sums(ctx.memory());
  buffer<A> scratch(ctx.memory());
  sums.resize(blocks);
  scratch.resize(stride * ctx.chunks(blocks, 1));
  ctx.for_each_chunk(blocks, 1, [&](int part, index_t first, index_t last) {
    A* const z = scratch.data() + part * stride;
    for (index_t b = first; b < last; ++b) {
      double sum = 0;
      for (index_t t = b * block; t < (b + 1) * block && t < tokens; ++t)
        if (valid(t)) {
          widen_row(logits.row(t), z, experts);
          sum += term_at(term, t).value(static_cast<A const*>(z), z + experts);
        }
      sums[b] = sum;
    }
  });
  double total = 0;
  for (double const sum : sums) total += sum;
  return total;
}

/// Adds the term's gradient of each valid token to d_logits.
template <class T, class D, class Valid, class Term>
void add_gradients(host_context const& ctx, tensor_view<T, 2> logits, Valid valid, Term const& term,
                   tensor_view<D, 2> d_logits) {
  using A = accumulator_t<T>;
  index_t const tokens = logits.extents[0], experts = logits.extents[1];
  for_each_token_with<A>(ctx, tokens, experts, 3 * experts, [&](index_t t, A* z) {
    if (!valid(t)) return;
    A* const g = z + experts;
    widen_row(logits.row(t), z, experts);
    term_at(term, t).gradient(static_cast<A const*>(z), g);
    D* const d = d_logits.row(t);
    for (index_t e = 0; e < experts; ++e)
      d[e] = narrow<D>(widen(d[e]) + static_cast<accumulator_t<D>>(g[e]));
  });
}

/// sums [n] = the sum over the valid tokens of the rows that f(part, token, row) writes to row [n],
/// behind which it has `more` numbers of scratch; `part` counts the chunks that run at once, below
/// ctx.chunks(sum_blocks, 1). By blocks whose size depends on the number of tokens alone.
inline constexpr index_t sum_blocks = 256;
template <class A, class Valid, class F>
void sum_rows(host_context const& ctx, index_t tokens, index_t n, index_t more, Valid valid,
              double* sums, F&& f) {
  index_t const block = tokens / sum_blocks < 64 ? 64 : tokens / sum_blocks + 1;
  index_t const blocks = (tokens + block - 1) / block, stride = n + more + 64;
  buffer<double> table(ctx.memory());
  buffer<A> scratch(ctx.memory());
  table.assign(static_cast<std::size_t>(blocks * n), 0);
  scratch.resize(stride * ctx.chunks(blocks, 1));
  ctx.for_each_chunk(blocks, 1, [&](int part, index_t first, index_t last) {
    A* const row = scratch.data() + part * stride;
    for (index_t b = first; b < last; ++b) {
      double* const mine = table.data() + b * n;
      for (index_t t = b * block; t < (b + 1) * block && t < tokens; ++t)
        if (valid(t)) {
          f(part, t, row);
          for (index_t i = 0; i < n; ++i) mine[i] += static_cast<double>(row[i]);
        }
    }
  });
  for (index_t i = 0; i < n; ++i) {
    double sum = 0;
    for (index_t b = 0; b < blocks; ++b) sum += table[b * n + i];
    sums[i] = sum;
  }
}

/// The sum over experts of slopes[e] * score(z)[e]: what a loss is to first order that depends on
/// logits by sums of scores alone.
template <class Score>
struct score_sum {
  Score score;
  double const* slopes;
  int experts;

  template <class A>
  double value(A const* z, A* s) const {
    score(z, s, experts);
    double sum = 0;
    for (int e = 0; e < experts; ++e) sum += slopes[e] * static_cast<double>(s[e]);
    return sum;
  }
  template <class A>
  void gradient(A const* z, A* g) const {
    A* const s = g + experts;
    score(z, s, experts);
    for (int e = 0; e < experts; ++e) g[e] = static_cast<A>(slopes[e]);
    score.vjp(z, static_cast<A const*>(s), static_cast<A const*>(g), g, experts);
    for (int e = 0; e < experts; ++e)
      if (masked(z[e])) g[e] = 0;
  }
};

/// A score's own checks, as a router makes them.
template <class Score>
void check_score(char const* op, Score const& score, index_t experts, index_t tokens) {
  int const n = static_cast<int>(experts);
  argument_table a(op);
  if constexpr (requires { score.validate(a, n, n, tokens); }) score.validate(a, n, n, tokens);
}

template <class T>
void check_loss_logits(char const* what, tensor_view<T, 2> const& logits) {
  static_assert(element<std::remove_cv_t<T>>,
                "expar: logits are of an element type; specialize expar::element_traits for it");
  check_view(what, logits);
}
template <class T, class D>
void check_loss_gradient(char const* what, tensor_view<T, 2> const& logits,
                         tensor_view<D, 2> const& d_logits) {
  static_assert(element<D>,
                "expar: gradients are of an element type; specialize expar::element_traits for it");
  check_output(what, d_logits);
  check_extent(what, d_logits, 0, logits.extents[0], "the number of tokens");
  check_extent(what, d_logits, 1, logits.extents[1], "the number of experts");
}

}  // namespace expar::inline v0::detail
