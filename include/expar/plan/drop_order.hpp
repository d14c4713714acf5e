// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <limits>
#include <type_traits>

#include <expar/detail/argument_table.hpp>
#include <expar/element.hpp>
#include <expar/tensor.hpp>

namespace expar::inline v0 {

/// Which routes of an expert come before others. First is the route with the smaller group(choice),
/// then the larger value(token, choice), then the smaller token, then the smaller choice. A value
/// of NaN counts as -inf. May have validate(arguments, tokens,
/// top_k), which throws where it does not fit.
template <class O>
concept drop_order = requires(O const order, index_t i) {
  order.group(i);
  order.value(i, i);
};

/// By (choice, token): first choices of all tokens come before second choices. GShard, DeepSpeed
/// top2gating, fairscale, NLLB, Tutel, V-MoE, flaxformer, Switch; also Mesh TensorFlow, which lets
/// second choices begin behind the first choices that were KEPT, not behind all: an expert that
/// dropped one is full, so both keep the same routes.
struct by_choice {
  static constexpr index_t group(index_t choice) { return choice; }
  static constexpr float value(index_t, index_t) { return 0; }
};

/// By (token, choice): DeepSpeed topkgating where it drops by position, OLMo-core, MegaBlocks.
/// Megatron by position leaves the order to the ties of a topk, and fastmoe to its threads; this is
/// the one of a stable topk, and of a single thread.
struct by_token {
  static constexpr index_t group(index_t) { return 0; }
  static constexpr float value(index_t, index_t) { return 0; }
};

/// Largest values [T, top_k] first. With the weights: Megatron and DeepSpeed topkgating where they
/// drop by probability, Mesh TensorFlow's switch_max. With random numbers: DeepSpeed's random token
/// selection, which is for top_k = 1.
template <class T>
struct by_value {
  static_assert(
      element<T>,
      "expar: values and scores are of an element type; specialize expar::element_traits for it");
  tensor_view<T const, 2> values;

  static constexpr index_t group(index_t) { return 0; }
  auto value(index_t token, index_t choice) const { return widen(values.row(token)[choice]); }
  void validate(detail::argument_table& a, index_t tokens, index_t top_k) const {
    a.reads("values", values,
            {{tokens, "the number of tokens"}, {top_k, "the number of choices per token"}});
  }
};
template <class T>
by_value(tensor_view<T, 2>) -> by_value<std::remove_const_t<T>>;

/// As by_choice, but among the tokens those with the largest score first, which is the largest
/// number of each row of scores [T, n], n >= 1: batch prioritized routing of V-MoE, flaxformer,
/// Tutel and NLLB. They take a token's scores before these are renormalized: those of all experts,
/// or the weights where the router has no weight policies. NaN does not count.
template <class T>
struct by_choice_and_score {
  static_assert(
      element<T>,
      "expar: values and scores are of an element type; specialize expar::element_traits for it");
  tensor_view<T const, 2> scores;

  static constexpr index_t group(index_t choice) { return choice; }
  auto value(index_t token, index_t) const {
    using A = accumulator_t<T>;
    A most = -std::numeric_limits<A>::infinity();
    T const* const row = scores.row(token);
    for (index_t i = 0; i < scores.extents[1]; ++i)
      if (A const score = widen(row[i]); score > most) most = score;
    return most;
  }
  void validate(detail::argument_table& a, index_t tokens, index_t) const {
    a.reads("scores", scores, {{tokens, "the number of tokens"}});
    detail::expects(scores.extents[1] >= 1, a, ": scores has no columns; at least 1 is needed");
  }
};
template <class T>
by_choice_and_score(tensor_view<T, 2>) -> by_choice_and_score<std::remove_const_t<T>>;

}  // namespace expar::inline v0
