// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include <expar/context.hpp>
#include <expar/detail/buffer.hpp>
#include <expar/element.hpp>
#include <expar/error.hpp>
#include <expar/router/per_token.hpp>
#include <expar/router/routes.hpp>
#include <expar/router/routes_of_tokens.hpp>  // check_tokens, count_takers
#include <expar/router/score.hpp>
#include <expar/router/token_loss.hpp>  // every_token, marks_of
#include <expar/tensor.hpp>

namespace expar::inline v0 {

/// Experts choose tokens: each expert takes the `capacity` tokens with the largest scores.
struct expert_choice {
  /// What the scores, a softmax of the logits, add up to 1 over: the experts of a token
  /// (flaxformer, ExpertsChooseMaskedRouter; V-MoE), or the tokens of an expert (Mesh TensorFlow,
  /// _expert_selection_gating).
  enum class softmax { over_experts, over_tokens };

  int experts;
  int capacity;
  softmax axis;
  /// Whether a gate is the score divided by the number of experts that took the token (Mesh
  /// TensorFlow), or the score.
  bool divide_by_experts;
};

namespace detail {

/// The scores as [experts, T], each expert's in a run; 0 for what is masked or not valid. For a
/// softmax over tokens, `select(e, keys)` sees the logits of expert e in its run before it becomes
/// scores; for one over experts, the scores. What it sees of masked logits is -inf.
template <class A, class T, class Valid, class Select>
void scores_by_expert(host_context const& ctx, expert_choice const& c, tensor_view<T, 2> z,
                      Valid valid, A* columns, Select&& select) {
  index_t const tokens = z.extents[0];
  bool const by_token = c.axis == expert_choice::softmax::over_tokens;
  for_each_token_with<A>(ctx, tokens, c.experts, 2 * index_t{c.experts}, [&](index_t t, A* row) {
    A* const s = row + c.experts;
    widen_row(z.row(t), row, c.experts);
    if (!by_token) softmax_score{}(static_cast<A const*>(row), s, c.experts);
    for (int e = 0; e < c.experts; ++e)
      columns[e * tokens + t] = !valid(t) || masked(row[e]) ? -infinity<A>
                                : by_token                  ? row[e]
                                                            : s[e];
  });
  ctx.for_each_chunk(c.experts, 4096 / (tokens + 1) + 1, [&](int, index_t first, index_t last) {
    for (index_t e = first; e < last; ++e) {
      A* const column = columns + e * tokens;
      select(e, static_cast<A const*>(column));
      if (by_token)
        softmax_score{}(static_cast<A const*>(column), column, static_cast<int>(tokens));
      else
        for (index_t t = 0; t < tokens; ++t)
          if (masked(column[t])) column[t] = 0;
    }
  });
}

template <class T>
void check_expert_choice(char const* what, char const* logits_name, expert_choice const& c,
                         tensor_view<T, 2> const& z) {
  static_assert(element<std::remove_cv_t<T>>,
                "expar: logits are of an element type; specialize expar::element_traits for it");
  expects(c.experts >= 1, what, ": experts is ", c.experts, "; it is at least 1");
  expects(c.capacity >= 1, what, ": capacity is ", c.capacity, "; it is at least 1");
  check_view(logits_name, z);
  check_extent(logits_name, z, 1, c.experts, "the number of experts");
  expects(z.extents[0] <= INT32_MAX, what, ": logits has ", z.extents[0], " tokens; at most ",
          INT32_MAX, " are possible");
}
template <class T>
void check_slots(char const* what, expert_choice const& c, tensor_view<T, 2> const& v) {
  check_view(what, v);
  check_extent(what, v, 0, c.experts, "the number of experts");
  check_extent(what, v, 1, c.capacity, "the capacity");
}

}  // namespace detail

struct choose_tokens_fn {
  template <class Logits, class Chosen>
  void operator()(host_context const& ctx, expert_choice const& choice, Logits const& logits,
                  Chosen&& chosen) const {
    choose(ctx, choice, detail::as_view<2>(ctx, logits), detail::every_token{}, chosen);
  }
  template <class Logits, class Valid, class Chosen>
  void operator()(host_context const& ctx, expert_choice const& choice, Logits const& logits,
                  Valid const& valid, Chosen&& chosen) const {
    auto const z = detail::as_view<2>(ctx, logits);
    choose(ctx, choice, z, detail::marks_of("choose_tokens: valid", ctx, valid, z.extents[0]),
           chosen);
  }

