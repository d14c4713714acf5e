// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <memory_resource>

#include <expar/detail/arguments.hpp>
#include <expar/detail/expert_ids.hpp>
#include <expar/router/route.hpp>
#include <expar/router/routes.hpp>

namespace expar::inline v0 {

/// Routes of which every token has its own number. Those of token t are the entries from offsets[t]
/// up to offsets[t + 1] of `ids` and `weights`, in choice order. Empty until somebody writes them.
template <class W = float>
class variable_routes {
  static_assert(element<W>, "expar: the weights of routes are an element type; see element_traits");

 public:
  explicit variable_routes(std::pmr::memory_resource* memory = std::pmr::get_default_resource())
      : offset_buffer_(memory), id_buffer_(memory), weight_buffer_(memory) {}
  variable_routes(variable_routes&& other) noexcept
      : offsets(std::exchange(other.offsets, {})),
        ids(std::exchange(other.ids, {})),
        weights(std::exchange(other.weights, {})),
        offset_buffer_(std::move(other.offset_buffer_)),
        id_buffer_(std::move(other.id_buffer_)),
        weight_buffer_(std::move(other.weight_buffer_)) {}
  variable_routes& operator=(variable_routes&& other) noexcept {
    std::swap(offsets, other.offsets);
    std::swap(ids, other.ids);
    std::swap(weights, other.weights);
    std::swap(offset_buffer_, other.offset_buffer_);
    std::swap(id_buffer_, other.id_buffer_);
    std::swap(weight_buffer_, other.weight_buffer_);
    return *this;
  }

  /// Room for `count` routes of `tokens` tokens: no expert, weight 0, and all offsets 0. Allocates
  /// only to hold more than ever before.
  void resize(index_t tokens, index_t count) {
    detail::expects(tokens >= 0, "variable_routes: tokens is ", tokens, "; it is at least 0");
    detail::expects(count >= 0, "variable_routes: count is ", count, "; it is at least 0");
    offsets = {}, ids = {}, weights = {};
    index_t* const offset_data = offset_buffer_.assign(static_cast<std::size_t>(tokens) + 1, 0);
    std::int32_t* const id_data = id_buffer_.assign(static_cast<std::size_t>(count), -1);
    W* const weight_data = weight_buffer_.assign(static_cast<std::size_t>(count), narrow<W>(0));
    offsets = make_view(offset_data, tokens + 1);
    ids = make_view(id_data, count);
    weights = make_view(weight_data, count);
  }

  /// The largest number of routes that a token has: the k that to_fixed() needs.
  index_t most_per_token() const noexcept {
    index_t most = 0;
    for (index_t t = 0; t + 1 < offsets.extents[0]; ++t)
      if (offsets(t + 1) - offsets(t) > most) most = offsets(t + 1) - offsets(t);
    return most;
  }

  tensor_view<index_t, 1> offsets{};
  tensor_view<std::int32_t, 1> ids{};
  tensor_view<W, 1> weights{};

