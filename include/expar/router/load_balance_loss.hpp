// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/context.hpp>
#include <expar/detail/buffer.hpp>
#include <expar/element.hpp>
#include <expar/router/count_choices.hpp>
#include <expar/router/score.hpp>
#include <expar/router/token_loss.hpp>
#include <expar/tensor.hpp>

namespace expar {
inline namespace v0 {

struct load_balance_options {
  double coefficient = 1;
  /// How many tokens the loss is a mean over; 0: the valid tokens of this call, at least 1. Where
  /// the counts are summed over ranks, the tokens of all ranks: then the ranks' parts add up to the
  /// loss.
  index_t tokens = 0;
  /// How many choices of each token the counts hold.
  int choices = 1;
};

namespace detail {

/// sum over experts of slope[e] * softmax(z)[e]
struct balance_term {
  double const* slopes;
  int experts;

  template <class A>
  double value(A const* z, A* p) const {
    softmax_score{}(z, p, experts);
    double sum = 0;
    for (int e = 0; e < experts; ++e) sum += slopes[e] * static_cast<double>(p[e]);
    return sum;
  }
  template <class A>
  void gradient(A const* z, A* p) const {
    softmax_score{}(z, p, experts);
    A mean = 0;
    for (int e = 0; e < experts; ++e) mean += static_cast<A>(slopes[e]) * p[e];
    for (int e = 0; e < experts; ++e) p[e] *= static_cast<A>(slopes[e]) - mean;
  }
};

struct balance_names {
  char const *logits, *counts, *valid, *tokens, *choices, *d_logits;
};

/// Checks, and gives the slopes: dL/dp = coefficient * experts * N[e] / (choices * tokens^2).
template <class T, class Counts, class Valid>
balance_term make_balance_term(balance_names const& names, host_context const& ctx,
                               tensor_view<T, 2> logits, Counts const& counts, Valid valid,
                               load_balance_options const& o, buffer<double>& slopes) {
  auto const n = as_view<1>(ctx, counts);
  check_loss_logits(names.logits, logits);
  check_counts(names.counts, n);
  index_t const experts = logits.extents[1];
  check_extent(names.counts, n, 0, experts, "the number of experts");
  expects(o.tokens >= 0, names.tokens, " is ", o.tokens, "; it is at least 0");
  expects(o.choices >= 1, names.choices, " is ", o.choices, "; it is at least 1");
  double const tokens = token_count(o.tokens, logits.extents[0], valid);
  double const unit = o.coefficient * static_cast<double>(experts) / (o.choices * tokens * tokens);
  slopes.resize(experts);
  for (index_t e = 0; e < experts; ++e) slopes[e] = unit * static_cast<double>(n.data[e]);
  return {slopes.data(), static_cast<int>(experts)};
}

}  // namespace detail

/// The load balancing loss of GShard and Switch,
///   L = coefficient * experts * sum over e of f[e] * P[e],
///   f[e] = counts[e] / (tokens * choices),  P[e] = mean over tokens of softmax(logits)[e],
/// as `load_balance_loss(ctx, logits, counts, options)`, or
/// `load_balance_loss(ctx, logits, counts, valid, options)` to leave out tokens whose mark is 0.
///   logits: [T, experts], any element type; NaN and -inf have probability 0
///   counts: [experts] integers, how many routes name each expert before any is dropped; see
///           count_choices. They have no gradient
///   valid: [T] of bool or std::uint8_t
/// Returns this call's part: the sum over its tokens, divided by options.tokens.
/// It is 1 for a uniform load. Hugging Face's form is `choices` times this one.
inline constexpr struct load_balance_loss_fn {
  template <class Logits, class Counts>
  double operator()(host_context const& ctx, Logits const& logits, Counts const& counts,
                    load_balance_options const& options = {}) const {
    return part(ctx, detail::as_view<2>(ctx, logits), counts, detail::every_token{}, options);
  }
  template <class Logits, class Counts, class Valid>
  double operator()(host_context const& ctx, Logits const& logits, Counts const& counts,
                    Valid const& valid, load_balance_options const& options) const {
    auto const z = detail::as_view<2>(ctx, logits);
    return part(ctx, z, counts, detail::marks_of(names.valid, ctx, valid, z.extents[0]), options);
  }

 private:
  static constexpr detail::balance_names names{
      "load_balance_loss: logits", "load_balance_loss: counts",  "load_balance_loss: valid",
      "load_balance_loss: tokens", "load_balance_loss: choices", nullptr};
  template <class T, class Counts, class Valid>
  static double part(host_context const& ctx, tensor_view<T, 2> z, Counts const& counts,
                     Valid valid, load_balance_options const& options) {
    detail::buffer<double> slopes(ctx.memory());
    auto const term = detail::make_balance_term(names, ctx, z, counts, valid, options, slopes);
    return detail::sum_over_tokens(ctx, z, valid, term);
  }
} load_balance_loss{};

/// ADDS the gradient of load_balance_loss() to d_logits [T, experts]; the last argument, after
/// those of the loss (options are not left out). Tokens that are not valid stay as they are.
inline constexpr struct load_balance_loss_backward_fn {
  template <class Logits, class Counts, class DLogits>
  void operator()(host_context const& ctx, Logits const& logits, Counts const& counts,
                  load_balance_options const& options, DLogits&& d_logits) const {
    add(ctx, detail::as_view<2>(ctx, logits), counts, detail::every_token{}, options,
        detail::as_output<2>(ctx, d_logits));
  }
  template <class Logits, class Counts, class Valid, class DLogits>
  void operator()(host_context const& ctx, Logits const& logits, Counts const& counts,
                  Valid const& valid, load_balance_options const& options,
                  DLogits&& d_logits) const {
    auto const z = detail::as_view<2>(ctx, logits);
    add(ctx, z, counts, detail::marks_of(names.valid, ctx, valid, z.extents[0]), options,
        detail::as_output<2>(ctx, d_logits));
  }

 private:
  static constexpr detail::balance_names names{
      "load_balance_loss_backward: logits",  "load_balance_loss_backward: counts",
      "load_balance_loss_backward: valid",   "load_balance_loss_backward: tokens",
      "load_balance_loss_backward: choices", "load_balance_loss_backward: d_logits"};
  template <class T, class Counts, class Valid, class D>
  static void add(host_context const& ctx, tensor_view<T, 2> z, Counts const& counts, Valid valid,
                  load_balance_options const& options, tensor_view<D, 2> dz) {
    detail::buffer<double> slopes(ctx.memory());
    auto const term = detail::make_balance_term(names, ctx, z, counts, valid, options, slopes);
    detail::check_loss_gradient(names.d_logits, z, dz);
    detail::add_gradients(ctx, z, valid, term, dz);
  }
} load_balance_loss_backward{};

}  // namespace v0
}  // namespace expar
