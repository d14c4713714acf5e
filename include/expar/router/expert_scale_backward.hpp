// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include <expar/context.hpp>
#include <expar/detail/buffer.hpp>
#include <expar/element.hpp>
#include <expar/router/per_token.hpp>
#include <expar/router/route.hpp>
#include <expar/router/router.hpp>
#include <expar/tensor.hpp>

namespace expar::inline v0 {
namespace detail {

template <class Step>
inline constexpr bool is_expert_scale = false;
template <class T>
inline constexpr bool is_expert_scale<expert_scale<T>> = true;
template <class Router>
inline constexpr bool ends_in_expert_scale = false;
template <class... Steps>
inline constexpr bool ends_in_expert_scale<router<Steps...>> = (false, ..., is_expert_scale<Steps>);

/// The weight of each choice before the last weight policy.
template <class A, class Router>
void weights_before_last(Router const& r, A const* z, std::int32_t const* ids, A* scratch, A* w) {
  constexpr int last = Router::weight_count - 1;
  A *const x = scratch, *const s = x + r.experts;
  r.transform(z, x);
  r.score()(static_cast<A const*>(x), s, r.experts);
  for (int j = 0; j < r.top_k; ++j) w[j] = ids[j] < 0 ? A(0) : s[ids[j]];
  for_each_step<Router::order::weights_at, last>([&](auto const& step) { step(ids, w, r.top_k); },
                                                 r.steps);
}

}  // namespace detail

struct expert_scale_backward_fn {
  template <class Router, class Logits, class Routes, class DWeights, class DFactors>
  void operator()(host_context const& ctx, Router const& r, Logits const& logits,
                  Routes const& routes, DWeights const& d_weights, DFactors&& d_factors) const {
    static_assert(detail::ends_in_expert_scale<Router>,
                  "expar: the last policy of the router is expar::expert_scale");
    detail::arguments a(ctx, "expert_scale_backward");
    auto const z = detail::read_logits(a, r, logits);
    index_t const tokens = z.extents[0], experts = r.experts, k = r.top_k;
    detail::rule const each_token{tokens, "the number of tokens"}, each_choice{k, "top_k"};
    auto const ids = a.ids("ids", routes.ids, {each_token, each_choice});
    auto const dw = a.read("d_weights", d_weights, {each_token, each_choice});
    auto const df =
        a.gradient_vector("d_factors", d_factors, {{experts, "the router's number of experts"}});
    using A = accumulator_t<detail::element_of<decltype(z)>>;
    detail::check_expert_ids("expert_scale_backward: ids", ids, experts);
    constexpr index_t block = 256;
    index_t const blocks = (tokens + block - 1) / block, room = 3 * experts + k + 64;
    detail::buffer<double> sums(ctx.memory());
    detail::buffer<A> scratch(ctx.memory());
    sums.assign(static_cast<std::size_t>(blocks * experts), 0);
    scratch.resize(room * ctx.chunks(blocks, 1));
    ctx.for_each_chunk(blocks, 1, [&](int part, index_t first, index_t last) {
      A* const row = scratch.data() + part * room;
      A* const w = row + 3 * experts;
      for (index_t t = first * block; t < last * block && t < tokens; ++t) {
        double* const sum = sums.data() + t / block * experts;
        detail::widen_row(z.row(t), row, experts);
        detail::weights_before_last(detail::bind(r, t), static_cast<A const*>(row), ids.row(t),
                                    row + experts, w);
        for (index_t j = 0; j < k; ++j)
          if (std::int32_t const e = ids.row(t)[j]; e >= 0)
            sum[e] += static_cast<double>(widen(dw.row(t)[j])) * static_cast<double>(w[j]);
      }
    });
    for (index_t e = 0; e < experts; ++e) {
      double sum = 0;
      for (index_t b = 0; b < blocks; ++b) sum += sums[b * experts + e];
      df.put(df(e), sum);
    }
  }
};
/// `expert_scale_backward(ctx, router, logits, routes, d_weights, d_factors)`: the gradient for the
/// factors of a router whose last policy is expert_scale (Gemma 4). d_factors [experts] is the sum,
/// over the choices that name an expert, of d_weights times the weight before the factor. Arguments
/// as route_backward(), which gives the gradient for the logits. Summed in double, by blocks of
/// tokens of a fixed size. Throws where shapes do not fit or an id is not -1 .. experts - 1; then
/// d_factors is untouched. O(T * (experts + top_k)).
inline constexpr expert_scale_backward_fn expert_scale_backward{};

}  // namespace expar::inline v0