 private:
  detail::buffer<index_t> offset_buffer_;
  detail::buffer<std::int32_t> id_buffer_;
  detail::buffer<W> weight_buffer_;
};

/// What operations accept as variable routes: anything with tensors `offsets` [T + 1] of an integer
/// type of at least 32 bits, `ids` [routes] of a signed integer type, and `weights` [routes].
template <class R>
concept variable_routes_like = requires(std::remove_reference_t<R>& r) {
  requires tensor<decltype((r.offsets)), 1>;
  requires tensor<decltype((r.ids)), 1>;
  requires tensor<decltype((r.weights)), 1>;
};

namespace detail {

template <class Context, class Offsets>
auto read_offsets(arguments<Context>& a, Offsets const& offsets, rules fits = {}) {
  auto const v = a.read_any_vector("offsets", offsets, fits);
  static_assert(std::is_integral_v<element_of<decltype(v)>> && sizeof(v(0)) >= 4,
                "expar: offsets are integers of at least 32 bits");
  expects(v.extents[0] >= 1, a,
          ": offsets has no entries; there is one for each token, and one more");
  return v;
}

/// Throws unless the offsets ascend from 0 to the number of ids, of which none is below -1, and no
/// token has more than `most` of them.
template <class T>
void check_runs(char const* op, tensor_view<T, 1> const& offsets,
                tensor_view<std::int32_t const, 1> const& ids, index_t most = PTRDIFF_MAX) {
  expects(offsets(0) == 0, op, ": offsets(0) is ", offsets(0), "; the first offset is 0");
  index_t const tokens = offsets.extents[0] - 1;
  for (index_t t = 0; t < tokens; ++t)
    expects(offsets(t) <= offsets(t + 1), op, ": offsets(", t + 1, ") is ", offsets(t + 1),
            ", less than the offset before, ", offsets(t));
  expects(static_cast<index_t>(offsets(tokens)) == ids.extents[0], op, ": offsets(", tokens,
          ") is ", offsets(tokens), ", but there are ", ids.extents[0], " routes");
  for (index_t i = 0; i < ids.extents[0]; ++i)
    expects(ids(i) >= -1, op, ": variable ids(", i, ") is ", ids(i),
            "; an expert id is -1 (no expert) or at least 0");
  for (index_t t = 0; t < tokens; ++t)
    expects(static_cast<index_t>(offsets(t + 1) - offsets(t)) <= most, op, ": token ", t, " has ",
            offsets(t + 1) - offsets(t), " routes, but only ", most, " fit");
}

/// Rows [T,k] from runs of any length up to k; `fill` behind each.
template <class T, class From, class To>
void spread_runs(host_context const& ctx, tensor_view<T, 1> offsets,
                 tensor_view<From, 1> const& from, tensor_view<To, 2> to, To fill) {
  index_t const k = to.extents[1];
  ctx.for_each_chunk(to.extents[0], 16384 / (k + 1) + 1, [&](int, index_t first, index_t last) {
    for (index_t t = first; t < last; ++t) {
      To* const row = to.row(t);
      index_t const at = static_cast<index_t>(offsets(t));
      index_t const n = static_cast<index_t>(offsets(t + 1)) - at;
      for (index_t j = 0; j < n; ++j)
        if constexpr (std::is_same_v<std::remove_cv_t<From>, To>)
          row[j] = from(at + j);
        else
          row[j] = narrow<To>(static_cast<accumulator_t<To>>(widen(from(at + j))));
      for (index_t j = n; j < k; ++j) row[j] = fill;
    }
  });
}

}  // namespace detail

struct to_variable_fn {
  template <class Routes, class W>
  void operator()(host_context const& ctx, Routes const& routes, variable_routes<W>& out) const {
    static_assert(routes_like<Routes const>,
                  "expar: routes are anything with tensors `ids` and `weights` of rank 2");
    detail::arguments a(ctx, "to_variable");
    auto const ids = a.ids("ids", routes.ids);
    index_t const tokens = ids.extents[0], k = ids.extents[1], grain = 16384 / (k + 1) + 1;
    auto const weights =
        a.read("weights", routes.weights,
               {{tokens, "the number of tokens"}, {k, "the number of choices in ids"}});
    detail::check_expert_ids("to_variable: ids", ids, INT32_MAX);
    detail::buffer<index_t> starts(ctx.memory());
    starts.assign(static_cast<std::size_t>(tokens) + 1, 0);
    ctx.for_each_chunk(tokens, grain, [&](int, index_t first, index_t last) {
      for (index_t t = first; t < last; ++t)
        for (index_t j = 0; j < k; ++j) starts[t + 1] += ids.row(t)[j] >= 0;
    });
    for (index_t t = 0; t < tokens; ++t) starts[t + 1] += starts[t];
    out.resize(tokens, starts[tokens]);
    for (index_t t = 0; t <= tokens; ++t) out.offsets(t) = starts[t];
    ctx.for_each_chunk(tokens, grain, [&](int, index_t first, index_t last) {
      for (index_t t = first; t < last; ++t) {
        index_t at = starts[t];
        for (index_t j = 0; j < k; ++j)
          if (std::int32_t const id = ids.row(t)[j]; id >= 0) {
            out.ids(at) = id;
            out.weights(at++) = narrow<W>(static_cast<accumulator_t<W>>(widen(weights.row(t)[j])));
          }
      }
    });
  }
};
/// `to_variable(ctx, routes, out)` leaves out the choices that name no expert. The others keep
/// their order. `routes` has ids [T,k] and weights [T,k]; `out` is a variable_routes, overwritten.
/// Throws where shapes do not fit, or if an id is below -1.
inline constexpr to_variable_fn to_variable{};

struct to_fixed_fn {
  template <class Variable, class Routes>
  void operator()(host_context const& ctx, Variable const& variable, Routes&& routes) const {
    static_assert(variable_routes_like<Variable const>,
                  "expar: variable routes are anything with tensors `offsets`, `ids` and `weights` "
                  "of rank 1");
    static_assert(routes_like<Routes>,
                  "expar: routes are anything with tensors `ids` and `weights` of rank 2");
    detail::arguments a(ctx, "to_fixed");
    auto const offsets = detail::read_offsets(a, variable.offsets);
    auto const from_ids = a.ids_vector("variable ids", variable.ids);
    auto const from = a.read_vector("variable weights", variable.weights,
                                    {{from_ids.extents[0], "the number of routes"}});
    detail::rule const tokens{offsets.extents[0] - 1, "the number of tokens"};
    auto const ids = a.written_ids("ids", routes.ids, INT32_MAX, {tokens});
    index_t const k = ids.extents[1];
    auto const weights =
        a.written("weights", routes.weights, {tokens, {k, "the number of choices in ids"}});
    using W = detail::element_of<decltype(weights)>;
    detail::check_runs(a, offsets, from_ids, k);
    detail::spread_runs(ctx, offsets, from_ids, ids, std::int32_t{-1});
    detail::spread_runs(ctx, offsets, from, weights, narrow<W>(0));
    ids.store();
  }
};
/// `to_fixed(ctx, variable, routes)`: variable routes as routes of k choices, for make_plan() and
/// all that follows it. Writes ids [T,k] of at least 32 bits and weights [T,k], with -1 and 0
/// behind the routes of a token, apart from the memory of `variable`. Throws if a token has more
/// than k routes, or an id is below -1; then nothing is written.
inline constexpr to_fixed_fn to_fixed{};

struct route_variable_fn {
  template <class Router, class Logits, class W>
  void operator()(host_context const& ctx, Router const& r, Logits const& logits,
                  variable_routes<W>& out) const {
    routes<W> all(ctx.memory());
    resize(ctx, r, logits, all);
    route(ctx, r, logits, all);
    to_variable(ctx, all, out);
  }
  template <class Router, class Logits, class Bias, class W>
  void operator()(host_context const& ctx, Router const& r, Logits const& logits, Bias const& bias,
                  variable_routes<W>& out) const {
    routes<W> all(ctx.memory());
    resize(ctx, r, logits, all);
    route(ctx, r, logits, bias, all);
    to_variable(ctx, all, out);
  }

