// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <type_traits>

#include <expar/context.hpp>
#include <expar/detail/expert_ids.hpp>
#include <expar/element.hpp>
#include <expar/error.hpp>
#include <expar/router/routes.hpp>
#include <expar/tensor.hpp>

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
    auto const ids = detail::as_view<2>(ctx, routes.ids);
    auto const w = detail::as_view<2>(ctx, routes.weights);
    auto const to_ids = detail::as_output<2>(ctx, out.ids);
    auto const to = detail::as_output<2>(ctx, out.weights);
    using A = accumulator_t<detail::element_of<decltype(w)>>;
    using W = detail::element_of<decltype(to)>;
    static_assert(std::is_same_v<detail::element_of<decltype(ids)>, std::int32_t> &&
                      std::is_same_v<detail::element_of<decltype(to_ids)>, std::int32_t>,
                  "expar: expert ids are std::int32_t");
    index_t const tokens = ids.extents[0], k = ids.extents[1], all = k + shared.count;
    detail::check_shared("append_shared", shared);
    detail::check_view("append_shared: ids", ids);
    detail::check_view("append_shared: weights", w);
    detail::check_extent("append_shared: weights", w, 0, tokens, "the number of tokens");
    detail::check_extent("append_shared: weights", w, 1, k, "the number of choices in ids");
    detail::check_output("append_shared: out ids", to_ids);
    detail::check_output("append_shared: out weights", to);
    detail::check_extent("append_shared: out ids", to_ids, 0, tokens, "the number of tokens");
    detail::check_extent("append_shared: out ids", to_ids, 1, all, "the number of all choices");
    detail::check_extent("append_shared: out weights", to, 0, tokens, "the number of tokens");
    detail::check_extent("append_shared: out weights", to, 1, all, "the number of all choices");
    detail::check_apart("append_shared: out ids", to_ids, "ids", ids);
    detail::check_apart("append_shared: out weights", to, "weights", w);
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
  }
};
/// Appends the shared experts to all tokens, those without a routed expert too:
/// `append_shared(ctx, shared, routes, out)`.
///   routes: ids [T,k], -1 or of a routed expert, and weights [T,k]
///   out: ids [T, k + count] and weights [T, k + count], overwritten; not the memory of `routes`
/// Sums are made in choice order, in float, or in double for weights of double. Throws where shapes
/// do not fit, or if an id is not -1 .. experts - 1; then nothing is written.
inline constexpr append_shared_fn append_shared{};

struct append_shared_backward_fn {
  template <class Ids, class DAll, class DWeights>
  void operator()(host_context const& ctx, shared_experts const& shared, Ids const& ids,
                  DAll const& d_all, DWeights&& d_weights) const {
    auto const id = detail::as_view<2>(ctx, ids);
    auto const from = detail::as_view<2>(ctx, d_all);
    auto const to = detail::as_output<2>(ctx, d_weights);
    using A = accumulator_t<detail::element_of<decltype(from)>>;
    using D = detail::element_of<decltype(to)>;
    index_t const tokens = to.extents[0], k = to.extents[1], all = k + shared.count;
    detail::check_shared("append_shared_backward", shared);
    detail::check_view("append_shared_backward: ids", id);
    detail::check_extent("append_shared_backward: ids", id, 0, tokens, "the number of tokens");
    detail::check_extent("append_shared_backward: ids", id, 1, k, "the number of choices");
    detail::check_view("append_shared_backward: d_all", from);
    detail::check_output("append_shared_backward: d_weights", to);
    detail::check_extent("append_shared_backward: d_all", from, 0, tokens, "the number of tokens");
    detail::check_extent("append_shared_backward: d_all", from, 1, all,
                         "the number of all choices");
    detail::check_apart("append_shared_backward: d_weights", to, "d_all", from);
    detail::check_apart("append_shared_backward: d_weights", to, "ids", id);
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
          to.row(t)[j] = narrow<D>(static_cast<accumulator_t<D>>(d));
        }
      }
    });
  }
};
/// The adjoint of append_shared(): overwrites d_weights [T,k], the gradient for the routed weights,
/// given the ids [T,k] of the routes and d_all [T, k + count], the gradient for all weights. It is
/// apart from both.
inline constexpr append_shared_backward_fn append_shared_backward{};

}  // namespace expar::inline v0
