// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <type_traits>

#include <expar/context.hpp>
#include <expar/detail/buffer.hpp>
#include <expar/detail/in_place.hpp>
#include <expar/element.hpp>
#include <expar/error.hpp>
#include <expar/router/routes.hpp>
#include <expar/router/variable_routes.hpp>
#include <expar/tensor.hpp>

namespace expar::inline v0 {
namespace detail {

template <class Id>
void check_tokens(char const* what, tensor_view<Id, 2> const& ids, index_t tokens) {
  static_assert(std::is_same_v<std::remove_cv_t<Id>, std::int32_t>,
                "expar: token ids are std::int32_t");
  for (index_t e = 0; e < ids.extents[0]; ++e)
    for (index_t c = 0; c < ids.extents[1]; ++c)
      expects(ids(e, c) >= -1 && ids(e, c) < tokens, what, "(", e, ", ", c, ") is ", ids(e, c),
              "; a token id is -1 (no token) or 0 to ", tokens - 1);
}

/// counts [T]: how many experts took each token.
template <class Id>
void count_takers(tensor_view<Id, 2> ids, index_t tokens, buffer<index_t>& counts) {
  counts.assign(static_cast<std::size_t>(tokens), 0);
  for (index_t e = 0; e < ids.extents[0]; ++e)
    for (index_t c = 0; c < ids.extents[1]; ++c)
      if (ids(e, c) >= 0) ++counts[ids(e, c)];
}

}  // namespace detail

struct routes_of_tokens_fn {
  template <class Chosen, class W>
  void operator()(host_context const& ctx, Chosen const& chosen, index_t tokens,
                  variable_routes<W>& out) const {
    static_assert(routes_like<Chosen const>,
                  "expar: what experts choose is anything with tensors `ids` and `weights` of rank "
                  "2");
    auto const ids = detail::as_view<2>(ctx, chosen.ids);
    auto const weights = detail::as_view<2>(ctx, chosen.weights);
    index_t const experts = ids.extents[0], capacity = ids.extents[1];
    detail::expects(tokens >= 0, "routes_of_tokens: tokens is ", tokens, "; it is at least 0");
    detail::check_view("routes_of_tokens: ids", ids);
    detail::check_view("routes_of_tokens: weights", weights);
    detail::check_extent("routes_of_tokens: weights", weights, 0, experts,
                         "the number of experts in ids");
    detail::check_extent("routes_of_tokens: weights", weights, 1, capacity, "the capacity in ids");
    detail::check_tokens("routes_of_tokens: ids", ids, tokens);
    detail::buffer<index_t> next(ctx.memory());
    detail::count_takers(ids, tokens, next);
    index_t total = 0;
    for (index_t t = 0; t < tokens; ++t) {
      index_t const count = next[t];
      next[t] = total;
      total += count;
    }
    out.resize(tokens, total);
    for (index_t t = 0; t < tokens; ++t) out.offsets(t) = next[t];
    out.offsets(tokens) = total;
    for (index_t e = 0; e < experts; ++e)
      for (index_t c = 0; c < capacity; ++c)
        if (std::int32_t const t = ids(e, c); t >= 0) {
          index_t const at = next[t]++;
          out.ids(at) = static_cast<std::int32_t>(e);
          out.weights(at) = narrow<W>(static_cast<accumulator_t<W>>(widen(weights(e, c))));
        }
  }
};
/// What experts chose, token by token, for a plan: `routes_of_tokens(ctx, chosen, tokens, out)`.
/// `out` is a variable_routes, overwritten; the experts of a token are in ascending order. Then
/// to_fixed() and make_plan(). Throws if an id is not -1 .. tokens - 1.
inline constexpr routes_of_tokens_fn routes_of_tokens{};

struct gates_of_experts_fn {
  template <class Chosen, class Variable, class DWeights, class DGates>
  void operator()(host_context const& ctx, Chosen const& chosen, Variable const& variable,
                  DWeights const& d_weights, DGates&& d_gates) const {
    static_assert(variable_routes_like<Variable const>,
                  "expar: variable routes are anything with tensors `offsets`, `ids` and `weights` "
                  "of rank 1");
    auto const ids = detail::as_view<2>(ctx, chosen.ids);
    auto const offsets = detail::as_view<1>(ctx, variable.offsets);
    auto const experts = detail::as_view<1>(ctx, variable.ids);
    auto const dw = detail::as_view<1>(ctx, d_weights);
    auto const dg = detail::as_output<2>(ctx, d_gates);
    using D = detail::element_of<decltype(dg)>;
    detail::check_view("gates_of_experts: ids", ids);
    detail::check_variable("gates_of_experts: offsets", "gates_of_experts: variable ids", offsets,
                           experts);
    detail::check_tokens("gates_of_experts: ids", ids, offsets.extents[0] - 1);
    detail::check_view("gates_of_experts: d_weights", dw);
    detail::check_extent("gates_of_experts: d_weights", dw, 0, experts.extents[0],
                         "the number of routes");
    detail::check_output("gates_of_experts: d_gates", dg);
    detail::check_extent("gates_of_experts: d_gates", dg, 0, ids.extents[0],
                         "the number of experts in ids");
    detail::check_extent("gates_of_experts: d_gates", dg, 1, ids.extents[1], "the capacity in ids");
    detail::check_apart("gates_of_experts: d_gates", dg, "ids", ids);
    detail::check_apart("gates_of_experts: d_gates", dg, "d_weights", detail::as_row(dw));
    detail::buffer<index_t> next(ctx.memory());
    index_t const tokens = offsets.extents[0] - 1;
    next.resize(tokens);
    auto const each = [&](auto&& f) {
      for (index_t t = 0; t < tokens; ++t) next[t] = static_cast<index_t>(offsets(t));
      for (index_t e = 0; e < ids.extents[0]; ++e)
        for (index_t c = 0; c < ids.extents[1]; ++c)
          f(e, c, ids(e, c) < 0 ? index_t{-1} : next[ids(e, c)]++);
    };
    each([&](index_t e, index_t c, index_t at) {
      detail::expects(at < 0 || (at < static_cast<index_t>(offsets(ids(e, c) + 1)) &&
                                 experts(at) == static_cast<std::int32_t>(e)),
                      "gates_of_experts: token ", ids(e, c), " has no route to expert ", e,
                      ", which chose it");
    });
    each([&](index_t e, index_t c, index_t at) {
      dg(e, c) = at < 0 ? narrow<D>(0) : narrow<D>(static_cast<accumulator_t<D>>(widen(dw(at))));
    });
  }
};
/// The adjoint of routes_of_tokens(): `gates_of_experts(ctx, chosen, variable, d_weights, d_gates)`
/// writes to d_gates [experts, capacity] what d_weights [routes] has for the route of each id, and
/// 0 where the id is -1. `variable` is what routes_of_tokens() made of `chosen`. d_gates is apart
/// from the ids of `chosen` and from d_weights.
inline constexpr gates_of_experts_fn gates_of_experts{};

}  // namespace expar::inline v0