 private:
  template <class Router, class Logits, class W>
  static void resize(host_context const& ctx, Router const& r, Logits const& logits,
                     routes<W>& all) {
    detail::arguments a(ctx, "route_variable");
    auto const z = detail::read_logits(a, r, logits);
    all.resize(z.extents[0], r.top_k);
  }
};
/// `route_variable(ctx, router, logits, bias, out)` gives every token as many experts as the router
/// selects for it, as route(), whose bias may be left out. The
/// router's top_k is the most that a token may have, up to all experts; what it does not select
/// does not appear in `out`, a variable_routes.
///
///   ReMoE:        router({E, E}, relu_score{}, score_key{}, positive_keys{})
///   Dynamic_MoE:  router({E, E}, softmax_score{}, top_p{.4})
///
/// Memory: [T, top_k] ids and weights, from the context, while it runs. Throws as route() does.
inline constexpr route_variable_fn route_variable{};

struct route_variable_backward_fn {
  template <class Router, class Logits, class Variable, class DWeights, class DLogits>
  void operator()(host_context const& ctx, Router const& r, Logits const& logits,
                  Variable const& variable, DWeights const& d_weights, DLogits&& d_logits) const {
    static_assert(variable_routes_like<Variable const>,
                  "expar: variable routes are anything with tensors `offsets`, `ids` and `weights` "
                  "of rank 1");
    detail::arguments a(ctx, "route_variable_backward");
    auto const z = detail::read_logits(a, r, logits);
    index_t const tokens = z.extents[0];
    auto const offsets = detail::read_offsets(a, variable.offsets,
                                              {{tokens + 1, "the number of tokens and one more"}});
    auto const from_ids = a.ids_vector("variable ids", variable.ids);
    auto const dw =
        a.read_vector("d_weights", d_weights, {{from_ids.extents[0], "the number of routes"}});
    a.gradient("d_logits", d_logits,
               {{tokens, "the number of tokens"},
                {r.experts, "the router's number of experts"},
                detail::may_be("logits")});
    using W = detail::element_of<decltype(dw)>;
    detail::check_runs(a, offsets, from_ids, r.top_k);
    routes<W> all(tokens, r.top_k, ctx.memory());
    detail::spread_runs(ctx, offsets, from_ids, all.ids, std::int32_t{-1});
    detail::spread_runs(ctx, offsets, dw, all.weights, narrow<W>(0));
    route_backward(ctx, r, logits, all, all.weights, d_logits);
  }
};
/// `route_variable_backward(ctx, router, logits, variable, d_weights, d_logits)`, the adjoint: the
/// gradient d_logits [T, experts], given d_weights [routes], that for the weights. Of the routes
/// only offsets and ids are read; an id that is set to -1 on the way takes no part. Otherwise as
/// route_backward(). Memory: [T, top_k] ids and gradients, from the context.
inline constexpr route_variable_backward_fn route_variable_backward{};

}  // namespace expar::inline v0
