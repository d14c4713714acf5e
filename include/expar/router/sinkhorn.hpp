// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/detail/arguments.hpp>
#include <expar/router/exp.hpp>
#include <expar/router/per_token.hpp>
#include <expar/router/score.hpp>

EXPAR_IEEE_BEGIN
namespace expar::inline v0 {

struct sinkhorn_options {
  /// The mean change of an expert's factor at which the iteration ends.
  double tolerance = 1e-4;
  /// What is added to denominators.
  double epsilon = 1e-8;
  int max_iterations = 1000;
};

struct sinkhorn_result {
  int iterations;
  /// Whether the last change was within the tolerance.
  bool converged;
};

namespace detail {

/// exp(z - row_shift) of all logits, a masked_view, in blocks of tokens that threads share.
struct sinkhorn_kernel {
  static constexpr index_t block = 64;

  host_context const& ctx;
  index_t tokens, experts, valid_tokens;
  buffer<double> k, shift, rows, columns, parts;

  template <class Logits>
  sinkhorn_kernel(host_context const& c, Logits const& logits)
      : ctx(c),
        tokens(logits.extents[0]),
        experts(logits.extents[1]),
        valid_tokens(0),
        k(c.memory()),
        shift(c.memory()),
        rows(c.memory()),
        columns(c.memory()),
        parts(c.memory()) {
    k.resize(tokens * experts);
    shift.resize(tokens);
    rows.resize(tokens);
    columns.assign(static_cast<std::size_t>(experts), 1);
    parts.resize((tokens + block - 1) / block * experts);
    for (index_t t = 0; t < tokens; ++t) valid_tokens += logits.valid(t);
    for_each_block([&](index_t first, index_t last, double*) {
      for (index_t t = first; t < last; ++t) {
        double* const row = k.data() + t * experts;
        for (index_t e = 0; e < experts; ++e)
          row[e] =
              logits.valid(t) ? static_cast<double>(widen(logits.row(t)[e])) : -infinity<double>;
        shift[t] = largest_logit(row, static_cast<int>(experts));
        for (index_t e = 0; e < experts; ++e)
          row[e] = masked(row[e]) ? 0 : shifted_exp(row[e], shift[t]);
      }
    });
  }

  /// f(first token, last token, sums of the block [experts])
  template <class F>
  void for_each_block(F&& f) {
    ctx.for_each_chunk((tokens + block - 1) / block, 1, [&](int, index_t first, index_t last) {
      for (index_t b = first; b < last; ++b)
        f(b * block, b * block + block < tokens ? b * block + block : tokens,
          parts.data() + b * experts);
    });
  }

  /// Fits the rows to the columns, and then these to the rows. Gives the mean change of a column.
  double iterate(double epsilon) {
    double const share = 1. / static_cast<double>(valid_tokens);
    for_each_block([&](index_t first, index_t last, double* sums) {
      for (index_t e = 0; e < experts; ++e) sums[e] = 0;
      for (index_t t = first; t < last; ++t) {
        double const* const row = k.data() + t * experts;
        double sum = 0;
        for (index_t e = 0; e < experts; ++e) sum += columns[e] * row[e];
        rows[t] = share / (sum + epsilon * exponential(-shift[t]));
        for (index_t e = 0; e < experts; ++e) sums[e] += rows[t] * row[e];
      }
    });
    double change = 0;
    for (index_t e = 0; e < experts; ++e) {
      double sum = 0;
      for (index_t at = e; at < static_cast<index_t>(parts.size()); at += experts) sum += parts[at];
      double const fitted = 1. / static_cast<double>(experts) / (sum + epsilon);
      change += fitted < columns[e] ? columns[e] - fitted : fitted - columns[e];
      columns[e] = fitted;
    }
    return change / static_cast<double>(experts);
  }
};

}  // namespace detail

struct sinkhorn_fn {
  template <class Logits, class Plan>
  sinkhorn_result operator()(host_context const& ctx, Logits const& logits,
                             sinkhorn_options const& options, Plan&& plan) const {
    detail::arguments a(ctx, "sinkhorn");
    auto const z = a.masked("logits", logits);
    auto const out = a.written("plan", plan,
                               {{z.extents[0], "the number of tokens"},
                                {z.extents[1], "the number of experts"},
                                detail::may_be("logits")});
    using P = detail::element_of<decltype(out)>;
    detail::expects(options.tolerance >= 0, a, ": tolerance is ", options.tolerance,
                    "; it is at least 0");
    detail::expects(options.epsilon > 0, a, ": epsilon is ", options.epsilon, "; it is above 0");
    detail::expects(options.max_iterations >= 1, a, ": max_iterations is ", options.max_iterations,
                    "; it is at least 1");
    detail::row_size(a, "logits", z.extents[1], "experts");
    if (z.size() == 0) return {0, true};
    detail::sinkhorn_kernel kernel(ctx, z);
    sinkhorn_result result{0, kernel.valid_tokens == 0};
    while (!result.converged && result.iterations < options.max_iterations) {
      ++result.iterations;
      result.converged = kernel.iterate(options.epsilon) <= options.tolerance;
    }
    kernel.for_each_block([&](index_t first, index_t last, double*) {
      for (index_t t = first; t < last; ++t)
        for (index_t e = 0; e < kernel.experts; ++e) {
          double const k = kernel.k[t * kernel.experts + e];
          double const x = k == 0 ? 0 : kernel.columns[e] * k * kernel.rows[t];
          out.row(t)[e] = narrow<P>(static_cast<accumulator_t<P>>(x));
        }
    });
    return result;
  }
};
/// `sinkhorn(ctx, logits, options, plan)`: a plan by which every token sends out, and every expert
/// takes in, equal shares; how often it iterated comes back.
///   logits: [T, experts], any element type, or only(valid, logits): tokens that are left out send
///           nothing, and T counts the others. The plan is 0 in their rows, and where logits are
///           NaN or -inf
///   plan: [T, experts], any element type, overwritten: d0_t * exp(logit) * d1_e, where
///         d0_t = 1 / T / (sum over e of exp(logit) * d1_e + epsilon) and
///         d1_e = 1 / experts / (sum over t of exp(logit) * d0_t + epsilon)
///         are repeated, from d1 = 1 on, until the mean of |change of d1| is within the tolerance
/// The plan has no gradient. It is what a router in training selects by; its weights are those of
/// the logits (S-BASE, arXiv:2102.06156; Megatron-LM, moe_utils.py and router.py, sinkhorn):
///   router({E, 1}, sigmoid_score{}, given_keys{plan})
///   router({E, k}, softmax_score{}, given_keys{plan})
/// Computes in double, and takes the largest logit of a token out of its exponentials and its d0:
/// the plan is the same, and no logit is too large. Where max_iterations end it, the plan is that
/// of the last. O(T * experts) for each iteration, and as much memory. The plan may be the logits,
/// and is otherwise apart from them.
inline constexpr sinkhorn_fn sinkhorn{};

}  // namespace expar::inline v0
EXPAR_IEEE_END
