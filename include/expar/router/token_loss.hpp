// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/detail/arguments.hpp>
#include <expar/router/detail/steps.hpp>  // validate_step
#include <expar/router/per_token.hpp>
#include <expar/router/score.hpp>

EXPAR_IEEE_BEGIN
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

/// What the mean over tokens divides by: `given`, or if that is 0 the valid tokens of z, at
/// least 1.
template <class Logits>
double token_count(index_t given, Logits const& z) {
  if (given > 0) return static_cast<double>(given);
  index_t n = 0;
  for (index_t t = 0; t < z.extents[0]; ++t) n += z.valid(t);
  return static_cast<double>(n > 1 ? n : 1);
}

/// The logits of a loss and their experts, which terms count in int.
template <class Logits>
auto logits_of_loss(arguments<host_context>& a, char const* name, Logits const& logits) {
  auto z = a.masked(name, logits);
  row_size(a, name, z.extents[1], "experts");
  return z;
}

/// The gradient for the logits z of a loss; nothing where the loss itself is asked for.
struct no_gradient {};
template <class Logits>
no_gradient gradient_of_loss(arguments<host_context>&, Logits const&) {
  return {};
}
template <class Logits, class DLogits>
auto gradient_of_loss(arguments<host_context>& a, Logits const& z, DLogits& d_logits) {
  return a.gradient(
      "d_logits", d_logits,
      {{z.extents[0], "the number of tokens"}, {z.extents[1], "the number of experts"}});
}

/// The sum of the term over the valid tokens of z, by blocks of a fixed size, so that the number of
/// threads does not show.
template <class Logits, class Term>
double loss_of_tokens(host_context const& ctx, Logits const& z, Term const& term, no_gradient) {
  using A = accumulator_t<element_of<Logits>>;
  constexpr index_t block = 64;
  index_t const tokens = z.extents[0], experts = z.extents[1];
  index_t const blocks = (tokens + block - 1) / block, stride = 3 * experts + 64;
  buffer<double> sums(ctx.memory());
  buffer<A> scratch(ctx.memory());
  sums.resize(blocks);
  scratch.resize(stride * ctx.chunks(blocks, 1));
  ctx.for_each_chunk(blocks, 1, [&](int part, index_t first, index_t last) {
    A* const x = scratch.data() + part * stride;
    for (index_t b = first; b < last; ++b) {
      double sum = 0;
      for (index_t t = b * block; t < (b + 1) * block && t < tokens; ++t)
        if (z.valid(t)) {
          widen_row(z.row(t), x, experts);
          sum += term_at(term, t).value(static_cast<A const*>(x), x + experts);
        }
      sums[b] = sum;
    }
  });
  double total = 0;
  for (double const sum : sums) total += sum;
  return total;
}

/// Writes the term's gradient of each valid token, and zeros for the others, in place of the sum.
template <class Logits, class Term, class Gradient>
double loss_of_tokens(host_context const& ctx, Logits const& z, Term const& term,
                      Gradient const& d_logits) {
  using A = accumulator_t<element_of<Logits>>;
  index_t const tokens = z.extents[0], experts = z.extents[1];
  for_each_token_with<A>(ctx, tokens, experts, 3 * experts, [&](index_t t, A* x) {
    if (!z.valid(t)) return d_logits.put_zeros(d_logits.row(t), experts);
    A* const g = x + experts;
    widen_row(z.row(t), x, experts);
    term_at(term, t).gradient(static_cast<A const*>(x), g);
    d_logits.put_row(d_logits.row(t), g, experts);
  });
  return 0;
}

/// sums [n] = the sum over the valid tokens of the rows that f(part, token, row) writes to row [n],
/// behind which it has `more` numbers of scratch; `part` counts the chunks that run at once, below
/// ctx.chunks(sum_blocks, 1). By blocks whose size depends on the number of tokens alone.
inline constexpr index_t sum_blocks = 256;
template <class A, class Valid, class F>
void sum_rows(host_context const& ctx, index_t tokens, index_t more, Valid valid,
              tensor_view<double, 1> sums, F&& f) {
  index_t const n = sums.extents[0];
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
    sums(i) = sum;
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
template <class Score, class Logits>
void check_score(argument_table& a, Score const& score, Logits const& z) {
  int const n = static_cast<int>(z.extents[1]);
  validate_step(a, score, n, n, z.extents[0]);
}

}  // namespace expar::inline v0::detail
EXPAR_IEEE_END
