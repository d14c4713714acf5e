// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <type_traits>

#include <expar/context.hpp>
#include <expar/detail/buffer.hpp>
#include <expar/detail/in_place.hpp>
#include <expar/element.hpp>
#include <expar/plan/detail/kept.hpp>
#include <expar/router/token_loss.hpp>  // every_token, marks_of
#include <expar/tensor.hpp>

namespace expar::inline v0 {
struct take_first_free_fn {
  template <class Ids, class Kept>
  index_t operator()(host_context const& ctx, Ids const& ids, int experts, index_t capacity,
                     Kept&& kept) const {
    return take(ctx, detail::as_view<2>(ctx, ids), experts, capacity, detail::every_token{},
                detail::as_output<2>(ctx, kept));
  }
  template <class Ids, class Valid, class Kept>
  index_t operator()(host_context const& ctx, Ids const& ids, int experts, index_t capacity,
                     Valid const& valid, Kept&& kept) const {
    auto const i = detail::as_view<2>(ctx, ids);
    return take(ctx, i, experts, capacity,
                detail::marks_of("take_first_free: valid", ctx, valid, i.extents[0]),
                detail::as_output<2>(ctx, kept));
  }

 private:
  template <class Id, class Valid, class Kept>
  static index_t take(host_context const& ctx, tensor_view<Id, 2> ids, int experts,
                      index_t capacity, Valid valid, tensor_view<Kept, 2> kept) {
    detail::check_kept("take_first_free: ids", ids, "take_first_free: kept", kept);
    detail::check_in_place("take_first_free: kept", kept, "ids", ids);
    detail::check_places("take_first_free", experts, capacity);
    detail::check_expert_ids("take_first_free: ids", ids, experts, valid);
    index_t const tokens = ids.extents[0], k = ids.extents[1];
    detail::buffer<index_t> left(ctx.memory());
    detail::buffer<bool> seeks(ctx.memory());
    left.assign(static_cast<std::size_t>(experts), capacity);
    seeks.resize(tokens);
    index_t seeking = 0;
    for (index_t t = 0; t < tokens; ++t) {
      bool names_one = false;
      for (index_t j = 0; j < k; ++j) names_one = names_one || ids.row(t)[j] >= 0;
      seeks[t] = names_one && valid(t);
      seeking += static_cast<index_t>(seeks[t]);
    }
    for (index_t j = 0; j < k; ++j)
      for (index_t t = 0; t < tokens; ++t) {
        std::int32_t const e = ids.row(t)[j];
        bool const fits = seeks[t] && e >= 0 && left[e] > 0;
        kept.row(t)[j] = fits ? e : -1;
        if (!fits) continue;
        --left[e];
        seeks[t] = false;
        --seeking;
      }
    return seeking;
  }
};
/// Gives each token ONE expert, the first of its choices that has a place left:
/// `take_first_free(ctx, ids, experts, capacity, kept)`, or with `valid` after the capacity. First
/// choices of all tokens take their places, by ascending token; then the second choices of the
/// tokens that are left take theirs, and so on. "No token left behind" of Mesh TensorFlow
/// (transformer/moe.py, ntlb gating), where the weight of a route is the score of the expert that
/// it got.
///   ids: [T,k] std::int32_t, -1 = no expert
///   capacity: how many tokens an expert takes, at least 0
///   valid: [T] of bool or std::uint8_t; tokens whose mark is 0 take no place, whatever their ids
///          are
///   kept: [T,k] std::int32_t, written: in each row at most one of the ids, in its column, and -1
///         elsewhere. It may be ids, and is otherwise apart from them
/// Returns how many valid tokens got no expert although they named one. O(T * k), on one thread.
/// Throws where shapes do not fit, or if an id is not -1 .. experts - 1; then kept is untouched.
inline constexpr take_first_free_fn take_first_free{};

struct reroute_dropped_fn {
  template <class Ids, class Uniform, class Kept>
  index_t operator()(host_context const& ctx, Ids const& ids, int experts, index_t capacity,
                     Uniform const& uniform, Kept&& kept) const {
    return reroute(ctx, detail::as_view<2>(ctx, ids), experts, capacity, detail::every_token{},
                   detail::as_view<2>(ctx, uniform), detail::as_output<2>(ctx, kept));
  }
  template <class Ids, class Valid, class Uniform, class Kept>
  index_t operator()(host_context const& ctx, Ids const& ids, int experts, index_t capacity,
                     Valid const& valid, Uniform const& uniform, Kept&& kept) const {
    auto const i = detail::as_view<2>(ctx, ids);
    return reroute(ctx, i, experts, capacity,
                   detail::marks_of("reroute_dropped: valid", ctx, valid, i.extents[0]),
                   detail::as_view<2>(ctx, uniform), detail::as_output<2>(ctx, kept));
  }