 private:
  template <class T, class Valid, class Chosen>
  static void choose(host_context const& ctx, expert_choice const& c, tensor_view<T, 2> z,
                     Valid valid, Chosen& chosen) {
    static_assert(routes_like<Chosen>,
                  "expar: what experts choose is anything with tensors `ids` and `weights` of rank "
                  "2");
    auto const ids = detail::as_output<2>(ctx, chosen.ids);
    auto const weights = detail::as_output<2>(ctx, chosen.weights);
    using A = accumulator_t<T>;
    using W = detail::element_of<decltype(weights)>;
    static_assert(std::is_same_v<detail::element_of<decltype(ids)>, std::int32_t>,
                  "expar: token ids are std::int32_t");
    static_assert(element<W>,
                  "expar: weights are of an element type; specialize expar::element_traits for it");
    detail::check_expert_choice("choose_tokens", "choose_tokens: logits", c, z);
    detail::check_slots("choose_tokens: ids", c, ids);
    detail::check_slots("choose_tokens: weights", c, weights);
    detail::check_output("choose_tokens: ids", ids);
    detail::check_output("choose_tokens: weights", weights);
    detail::check_apart("choose_tokens: ids", ids, "logits", z);
    detail::check_apart("choose_tokens: weights", weights, "logits", z);
    detail::check_apart("choose_tokens: weights", weights, "ids", ids);
    index_t const tokens = z.extents[0];
    detail::buffer<A> columns(ctx.memory());
    detail::buffer<std::int32_t> order(ctx.memory());
    detail::buffer<index_t> takers(ctx.memory());
    columns.resize(tokens * c.experts);
    order.resize(tokens * c.experts);
    if (c.divide_by_experts) takers.reserve(static_cast<std::size_t>(tokens));
    detail::scores_by_expert<A>(ctx, c, z, valid, columns.data(), [&](index_t e, A const* keys) {
      std::int32_t* const mine = order.data() + e * tokens;
      take_best(keys, tokens, mine, c.capacity, ids.row(e));
    });
    if (c.divide_by_experts) detail::count_takers(ids, tokens, takers);
    ctx.for_each_chunk(c.experts, 4096 / c.capacity + 1, [&](int, index_t first, index_t last) {
      for (index_t e = first; e < last; ++e)
        for (index_t slot = 0; slot < c.capacity; ++slot) {
          std::int32_t const t = ids.row(e)[slot];
          A gate = t < 0 ? A(0) : columns[e * tokens + t];
          if (t >= 0 && c.divide_by_experts) gate /= static_cast<A>(takers[t]);
          weights.row(e)[slot] = narrow<W>(static_cast<accumulator_t<W>>(gate));
        }
    });
  }

  /// The best `capacity` tokens to ids; `order` [tokens] is scratch.
  template <class A>
  static void take_best(A const* keys, index_t tokens, std::int32_t* order, index_t capacity,
                        std::int32_t* ids) {
    index_t n = 0;
    for (index_t t = 0; t < tokens; ++t)
      if (!detail::masked(keys[t])) order[n++] = static_cast<std::int32_t>(t);
    auto const before = [keys](std::int32_t a, std::int32_t b) {
      return keys[a] > keys[b] || (keys[a] == keys[b] && a < b);
    };
    index_t const taken = n < capacity ? n : capacity;
    if (taken < n) std::nth_element(order, order + taken, order + n, before);
    std::sort(order, order + taken, before);
    for (index_t slot = 0; slot < capacity; ++slot) ids[slot] = slot < taken ? order[slot] : -1;
  }
};
/// Gives every expert its tokens: `choose_tokens(ctx, choice, logits, chosen)`, or
/// `choose_tokens(ctx, choice, logits, valid, chosen)`.
///   logits: [T, experts], any element type; what is NaN or -inf is never taken
///   valid: [T] of bool or std::uint8_t; tokens whose mark is 0 take no part
///   chosen: `ids` [experts, capacity], the tokens of each expert, and `weights`, their gates; a
///           routes<W>(experts, capacity) will do
/// The tokens of an expert are in descending order of score, equal ones by ascending id; a softmax
/// over tokens compares logits, which order alike. Where fewer can be taken there are ids of -1
/// with weight 0. Systems choose among the tokens of one group: call it once for each. Computes in
/// float, or in double for logits of double. O(T * experts) time and memory, and for each expert
/// O(T + capacity * log capacity). Logits, ids and weights are apart in memory. Throws where shapes
/// do not fit or memory runs out; then nothing is written.
inline constexpr choose_tokens_fn choose_tokens{};

struct choose_tokens_backward_fn {
  template <class Logits, class Chosen, class DWeights, class DLogits>
  void operator()(host_context const& ctx, expert_choice const& choice, Logits const& logits,
                  Chosen const& chosen, DWeights const& d_weights, DLogits&& d_logits) const {
    backward(ctx, choice, detail::as_view<2>(ctx, logits), detail::every_token{}, chosen,
             detail::as_view<2>(ctx, d_weights), detail::as_output<2>(ctx, d_logits));
  }
  template <class Logits, class Valid, class Chosen, class DWeights, class DLogits>
  void operator()(host_context const& ctx, expert_choice const& choice, Logits const& logits,
                  Valid const& valid, Chosen const& chosen, DWeights const& d_weights,
                  DLogits&& d_logits) const {
    auto const z = detail::as_view<2>(ctx, logits);
    backward(ctx, choice, z,
             detail::marks_of("choose_tokens_backward: valid", ctx, valid, z.extents[0]), chosen,
             detail::as_view<2>(ctx, d_weights), detail::as_output<2>(ctx, d_logits));
  }

