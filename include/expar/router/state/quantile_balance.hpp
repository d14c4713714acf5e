// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/detail/arguments.hpp>
#include <expar/detail/arithmetic.hpp>
#include <expar/detail/select.hpp>
#include <expar/router/per_token.hpp>
#include <expar/router/score.hpp>
#include <expar/router/state/bias_update.hpp>  // moved_bias
#include <expar/router/top_k.hpp>

EXPAR_IEEE_BEGIN
namespace expar::inline v0 {
namespace detail {

/// The (k+1)-th largest of the keys, or -inf where there are fewer: what a key must beat to be
/// among the top k. ids and best have room for k + 1.
template <class A>
A cutoff_of(A const* keys, int experts, int k, std::int32_t* ids, A* best) {
  return select_top_k(keys, experts, k + 1, ids, best) > k ? best[k] : -infinity<A>;
}

/// The logits of those tokens that take part.
template <class Context, class Logits>
auto read_balanced(arguments<Context>& a, Logits const& logits, int top_k) {
  auto const z = a.masked("logits", logits);
  int const experts = row_size(a, "logits", z.extents[1], "experts");
  expects(top_k >= 1 && top_k < experts, a, ": top_k is ", top_k,
          "; it is at least 1 and less than the ", experts, " experts");
  return z;
}

/// The bias becomes what `now` [experts] holds, minus the mean over experts, rounded once.
template <class B>
void set_centered(buffer<double> const& now, tensor_view<B, 1> bias) {
  index_t const n = bias.extents[0];
  double sum = 0;
  for (index_t e = 0; e < n; ++e) sum += now[e];
  double const mean = n > 0 ? sum / static_cast<double>(n) : 0;
  for (index_t e = 0; e < n; ++e) bias(e) = static_cast<B>(now[e] - mean);
}

}  // namespace detail

struct quantile_bias_fn {
  template <class Logits, class Bias, class Target>
  void operator()(host_context const& ctx, Logits const& logits, Bias const& bias, int top_k,
                  Target&& target) const {
    detail::arguments a(ctx, "quantile_bias");
    auto const z = detail::read_balanced(a, logits, top_k);
    index_t const tokens = z.extents[0], experts = z.extents[1];
    auto const b = a.read_vector("bias", bias, {{experts, "the number of experts"}});
    auto const to = a.written_vector("target", target, {{experts, "the number of experts"}});
    using A = accumulator_t<detail::element_of<decltype(z)>>;
    using D = detail::element_of<decltype(to)>;

    detail::buffer<index_t> rows(ctx.memory());
    rows.resize(tokens);
    index_t n = 0;
    for (index_t t = 0; t < tokens; ++t)
      if (z.valid(t)) rows[n++] = t;
    detail::buffer<A> cutoffs(ctx.memory()), scratch(ctx.memory());
    detail::buffer<std::int32_t> ids(ctx.memory());
    index_t const grain = 4096 / (experts + 1) + 1, room = experts + top_k + 1;
    cutoffs.resize(n);
    index_t const by_token = room * ctx.chunks(n, grain), by_expert = n * ctx.chunks(experts, 1);
    scratch.resize(by_token > by_expert ? by_token : by_expert);
    ids.resize(index_t{top_k + 1} * ctx.chunks(n, grain));
    ctx.for_each_chunk(n, grain, [&](int part, index_t first, index_t last) {
      A* const keys = scratch.data() + part * room;
      for (index_t i = first; i < last; ++i) {
        detail::widen_row(z.row(rows[i]), keys, experts);
        for (index_t e = 0; e < experts; ++e)
          keys[e] = detail::add(keys[e], static_cast<A>(widen(b(e))));
        cutoffs[i] =
            detail::cutoff_of(static_cast<A const*>(keys), static_cast<int>(experts), top_k,
                              ids.data() + index_t{part} * (top_k + 1), keys + experts);
      }
    });
    index_t const rank = n * top_k / experts;
    ctx.for_each_chunk(experts, 1, [&](int part, index_t first, index_t last) {
      A* const column = scratch.data() + part * n;
      for (index_t e = first; e < last; ++e) {
        for (index_t i = 0; i < n; ++i) {
          A const x = static_cast<A>(widen(z.row(rows[i])[e]));
          column[i] = detail::masked(x) ? -detail::infinity<A> : detail::add(x, -cutoffs[i]);
          if (!(column[i] == column[i])) column[i] = detail::infinity<A>;
        }
        A at = detail::infinity<A>;
        if (n > 0)
          at = detail::element_of_rank(column, n, rank,
                                       [](A left, A right) { return left > right; });
        bool const finite = at > -detail::infinity<A> && at < detail::infinity<A>;
        to(e) =
            narrow<D>(static_cast<accumulator_t<D>>(finite ? -at : static_cast<A>(widen(b(e)))));
      }
    });
  }
};
/// `quantile_bias(ctx, logits, bias, top_k, target)`: the bias at which each expert would have got
/// its share of a batch, were the cutoffs of the tokens to stay (Megatron-LM, moe_utils.py,
/// qb_dual_update), for routers that select by biased_logit_key:
///   cutoff[t] = the (top_k + 1)-th largest of logits[t,e] + bias[e] over experts,
///   target[e] = -(the (T * top_k / experts + 1)-th largest of logits[t,e] - cutoff[t] over tokens)
///   logits: [T, experts], any element type, or only(valid, logits), where T above is the number of
///           tokens that are not left out; NaN and -inf are not selected
///   bias: [experts], any element type: minus the beta of Megatron-LM
///   target: [experts], any element type, overwritten, apart from the others. Where there is no
///           such value, or it is not finite, it is the bias
/// A token for which the expert is masked counts as one that no bias wins: an expert that is masked
/// for many gets its share of all tokens from those that are left, unlike in histogram_bias(),
/// which gives it a share of the tokens for which it is not masked. All tokens that share a cutoff
/// of load take part: Megatron-LM gathers the logits of a sequence over ranks. The targets of
/// micro-batches and ranks are averaged, see blend_bias.
inline constexpr quantile_bias_fn quantile_bias{};

struct blend_bias_fn {
  template <class Sums, class Bias>
  void operator()(host_context const& ctx, Sums const& sums, index_t parts, double keep,
                  Bias&& bias) const {
    detail::arguments a(ctx, "blend_bias");
    auto const s = a.read_any_vector("sums", sums);
    static_assert(std::is_same_v<detail::element_of<decltype(s)>, double>,
                  "expar: these sums are double");
    auto const b = detail::moved_bias(a, bias, {s.extents[0], "the number of sums"});
    detail::expects(parts >= 1, a, ": parts is ", parts, "; it is at least 1");
    detail::expects(keep >= 0 && keep <= 1, a, ": keep is ", keep, "; it is from 0 to 1");
    detail::buffer<double> now(ctx.memory());
    now.resize(s.extents[0]);
    for (index_t e = 0; e < s.extents[0]; ++e)
      now[e] = keep * static_cast<double>(b(e)) + (1 - keep) * (s(e) / static_cast<double>(parts));
    detail::set_centered(now, b);
  }
};
/// `blend_bias(ctx, sums, parts, keep, bias)`: the bias of the next step from the targets of this
/// one, which are summed over `parts` micro-batches and ranks:
///   bias = keep * bias + (1 - keep) * sums / parts, and then minus its mean over experts
///   sums: [experts] of double
///   keep: from 0 to 1; Megatron-LM's moe_router_quantile_balancing_ema
///   bias: [experts] of float or double, apart from the sums
/// Call it once per optimizer step.
inline constexpr blend_bias_fn blend_bias{};

}  // namespace expar::inline v0
EXPAR_IEEE_END