 private:
  template <class Id, class Valid, class U, class Kept>
  static index_t reroute(host_context const& ctx, tensor_view<Id, 2> ids, int experts,
                         index_t capacity, Valid valid, tensor_view<U, 2> uniform,
                         tensor_view<Kept, 2> kept) {
    static_assert(element<std::remove_cv_t<U>>,
                  "expar: random numbers are of an element type; specialize expar::element_traits "
                  "for it");
    detail::check_kept("reroute_dropped: ids", ids, "reroute_dropped: kept", kept);
    index_t const tokens = ids.extents[0], k = ids.extents[1];
    detail::check_view("reroute_dropped: uniform", uniform);
    detail::check_extent("reroute_dropped: uniform", uniform, 0, tokens, "the number of tokens");
    detail::check_extent("reroute_dropped: uniform", uniform, 1, k,
                         "the number of choices per token");
    detail::check_places("reroute_dropped", experts, capacity);
    detail::check_apart("reroute_dropped: kept", kept, "ids", ids);
    detail::check_apart("reroute_dropped: kept", kept, "uniform", uniform);
    detail::check_expert_ids("reroute_dropped: ids", ids, experts, valid);
    detail::check_expert_ids("reroute_dropped: kept", kept, experts, valid);
    auto const for_each_dropped = [&](auto&& f) {
      for (index_t t = 0; t < tokens; ++t)
        for (index_t j = 0; j < k; ++j)
          if (valid(t) && ids.row(t)[j] >= 0 && kept.row(t)[j] < 0)
            f(t, j, static_cast<double>(widen(uniform.row(t)[j])));
    };
    index_t dropped = 0;
    for_each_dropped([&](index_t t, index_t j, double u) {
      detail::expects(u >= 0 && u < 1, "reroute_dropped: uniform(", t, ", ", j, ") is ", u,
                      "; it is at least 0 and less than 1");
      ++dropped;
    });
    detail::buffer<index_t> left(ctx.memory());
    // A double counts all places, and no product with a number below 1 is rounded up to them.
    index_t const most = (index_t{1} << 53) / experts;
    left.assign(static_cast<std::size_t>(experts), capacity < most ? capacity : most);
    for (index_t t = 0; t < tokens; ++t)
      for (index_t j = 0; j < k; ++j)
        if (std::int32_t const e = kept.row(t)[j]; e >= 0 && valid(t) && left[e] > 0) --left[e];
    index_t places = 0;
    for (index_t const n : left) places += n;
    for_each_dropped([&](index_t t, index_t j, double u) {
      if (places == 0) return;
      auto place = static_cast<index_t>(u * static_cast<double>(places));
      std::int32_t e = 0;
      while (place >= left[e]) place -= left[e++];
      kept.row(t)[j] = e;
      --left[e], --places, --dropped;
    });
    return dropped;
  }
};
/// Sends the routes that were dropped to free places of any experts, by chance: `reroute_dropped(
/// ctx, ids, experts, capacity, uniform, kept)`, or with `valid` after the capacity. By ascending
/// (token, choice), each dropped route draws one of the places that are still free, all equally
/// likely: the shuffled free places of Hunyuan (modeling_hunyuan.py, top1gating). Its weight there
/// is the score of its new expert: that of a router with given_ids{kept}.
///   ids: [T,k] std::int32_t, what drop_to_capacity() read
///   capacity: how many routes an expert keeps, at least 0. What is above 2^53 / experts counts as
///             that
///   valid: [T] of bool or std::uint8_t; tokens whose mark is 0 are not sent anywhere and take no
///          place, whatever their ids are
///   uniform: [T,k] of any element type, random numbers of [0, 1). Those of dropped routes are read
///   kept: [T,k] std::int32_t, what drop_to_capacity() wrote: where it is -1 and ids is not, it
///         becomes the id of a free expert, as long as there is one. A token of several choices may
///         get an expert twice. It is apart from ids, which say what was dropped
/// Returns how many routes stay dropped. O(T * k + dropped * experts), on one thread. Throws where
/// shapes do not fit, or if an id or a number that is read is out of range; then kept is untouched.
inline constexpr reroute_dropped_fn reroute_dropped{};

}  // namespace expar::inline v0
