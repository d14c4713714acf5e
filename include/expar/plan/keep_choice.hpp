// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <type_traits>

#include <expar/context.hpp>
#include <expar/detail/in_place.hpp>
#include <expar/element.hpp>
#include <expar/plan/detail/kept.hpp>
#include <expar/tensor.hpp>

namespace expar::inline v0 {

/// A choice is kept where its weight is above the threshold: Mesh TensorFlow's policy "threshold"
/// for second experts; of infinity: its policy "none".
struct kept_above {
  double threshold;

  template <class A>
  bool keeps(A weight, index_t /*token*/) const {
    return weight > static_cast<A>(threshold);
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
           static_cast<double>(widen(uniform.data[token]));
  }
  void validate(char const* what, index_t tokens) const {
    detail::expects(divisor > 0, what, ": divisor is ", divisor, "; it is greater than 0");
    detail::check_view("keep_choice: uniform", uniform);
    detail::check_extent("keep_choice: uniform", uniform, 0, tokens, "the number of tokens");
  }
};
template <class U>
kept_at_random(double, tensor_view<U, 1>) -> kept_at_random<std::remove_const_t<U>>;

struct keep_choice_fn {
  template <class Ids, class Weights, class Rule, class Kept>
  void operator()(host_context const& ctx, Ids const& ids, Weights const& weights, int choice,
                  Rule const& rule, Kept&& kept) const {
    auto const i = detail::as_view<2>(ctx, ids);
    auto const w = detail::as_view<2>(ctx, weights);
    auto const out = detail::as_output<2>(ctx, kept);
    static_assert(element<detail::element_of<decltype(w)>>,
                  "expar: weights are of an element type; specialize expar::element_traits for it");
    detail::check_kept("keep_choice: ids", i, "keep_choice: kept", out);
    index_t const tokens = i.extents[0], k = i.extents[1];
    detail::check_view("keep_choice: weights", w);
    detail::check_extent("keep_choice: weights", w, 0, tokens, "the number of tokens");
    detail::check_extent("keep_choice: weights", w, 1, k, "the number of choices per token");
    detail::check_in_place("keep_choice: kept", out, "ids", i);
    detail::check_apart("keep_choice: kept", out, "weights", w);
    detail::expects(choice >= 0 && choice < k, "keep_choice: choice is ", choice,
                    "; a token has choices 0 to ", k - 1);
    if constexpr (requires { rule.validate("keep_choice", tokens); })
      rule.validate("keep_choice", tokens);
    ctx.for_each_chunk(tokens, 16384 / k + 1, [&](int, index_t first, index_t last) {
      for (index_t t = first; t < last; ++t) {
        for (index_t j = 0; j < k; ++j) out.row(t)[j] = i.row(t)[j];
        if (!rule.keeps(widen(w.row(t)[choice]), t)) out.row(t)[choice] = -1;
      }
    });
  }
};
/// Keeps one choice of each token, say the second, only where a rule says so: `keep_choice(ctx,
/// ids, weights, choice, rule, kept)`. Before drop_to_capacity() such a choice takes no place from
/// others (Mesh TensorFlow, NLLB), after it the place stays empty (fastmoe).
///   ids: [T,k] std::int32_t, -1 = no expert; stay as they are
///   weights: [T,k] of any element type, those that the rule looks at
///   choice: 0 to k - 1; 1 is the second
///   rule: kept_above, kept_at_random, or anything with keeps(weight, token); a weight is float, or
///         double for weights of double. May have check(what, tokens)
///   kept: [T,k] std::int32_t, written: the ids, but -1 in that choice where it is not kept. It may
///         be ids, and so may be given to the next choice; otherwise it is apart from them
/// Throws where shapes do not fit; then kept is untouched.
inline constexpr keep_choice_fn keep_choice{};

}  // namespace expar::inline v0
