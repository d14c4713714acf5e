// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/detail/arguments.hpp>
#include <expar/detail/expert_ids.hpp>
#include <expar/plan/detail/kept.hpp>

namespace expar::inline v0 {

struct take_first_free_fn {
  template <class Ids, class Kept>
  index_t operator()(host_context const& ctx, Ids const& ids, int experts, index_t capacity,
                     Kept&& kept) const {
    detail::arguments a(ctx, "take_first_free");
    auto const i = a.masked_ids("ids", ids);
    index_t const tokens = i.extents[0], k = i.extents[1];
    auto const out = detail::kept_ids(a, kept, experts, i);
    detail::check_places("take_first_free", experts, capacity);
    detail::check_expert_ids("take_first_free: ids", i, experts, i.valid);
    detail::buffer<index_t> left(ctx.memory());
    detail::buffer<bool> seeks(ctx.memory());
    left.assign(static_cast<std::size_t>(experts), capacity);
    seeks.resize(tokens);
    index_t seeking = 0;
    for (index_t t = 0; t < tokens; ++t) {
      bool names_one = false;
      for (index_t j = 0; j < k; ++j) names_one = names_one || i.row(t)[j] >= 0;
      seeks[t] = names_one && i.valid(t);
      seeking += static_cast<index_t>(seeks[t]);
    }
    for (index_t j = 0; j < k; ++j)
      for (index_t t = 0; t < tokens; ++t) {
        std::int32_t const e = i.row(t)[j];
        bool const fits = seeks[t] && e >= 0 && left[e] > 0;
        out.row(t)[j] = fits ? e : -1;
        if (!fits) continue;
        --left[e];
        seeks[t] = false;
        --seeking;
      }
    out.store();
    return seeking;
  }
};
/// `take_first_free(ctx, ids, experts, capacity, kept)` gives each token ONE expert, the first of
/// its choices that has a place left. First choices of all tokens take their places, by ascending
/// token; then the second choices of the tokens that are left take theirs, and so on. "No token
/// left behind" of Mesh TensorFlow (transformer/moe.py, ntlb gating), where the weight of a route
/// is the score of the expert that it got.
///   ids: [T,k] signed integers, -1 = no expert, or only(valid, ids): the other tokens take no
///   place,
///        whatever their ids are
///   capacity: how many tokens an expert takes, at least 0
///   kept: [T,k] signed integers, written: in each row at most one of the ids, in its column, and
///   -1
///         elsewhere. It may be ids, and is otherwise apart from them
/// Returns how many valid tokens got no expert although they named one. O(T * k), on one thread.
/// Throws where shapes do not fit, or if an id is not -1 .. experts - 1; then kept is untouched.
inline constexpr take_first_free_fn take_first_free{};

struct reroute_dropped_fn {
  template <class Ids, class Uniform, class Kept>
  index_t operator()(host_context const& ctx, Ids const& ids, int experts, index_t capacity,
                     Uniform const& uniform, Kept&& kept) const {
    detail::arguments a(ctx, "reroute_dropped");
    auto const i = a.masked_ids("ids", ids);
    index_t const tokens = i.extents[0], k = i.extents[1];
    detail::rule const each_token{tokens, "the number of tokens"},
        each_choice{k, "the number of choices per token"};
    auto const numbers = a.read("uniform", uniform, {each_token, each_choice});
    auto out = a.written_ids("kept", kept, experts, {each_token, each_choice});
    out.load();
    detail::check_places("reroute_dropped", experts, capacity);
    detail::check_expert_ids("reroute_dropped: ids", i, experts, i.valid);
    detail::check_expert_ids("reroute_dropped: kept", out, experts, i.valid);
    auto const for_each_dropped = [&](auto&& f) {
      for (index_t t = 0; t < tokens; ++t)
        for (index_t j = 0; j < k; ++j)
          if (i.valid(t) && i.row(t)[j] >= 0 && out.row(t)[j] < 0)
            f(t, j, static_cast<double>(widen(numbers.row(t)[j])));
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
        if (std::int32_t const e = out.row(t)[j]; e >= 0 && i.valid(t) && left[e] > 0) --left[e];
    index_t places = 0;
    for (index_t const n : left) places += n;
    for_each_dropped([&](index_t t, index_t j, double u) {
      if (places == 0) return;
      auto place = static_cast<index_t>(u * static_cast<double>(places));
      std::int32_t e = 0;
      while (place >= left[e]) place -= left[e++];
      out.row(t)[j] = e;
      --left[e], --places, --dropped;
    });
    out.store();
    return dropped;
  }
};
/// `reroute_dropped(ctx, ids, experts, capacity, uniform, kept)` sends the routes that were dropped
/// to free places of any experts, by chance. By ascending
/// (token, choice), each dropped route draws one of the places that are still free, all equally
/// likely: the shuffled free places of Hunyuan (modeling_hunyuan.py, top1gating). Its weight there
/// is the score of its new expert: that of a router with given_ids{kept}.
///   ids: what drop_to_capacity() read, or only(valid, ids): the other tokens are not sent anywhere
///        and take no place, whatever their ids are
///   capacity: how many routes an expert keeps, at least 0. What is above 2^53 / experts counts as
///             that
///   uniform: [T,k] of any element type, random numbers of [0, 1). Those of dropped routes are read
///   kept: [T,k] signed integers, what drop_to_capacity() wrote: where it is -1 and ids is not, it
///         becomes the id of a free expert, as long as there is one. A token of several choices may
///         get an expert twice. It is apart from ids, which say what was dropped
/// Returns how many routes stay dropped. O(T * k + dropped * experts), on one thread. Throws where
/// shapes do not fit, or if an id or a number that is read is out of range; then kept is untouched.
inline constexpr reroute_dropped_fn reroute_dropped{};

}  // namespace expar::inline v0
