// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <type_traits>

#include <expar/context.hpp>
#include <expar/detail/buffer.hpp>
#include <expar/plan/detail/kept.hpp>
#include <expar/plan/drop_order.hpp>
#include <expar/plan/plan.hpp>
#include <expar/router/count_choices.hpp>  // check_counts
#include <expar/router/token_loss.hpp>     // every_token, marks_of
#include <expar/tensor.hpp>

namespace expar {
inline namespace v0 {
namespace detail {

template <class Value>
struct contender {
  Value value;
  std::int32_t group, route;  // route: token * top_k + choice

  bool operator<(contender const& other) const {
    if (group != other.group) return group < other.group;
    if (value != other.value) return value > other.value;
    return route < other.route;
  }
};

}  // namespace detail

/// Drops what exceeds the capacity of an expert: `drop_to_capacity(ctx, ids, capacity, order, kept,
/// dropped)`, or with `valid` after the order. Stands between route() and make_plan().
///   ids: [T,k] std::int32_t, -1 = no expert; stay as they are, so that route_backward() sees what
///        was selected. A repeated id is a route of its own
///   capacity: how many routes an expert keeps, at least 0; see capacities
///   order: which routes it keeps: the first by a drop_order
///   valid: [T] of bool or std::uint8_t; tokens whose mark is 0 take no place and are not counted
///   kept: [T,k] std::int32_t, written: the ids, or -1 where dropped or not valid; may be ids
///   dropped: [experts] integers, written: how many routes each expert dropped
/// Returns the capacity that would have kept everything: the largest number of routes of an expert.
///
/// make_plan() on `kept` gives rows to these routes alone. Its layout then pads: ragged{m} each
/// expert to a multiple of m, fixed_capacity{0, capacity} each expert to the capacity (as long as
/// one route is kept). Rows without a route are zero, where Megatron's pad_to_capacity has tokens
/// of weight 0. A dropped route has a gradient of 0 for its weight; weights that are to add up to 1
/// without the dropped ones: renormalize_kept(). Where a system limits each group, sequence or batch row,
/// call this on the rows of each.
///
/// Memory: some 24 bytes per route from the context. Cost: a few passes over the routes, and a
/// partial sort of those of experts that are over capacity; never a full sort. Throws where shapes
/// do not fit, the capacity is negative, or an id is not -1 .. experts - 1; then nothing is
/// written.
inline constexpr struct drop_to_capacity_fn {
  template <class Ids, class Order, class Kept, class Dropped>
  index_t operator()(host_context const& ctx, Ids const& ids, index_t capacity, Order const& order,
                     Kept&& kept, Dropped&& dropped) const {
    return drop(ctx, detail::as_view<2>(ctx, ids), capacity, order, detail::every_token{},
                detail::as_output<2>(ctx, kept), detail::as_output<1>(ctx, dropped));
  }
  template <class Ids, class Order, class Valid, class Kept, class Dropped>
  index_t operator()(host_context const& ctx, Ids const& ids, index_t capacity, Order const& order,
                     Valid const& valid, Kept&& kept, Dropped&& dropped) const {
    auto const i = detail::as_view<2>(ctx, ids);
    return drop(ctx, i, capacity, order,
                detail::marks_of("drop_to_capacity: valid", ctx, valid, i.extents[0]),
                detail::as_output<2>(ctx, kept), detail::as_output<1>(ctx, dropped));
  }

 private:
  template <class Id, class Order, class Valid, class Kept, class Count>
  static index_t drop(host_context const& ctx, tensor_view<Id, 2> ids, index_t capacity,
                      Order const& order, Valid valid, tensor_view<Kept, 2> kept,
                      tensor_view<Count, 1> dropped) {
    static_assert(drop_order<Order>,
                  "expar: the order in which routes are dropped is a drop_order: by_choice, "
                  "by_token, by_value, by_choice_and_score, or your own");
    detail::check_kept("drop_to_capacity: ids", ids, "drop_to_capacity: kept", kept);
    detail::check_counts("drop_to_capacity: dropped", dropped);
    index_t const tokens = ids.extents[0], k = ids.extents[1], experts = dropped.extents[0];
    detail::expects(experts >= 1 && experts <= INT32_MAX, "drop_to_capacity: dropped has ", experts,
                    " entries, one per expert; at least 1 is needed");
    detail::expects(capacity >= 0, "drop_to_capacity: capacity is ", capacity,
                    "; it is at least 0");
    detail::expects(ids.size() <= INT32_MAX, "drop_to_capacity: ids has ", tokens, " x ", k,
                    " routes; at most ", INT32_MAX, " are possible");
    if constexpr (requires { order.check("drop_to_capacity", tokens, k); })
      order.check("drop_to_capacity", tokens, k);
    detail::check_expert_ids("drop_to_capacity: ids", ids, experts);
    route_plan plan(ctx.memory());
    detail::copy_valid_ids(ids, valid, kept);
    plan.place(ctx, kept, static_cast<int>(experts), route_plan::order::token_major);
    plan.lay_out(ragged{});
    for (index_t e = 0; e < experts; ++e) {
      index_t const over = plan.counts()[static_cast<std::size_t>(e)] - capacity;
      dropped.data[e] = static_cast<Count>(over > 0 ? over : 0);
    }
    if (plan.needed_capacity() > capacity) drop_last(ctx, plan, capacity, order, kept);
    return plan.needed_capacity();
  }

  template <class Order>
  static void drop_last(host_context const& ctx, route_plan const& plan, index_t capacity,
                        Order const& order, tensor_view<std::int32_t, 2> kept) {
    using Value = std::remove_cvref_t<decltype(order.value(0, 0))>;
    using contender = detail::contender<Value>;
    index_t const k = kept.extents[1];
    detail::buffer<contender> contenders(ctx.memory());
    contender* const all = contenders.resize(plan.rows());
    ctx.for_each_chunk(kept.extents[0], 16384 / k + 1, [&](int, index_t first, index_t last) {
      for (index_t t = first; t < last; ++t)
        for (index_t j = 0; j < k; ++j)
          if (index_t const row = plan.row(t, static_cast<int>(j)); row >= 0) {
            Value const value = order.value(t, j);
            all[row] = {value == value ? value : -std::numeric_limits<Value>::infinity(),
                        static_cast<std::int32_t>(order.group(j)),
                        static_cast<std::int32_t>(t * k + j)};
          }
    });
    auto const offsets = plan.offsets();
    ctx.for_each_chunk(plan.experts(), 1, [&](int, index_t first, index_t last) {
      for (auto e = static_cast<std::size_t>(first); e < static_cast<std::size_t>(last); ++e) {
        contender* const begin = all + offsets[e];
        contender* const end = all + offsets[e + 1];
        if (end - begin <= capacity) continue;
        std::nth_element(begin, begin + capacity, end);
        for (contender* c = begin + capacity; c < end; ++c)
          kept.row(c->route / k)[c->route % k] = -1;
      }
    });
  }
} drop_to_capacity{};

}  // namespace v0
}  // namespace expar
