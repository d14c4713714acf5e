// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/detail/arguments.hpp>
#include <expar/detail/select.hpp>
#include <expar/router/per_token.hpp>
#include <expar/router/routes.hpp>
#include <expar/router/routes_of_tokens.hpp>  // check_tokens, count_takers
#include <expar/router/score.hpp>

EXPAR_IEEE_BEGIN
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
template <class A, class Logits, class Select>
void scores_by_expert(host_context const& ctx, expert_choice const& c, Logits const& z, A* columns,
                      Select&& select) {
  index_t const tokens = z.extents[0];
  bool const by_token = c.axis == expert_choice::softmax::over_tokens;
  for_each_token_with<A>(ctx, tokens, c.experts, 2 * index_t{c.experts}, [&](index_t t, A* row) {
    A* const s = row + c.experts;
    widen_row(z.row(t), row, c.experts);
    if (!by_token) softmax_score{}(static_cast<A const*>(row), s, c.experts);
    for (int e = 0; e < c.experts; ++e)
      columns[e * tokens + t] = !z.valid(t) || masked(row[e]) ? -infinity<A>
                                : by_token                    ? row[e]
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

/// The logits of those tokens that take part.
template <class Context, class Logits>
auto read_choice(arguments<Context>& a, expert_choice const& c, Logits const& logits) {
  expects(c.experts >= 1, a, ": experts is ", c.experts, "; it is at least 1");
  expects(c.capacity >= 1, a, ": capacity is ", c.capacity, "; it is at least 1");
  auto const z = a.masked("logits", logits, {any_extent, {c.experts, "the number of experts"}});
  expects(z.extents[0] <= INT32_MAX, a, ": logits has ", z.extents[0], " tokens; at most ",
          INT32_MAX, " are possible");
  return z;
}

}  // namespace detail

struct choose_tokens_fn {
  template <class Logits, class Chosen>
  void operator()(host_context const& ctx, expert_choice const& c, Logits const& logits,
                  Chosen&& chosen) const {
    static_assert(routes_like<Chosen>,
                  "expar: what experts choose is anything with tensors `ids` and `weights` of rank "
                  "2");
    detail::arguments a(ctx, "choose_tokens");
    auto const z = detail::read_choice(a, c, logits);
    detail::rule const experts{c.experts, "the number of experts"},
        capacity{c.capacity, "the capacity"};
    auto const ids = a.written_ids("ids", chosen.ids, z.extents[0], {experts, capacity});
    auto const weights = a.written("weights", chosen.weights, {experts, capacity});
    using A = accumulator_t<detail::element_of<decltype(z)>>;
    using W = detail::element_of<decltype(weights)>;
    index_t const tokens = z.extents[0];
    detail::buffer<A> columns(ctx.memory());
    detail::buffer<std::int32_t> order(ctx.memory());
    detail::buffer<index_t> takers(ctx.memory());
    columns.resize(tokens * c.experts);
    order.resize(tokens * c.experts);
    if (c.divide_by_experts) takers.reserve(static_cast<std::size_t>(tokens));
    detail::scores_by_expert<A>(ctx, c, z, columns.data(), [&](index_t e, A const* keys) {
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
    ids.store();
  }

 private:
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
    detail::move_first_to_front(order, n, taken, before);
    detail::sort(order, taken, before);
    for (index_t slot = 0; slot < capacity; ++slot) ids[slot] = slot < taken ? order[slot] : -1;
  }
};
/// `choose_tokens(ctx, choice, logits, chosen)` gives every expert its tokens.
///   logits: [T, experts], any element type, or only(valid, logits); tokens that are left out, and
///           what is NaN or -inf, are never taken
///   chosen: `ids` [experts, capacity] of any signed integer type, the tokens of each expert, and
///           `weights`, their gates; a routes<W>(experts, capacity) will do
/// The tokens of an expert are in descending order of score, equal ones by ascending id; a softmax
/// over tokens compares logits, which order alike. Where fewer can be taken there are ids of -1
/// with weight 0. Systems choose among the tokens of one group: call it once for each. Computes in
/// float, or in double for logits of double. O(T * experts) time and memory, and for each expert
/// O(T + capacity * log capacity). Logits, ids and weights are apart in memory. Throws where shapes
/// do not fit or memory runs out; then nothing is written.
inline constexpr choose_tokens_fn choose_tokens{};

struct choose_tokens_backward_fn {
  template <class Logits, class Chosen, class DWeights, class DLogits>
  void operator()(host_context const& ctx, expert_choice const& c, Logits const& logits,
                  Chosen const& chosen, DWeights const& d_weights, DLogits&& d_logits) const {
    static_assert(routes_like<Chosen const>,
                  "expar: what experts choose is anything with tensors `ids` and `weights` of rank "
                  "2");
    detail::arguments a(ctx, "choose_tokens_backward");
    auto const z = detail::read_choice(a, c, logits);
    index_t const tokens = z.extents[0];
    detail::rule const experts{c.experts, "the number of experts"},
        capacity{c.capacity, "the capacity"};
    auto const ids = a.ids("ids", chosen.ids, {experts, capacity});
    auto const dw = a.read("d_weights", d_weights, {experts, capacity});
    auto const dz =
        a.gradient("d_logits", d_logits,
                   {{tokens, "the number of tokens"}, experts, detail::may_be("logits")});
    using A = accumulator_t<detail::element_of<decltype(z)>>;
    detail::check_tokens("choose_tokens_backward: ids", ids, tokens);
    bool const by_token = c.axis == expert_choice::softmax::over_tokens;
    detail::buffer<A> columns(ctx.memory()), gradients(ctx.memory());
    detail::buffer<index_t> takers(ctx.memory());
    columns.resize(tokens * c.experts);
    gradients.assign(static_cast<std::size_t>(tokens * c.experts), A(0));
    if (c.divide_by_experts) detail::count_takers(ids, tokens, takers);
    detail::scores_by_expert<A>(ctx, c, z, columns.data(), [](index_t, A const*) {});
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
          dz.put_row(dz.row(t), g, c.experts);
        });
  }
};
/// `choose_tokens_backward(ctx, choice, logits, chosen, d_weights, d_logits)`, the adjoint: the
/// gradient d_logits [T, experts], given d_weights [experts, capacity], that for the gates. Of what
/// was chosen only the ids are read, and taken as constants, and so is the number that gates are
/// divided by. d_logits may be the logits, and is otherwise apart from what is read. Throws where
/// shapes do not fit, or if an id is not -1 .. T - 1; then d_logits is untouched. O(T * experts)
/// time and memory.
inline constexpr choose_tokens_backward_fn choose_tokens_backward{};

}  // namespace expar::inline v0
EXPAR_IEEE_END
