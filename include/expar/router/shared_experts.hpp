// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/detail/arguments.hpp>
#include <expar/detail/expert_ids.hpp>
#include <expar/router/routes.hpp>

namespace expar::inline v0 {

/// Experts that every token takes, as choices behind those of the router: `count` of them, whose
/// ids follow those of the `experts` routed ones.
struct shared_experts {
  /// Their weight, divided by `scale`, which multiplies the output later: 1, or the sum of the
  /// token's routed weights, without those of ids of -1 (sglang, topk.py). FlashInfer, where the
  /// routed weights are final, has 1 and no scale (routing_deepseek.cu).
  enum class weight { one, sum_over_scale };

  int experts;
  int count;
  weight kind = weight::one;
  double scale = 1;
};

namespace detail {

inline void check_shared(char const* what, shared_experts const& s) {
  expects(s.experts >= 1, what, ": experts is ", s.experts, "; it is at least 1");
  expects(s.count >= 0 && s.count <= INT32_MAX - s.experts, what, ": count is ", s.count,
          "; it is at least 0, and the last id a 32-bit number");
  expects(s.scale < 0 || s.scale > 0, what, ": scale is ", s.scale, "; weights are divided by it");
}

}  // namespace detail

struct append_shared_fn {
  template <class Routes, class Out>
  void operator()(host_context const& ctx, shared_experts const& shared, Routes const& routes,
                  Out&& out) const {
    static_assert(routes_like<Routes const> && routes_like<Out>,
                  "expar: routes are anything with tensors `ids` and `weights` of rank 2");
    detail::check_shared("append_shared", shared);
    detail::arguments a(ctx, "append_shared");
    auto const ids = a.ids("ids", routes.ids);
    index_t const tokens = ids.extents[0], k = ids.extents[1], all = k + shared.count;
    detail::rule const each_token{tokens, "the number of tokens"},
        each_choice{all, "the number of all choices"};
    auto const w =
        a.read("weights", routes.weights, {each_token, {k, "the number of choices in ids"}});
    auto const to_ids = a.written_ids("out ids", out.ids, index_t{shared.experts} + shared.count,
                                      {each_token, each_choice});
    auto const to = a.written("out weights", out.weights, {each_token, each_choice});
    using A = accumulator_t<detail::element_of<decltype(w)>>;
    using W = detail::element_of<decltype(to)>;
    detail::check_expert_ids("append_shared: ids", ids, shared.experts);
    ctx.for_each_chunk(tokens, 16384 / (all + 1) + 1, [&](int, index_t first, index_t last) {
      for (index_t t = first; t < last; ++t) {
        A sum = 0;
        for (index_t j = 0; j < k; ++j) {
          A const x = static_cast<A>(widen(w.row(t)[j]));
          if (ids.row(t)[j] >= 0) sum += x;
          to_ids.row(t)[j] = ids.row(t)[j];
          to.row(t)[j] = narrow<W>(static_cast<accumulator_t<W>>(x));
        }
        A const weight = (shared.kind == shared_experts::weight::one ? A(1) : sum) /
                         static_cast<A>(shared.scale);
        for (int i = 0; i < shared.count; ++i) {
          to_ids.row(t)[k + i] = shared.experts + i;
          to.row(t)[k + i] = narrow<W>(static_cast<accumulator_t<W>>(weight));
        }
      }
    });
    to_ids.store();
  }
};
/// `append_shared(ctx, shared, routes, out)` appends the shared experts to all tokens, those
/// without a routed expert too.
///   routes: ids [T,k] of any signed integer type, -1 or of a routed expert, and weights [T,k]
///   out: ids [T, k + count] and weights [T, k + count], overwritten; apart from `routes`
/// Sums are made in choice order, in float, or in double for weights of double. Throws where shapes
/// do not fit, or if an id is not -1 .. experts - 1; then nothing is written.
inline constexpr append_shared_fn append_shared{};

struct append_shared_backward_fn {
  template <class Ids, class DAll, class DWeights>
  void operator()(host_context const& ctx, shared_experts const& shared, Ids const& ids,
                  DAll const& d_all, DWeights&& d_weights) const {
    detail::check_shared("append_shared_backward", shared);
    detail::arguments a(ctx, "append_shared_backward");
    auto const id = a.ids("ids", ids);
    index_t const tokens = id.extents[0], k = id.extents[1], all = k + shared.count;
    detail::rule const each_token{tokens, "the number of tokens"};
    auto const from = a.read("d_all", d_all, {each_token, {all, "the number of all choices"}});
    auto const to =
        a.gradient("d_weights", d_weights, {each_token, {k, "the number of choices in ids"}});
    using A = accumulator_t<detail::element_of<decltype(from)>>;
    detail::check_expert_ids("append_shared_backward: ids", id, shared.experts);
    ctx.for_each_chunk(tokens, 16384 / (all + 1) + 1, [&](int, index_t first, index_t last) {
      for (index_t t = first; t < last; ++t) {
        A sum = 0;
        if (shared.kind == shared_experts::weight::sum_over_scale) {
          for (index_t i = k; i < all; ++i) sum += static_cast<A>(widen(from.row(t)[i]));
          sum /= static_cast<A>(shared.scale);
        }
        for (index_t j = 0; j < k; ++j) {
          A d = static_cast<A>(widen(from.row(t)[j]));
          if (id.row(t)[j] >= 0) d += sum;
          to.put(to.row(t)[j], d);
        }
      }
    });
  }
};
/// `append_shared_backward(ctx, shared, ids, d_all, d_weights)`, the adjoint: the gradient
/// d_weights [T,k] for the routed weights, given the ids [T,k] of the routes and d_all [T, k +
/// count], the gradient for all weights. It is apart from both.
inline constexpr append_shared_backward_fn append_shared_backward{};

}  // namespace expar::inline v0
