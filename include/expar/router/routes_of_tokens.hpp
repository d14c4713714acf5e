// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/detail/arguments.hpp>
#include <expar/router/routes.hpp>
#include <expar/router/variable_routes.hpp>

namespace expar::inline v0 {
namespace detail {

inline void check_tokens(char const* what, tensor_view<std::int32_t const, 2> const& ids,
                         index_t tokens) {
  for (index_t e = 0; e < ids.extents[0]; ++e)
    for (index_t c = 0; c < ids.extents[1]; ++c)
      expects(ids(e, c) >= -1 && ids(e, c) < tokens, what, "(", e, ", ", c, ") is ", ids(e, c),
              "; a token id is -1 (no token) or 0 to ", tokens - 1);
}

/// counts [T]: how many experts took each token.
inline void count_takers(tensor_view<std::int32_t const, 2> ids, index_t tokens,
                         buffer<index_t>& counts) {
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
    detail::expects(tokens >= 0, "routes_of_tokens: tokens is ", tokens, "; it is at least 0");
    detail::arguments a(ctx, "routes_of_tokens");
    auto const ids = a.ids("ids", chosen.ids);
    index_t const experts = ids.extents[0], capacity = ids.extents[1];
    auto const weights =
        a.read("weights", chosen.weights,
               {{experts, "the number of experts in ids"}, {capacity, "the capacity in ids"}});
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
/// `routes_of_tokens(ctx, chosen, tokens, out)`: what experts chose, token by token, for a plan.
/// `chosen` is what choose_tokens() wrote, `out` a variable_routes, overwritten; the experts of a
/// token are in ascending order. Then to_fixed() and make_plan(). Throws if an id is not
/// -1 .. tokens - 1.
inline constexpr routes_of_tokens_fn routes_of_tokens{};

struct gates_of_experts_fn {
  template <class Chosen, class Variable, class DWeights, class DGates>
  void operator()(host_context const& ctx, Chosen const& chosen, Variable const& variable,
                  DWeights const& d_weights, DGates&& d_gates) const {
    static_assert(routes_like<Chosen const>,
                  "expar: what experts choose is anything with tensors `ids` and `weights` of rank "
                  "2");
    static_assert(variable_routes_like<Variable const>,
                  "expar: variable routes are anything with tensors `offsets`, `ids` and `weights` "
                  "of rank 1");
    detail::arguments a(ctx, "gates_of_experts");
    auto const ids = a.ids("ids", chosen.ids);
    auto const offsets = detail::read_offsets(a, variable.offsets);
    auto const experts = a.ids_vector("variable ids", variable.ids);
    auto const dw =
        a.read_vector("d_weights", d_weights, {{experts.extents[0], "the number of routes"}});
    auto const dg = a.gradient("d_gates", d_gates,
                               {{ids.extents[0], "the number of experts in ids"},
                                {ids.extents[1], "the capacity in ids"}});
    index_t const tokens = offsets.extents[0] - 1;
    detail::check_runs(a, offsets, experts);
    detail::check_tokens("gates_of_experts: ids", ids, tokens);
    detail::buffer<index_t> next(ctx.memory());
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
      if (at < 0)
        dg.put_zeros(&dg(e, c), 1);
      else
        dg.put(dg(e, c), widen(dw(at)));
    });
  }
};
/// `gates_of_experts(ctx, chosen, variable, d_weights, d_gates)`, the adjoint of
/// routes_of_tokens(): d_gates [experts, capacity] is what d_weights [routes] has for the route of
/// each id, and 0 where the id is -1. `variable` is what routes_of_tokens() made of `chosen`.
/// d_gates is apart from what is read. Throws where shapes do not fit, or a choice has no route;
/// then d_gates is untouched.
inline constexpr gates_of_experts_fn gates_of_experts{};

}  // namespace expar::inline v0