 private:
  template <class T, class Valid, class Chosen, class DW, class D>
  static void backward(host_context const& ctx, expert_choice const& c, tensor_view<T, 2> z,
                       Valid valid, Chosen const& chosen, tensor_view<DW, 2> dw,
                       tensor_view<D, 2> dz) {
    static_assert(routes_like<Chosen const>,
                  "expar: what experts choose is anything with tensors `ids` and `weights` of rank "
                  "2");
    static_assert(
        element<std::remove_cv_t<DW>> && element<D>,
        "expar: gradients are of an element type; specialize expar::element_traits for it");
    using A = accumulator_t<T>;
    auto const ids = detail::as_view<2>(ctx, chosen.ids);
    index_t const tokens = z.extents[0];
    detail::check_expert_choice("choose_tokens_backward", "choose_tokens_backward: logits", c, z);
    detail::check_slots("choose_tokens_backward: ids", c, ids);
    detail::check_slots("choose_tokens_backward: d_weights", c, dw);
    detail::check_output("choose_tokens_backward: d_logits", dz);
    detail::check_extent("choose_tokens_backward: d_logits", dz, 0, tokens, "the number of tokens");
    detail::check_extent("choose_tokens_backward: d_logits", dz, 1, c.experts,
                         "the number of experts");
    detail::check_tokens("choose_tokens_backward: ids", ids, tokens);
    bool const by_token = c.axis == expert_choice::softmax::over_tokens;
    detail::buffer<A> columns(ctx.memory()), gradients(ctx.memory());
    detail::buffer<index_t> takers(ctx.memory());
    columns.resize(tokens * c.experts);
    gradients.assign(static_cast<std::size_t>(tokens * c.experts), A(0));
    if (c.divide_by_experts) detail::count_takers(ids, tokens, takers);
    detail::scores_by_expert<A>(ctx, c, z, valid, columns.data(), [](index_t, A const*) {});
    ctx.for_each_chunk(c.experts, 4096 / (tokens + 1) + 1, [&](int, index_t first, index_t last) {
      for (index_t e = first; e < last; ++e) {
        A* const g = gradients.data() + e * tokens;
        for (index_t slot = 0; slot < c.capacity; ++slot)
          if (std::int32_t const t = ids.row(e)[slot]; t >= 0) {
            A const d = static_cast<A>(widen(dw.row(e)[slot]));
            g[t] += c.divide_by_experts ? d / static_cast<A>(takers[t]) : d;
          }
        if (by_token)
          softmax_score{}.vjp(static_cast<A const*>(nullptr), columns.data() + e * tokens,
                              static_cast<A const*>(g), g, static_cast<int>(tokens));
      }
    });
    detail::for_each_token_with<A>(
        ctx, tokens, c.experts, 2 * index_t{c.experts}, [&](index_t t, A* s) {
          A* const g = s + c.experts;
          for (int e = 0; e < c.experts; ++e) {
            s[e] = columns[e * tokens + t];
            g[e] = gradients[e * tokens + t];
          }
          if (!by_token)
            softmax_score{}.vjp(static_cast<A const*>(nullptr), static_cast<A const*>(s),
                                static_cast<A const*>(g), g, c.experts);
          detail::narrow_row(g, dz.row(t), c.experts);
        });
  }
};
/// The adjoint of choose_tokens(): overwrites d_logits [T, experts], given d_weights [experts,
/// capacity], the gradient for the gates; the last two arguments, after those of choose_tokens().
/// Of what was chosen only the ids are read, and taken as constants, and so is the number that
/// gates are divided by. d_logits is written after all else was read, and may share memory with it.
/// Throws where shapes do not fit, or if an id is not -1 .. T - 1; then d_logits is untouched. O(T
/// * experts) time and memory.
inline constexpr choose_tokens_backward_fn choose_tokens_backward{};

}  // namespace expar::inline v0
