// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/detail/arguments.hpp>
#include <expar/detail/arithmetic.hpp>
#include <expar/plan/detail/kept.hpp>

namespace expar::inline v0 {

/// A choice is kept where its weight is above the threshold: Mesh TensorFlow's policy "threshold"
/// for second experts; of infinity: its policy "none".
struct kept_above {
  double threshold;

  template <class A>
  bool keeps(A weight, index_t /*token*/) const {
    return weight > static_cast<A>(threshold);
  }
  void validate(char const* what, index_t /*tokens*/) const {
    detail::expects(!detail::is_nan(threshold), what, ": threshold is ", threshold,
                    "; it is a number");
  }
};

/// A choice is kept where weight / divisor > uniform [T], random numbers of [0, 1): with
/// probability weight / divisor, or always where that is above 1. Systems differ in the divisor and
/// in what the weight is:
///   Mesh TensorFlow, "random"   max(0.2, 1e-9)   divided by the sum of both + 1e-9
///   NLLB, "random"              0.5              the softmax over all experts, also where the
///                                                weights are renormalized
///   fastmoe, random_routing     0.5              the softmax over the selected
///   st_moe_pytorch              max(0.2, 1e-9)   divided by the sum; any choice but the first
/// fastmoe also keeps a route whose quotient equals the number.
template <class U>
struct kept_at_random {
  double divisor;
  tensor_view<U const, 1> uniform;

  template <class A>
  bool keeps(A weight, index_t token) const {
    return static_cast<double>(weight / static_cast<A>(divisor)) >
           static_cast<double>(widen(uniform(token)));
  }
  void validate(detail::argument_table& a, index_t tokens) const {
    a.reads("uniform", uniform, {{tokens, "the number of tokens"}});
    detail::expects(divisor > 0, a, ": divisor is ", divisor, "; it is greater than 0");
  }
};
template <class U>
kept_at_random(double, tensor_view<U, 1>) -> kept_at_random<std::remove_const_t<U>>;

struct keep_choice_fn {
  template <class Ids, class Weights, class Rule, class Kept>
  void operator()(host_context const& ctx, Ids const& ids, Weights const& weights, int choice,
                  Rule const& rule, Kept&& kept) const {
    detail::arguments a(ctx, "keep_choice");
    auto const i = a.ids("ids", ids);
    index_t const tokens = i.extents[0], k = i.extents[1];
    auto const w =
        a.read("weights", weights,
               {{tokens, "the number of tokens"}, {k, "the number of choices per token"}});
    if constexpr (requires { rule.validate(a, tokens); }) rule.validate(a, tokens);
    detail::expects(choice >= 0 && choice < k, "keep_choice: choice is ", choice,
                    "; a token has choices 0 to ", k - 1);
    auto const out = detail::kept_ids(a, kept, 1, i);
    ctx.for_each_chunk(tokens, 16384 / k + 1, [&](int, index_t first, index_t last) {
      for (index_t t = first; t < last; ++t) {
        for (index_t j = 0; j < k; ++j) out.row(t)[j] = i.row(t)[j];
        if (!rule.keeps(widen(w.row(t)[choice]), t)) out.row(t)[choice] = -1;
      }
    });
    out.store();
  }
};
/// `keep_choice(ctx, ids, weights, choice, rule, kept)` keeps one choice of each token, say the
/// second, only where a rule says so. Before drop_to_capacity() such a choice takes no place from
/// others (Mesh TensorFlow, NLLB), after it the place stays empty (fastmoe).
///   ids: [T,k] signed integers, -1 = no expert; stay as they are
///   weights: [T,k] of any element type, those that the rule looks at
///   choice: 0 to k - 1; 1 is the second
///   rule: kept_above, kept_at_random, or anything with keeps(weight, token); a weight is float, or
///         double for weights of double. May have validate(arguments, tokens)
///   kept: [T,k] signed integers, written: the ids, but -1 in that choice where it is not kept. It
///   may
///         be ids, and so may be given to the next choice; otherwise it is apart from them
/// Throws where shapes do not fit; then kept is untouched.
inline constexpr keep_choice_fn keep_choice{};

}  // namespace expar::inline v0
