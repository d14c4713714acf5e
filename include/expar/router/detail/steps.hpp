// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <type_traits>
#include <utility>

#include <expar/config.hpp>
#include <expar/detail/argument_table.hpp>
#include <expar/router/expert_weights.hpp>
#include <expar/router/given_ids.hpp>
#include <expar/router/key.hpp>
#include <expar/router/limit.hpp>
#include <expar/router/normalize.hpp>
#include <expar/router/score.hpp>
#include <expar/router/selection.hpp>
#include <expar/router/transform.hpp>
#include <expar/router/weight.hpp>
#include <expar/tensor.hpp>

namespace expar::inline v0::detail {

/// What a policy becomes for one token: of one that has a number or a row for each token, what
/// belongs to this one.
template <class Step>
EXPAR_HD constexpr auto bind(Step const& step, index_t token) {
  if constexpr (requires { step.at(token); })
    return step.at(token);
  else
    return step;
}
template <class Step>
using bound = decltype(bind(std::declval<Step const&>(), index_t{}));

/// A policy's own checks, where it has some. Its tensors become arguments of the call; `entries`:
/// what is in them is read as well.
template <class Step>
void validate_step(argument_table& a, Step const& step, int experts, int top_k, index_t tokens,
                   bool entries = true) {
  if constexpr (requires { step.validate(a, experts, top_k, tokens); })
    step.validate(a, experts, top_k, tokens);
  if constexpr (requires { step.validate_entries(a, experts, top_k, tokens); })
    if (entries) step.validate_entries(a, experts, top_k, tokens);
}

/// What a policy is, in the order in which policies run.
enum class stage { transform, score, key, limit, selection, weight, none };

template <class Step>
constexpr stage stage_of() {
  if constexpr (transform_policy<Step>)
    return stage::transform;
  else if constexpr (score_policy<Step>)
    return stage::score;
  else if constexpr (key_policy<Step>)
    return stage::key;
  else if constexpr (limit_policy<Step>)
    return stage::limit;
  else if constexpr (selection_policy<Step>)
    return stage::selection;
  else if constexpr (weight_policy<Step>)
    return stage::weight;
  else
    return stage::none;
}

/// Which of a router's policies stand where. A router has a score; without a key it has score_key,
/// and without a selection top_k_selection.
template <class... Steps>
struct step_order {
  static constexpr stage stages[sizeof...(Steps) + 1] = {stage_of<bound<Steps>>()..., stage::none};

  static constexpr int count(stage which) {
    int n = 0;
    for (int i = 0; i < static_cast<int>(sizeof...(Steps)); ++i) n += stages[i] == which;
    return n;
  }
  /// The first step of a stage that is `which` or later.
  static constexpr int first(stage which) {
    int at = 0;
    while (stages[at] < which) ++at;
    return at;
  }
  static constexpr bool ascending() {
    for (int i = 0; i + 1 < static_cast<int>(sizeof...(Steps)); ++i)
      if (stages[i + 1] < stages[i]) return false;
    return true;
  }

  static constexpr int score_at = first(stage::score), key_at = first(stage::key),
                       limits_at = first(stage::limit), selection_at = first(stage::selection),
                       weights_at = first(stage::weight);
};

template <int N, class Step>
struct step_leaf {
  Step value;
};
template <class Indices, class... Steps>
struct step_leaves;
template <int... N, class... Steps>
struct step_leaves<std::integer_sequence<int, N...>, Steps...> : step_leaf<N, Steps>... {};

/// Steps that stand side by side, to be had by their number.
template <class... Steps>
using step_list =
    step_leaves<std::make_integer_sequence<int, static_cast<int>(sizeof...(Steps))>, Steps...>;

template <int N, class Step>
EXPAR_HD constexpr Step const& step_of(step_leaf<N, Step> const& leaf) {
  return leaf.value;
}

/// Calls f(step) for `Count` steps from number `First` on.
template <int First, int Count, class F, class List>
EXPAR_HD constexpr void for_each_step([[maybe_unused]] F&& f, [[maybe_unused]] List const& list) {
  if constexpr (Count > 0) {
    f(step_of<First>(list));
    for_each_step<First + 1, Count - 1>(f, list);
  }
}
/// f(all steps).
template <class F, int... N, class... Steps>
EXPAR_HD constexpr auto apply_steps(
    F&& f, step_leaves<std::integer_sequence<int, N...>, Steps...> const& list) {
  return f(step_of<N>(list)...);
}

/// The type of the one step of a stage, or Default.
template <stage Stage, class Default, class... Steps>
auto step_type_of() {
  if constexpr (step_order<Steps...>::count(Stage) == 0)
    return std::type_identity<Default>{};
  else
    return std::type_identity<
        std::remove_cvref_t<decltype(step_of<step_order<Steps...>::first(Stage)>(
            std::declval<step_list<Steps...> const&>()))>>{};
}
template <stage Stage, class Default, class... Steps>
using step_type = typename decltype(step_type_of<Stage, Default, Steps...>())::type;

template <class Step>
inline constexpr bool depends_on_token = requires(Step const& s) {
  s.at(index_t{});
};

template <class Step>
constexpr weight_site site_of_step() {
  if constexpr (requires { Step::site; })
    return Step::site;
  else
    return weight_site::output;
}
template <class... Steps>
inline constexpr weight_site site_of = ((site_of_step<Steps>() == weight_site::input) || ...)
                                           ? weight_site::input
                                           : weight_site::output;

template <class Step>
inline constexpr bool has_scratch = requires(Step const& s) {
  s.scratch(1, 1);
};
template <class Step>
inline constexpr bool scratch_as_bound = has_scratch<Step> == has_scratch<bound<Step>>;

/// Numbers that a step may overwrite behind what it is given.
template <class Step>
EXPAR_HD constexpr int scratch_of(Step const& step, int experts, int top_k) {
  if constexpr (requires { step.scratch(experts, top_k); })
    return step.scratch(experts, top_k);
  else
    return 0;
}

}  // namespace expar::inline v0::detail
