// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <limits>

#include <expar/detail/arguments.hpp>
#include <expar/detail/arithmetic.hpp>
#include <expar/detail/expert_ids.hpp>
#include <expar/detail/select.hpp>
#include <expar/plan/detail/kept.hpp>
#include <expar/plan/drop_order.hpp>
#include <expar/plan/plan.hpp>
#include <expar/router/count_choices.hpp>  // as_counts

namespace expar::inline v0 {
namespace detail {

template <class Value>
struct contender {
  Value value;
  std::int32_t group, route;  // route: token * top_k + choice

  bool operator<(contender const& other) const {
    if (group != other.group) return group < other.group;
    if (value < other.value || value > other.value) return value > other.value;
    return route < other.route;
  }
};

}  // namespace detail

struct drop_to_capacity_fn {
  template <class Ids, class Order, class Kept, class Dropped>
  index_t operator()(host_context const& ctx, Ids const& ids, int experts, index_t capacity,
                     Order const& order, Kept&& kept, Dropped&& dropped) const {
    static_assert(drop_order<Order>,
                  "expar: the order in which routes are dropped is a drop_order: by_choice, "
                  "by_token, by_value, by_choice_and_score, or your own");
    detail::arguments a(ctx, "drop_to_capacity");
    auto const i = a.masked_ids("ids", ids);
    index_t const tokens = i.extents[0], k = i.extents[1];
    detail::expects(i.size() <= INT32_MAX, "drop_to_capacity: ids has ", tokens, " x ", k,
                    " routes; at most ", INT32_MAX, " are possible");
    if constexpr (requires { order.validate(a, tokens, k); }) order.validate(a, tokens, k);
    auto const out = detail::kept_ids(a, kept, experts, i);
    auto const lost =
        detail::as_counts(a.written_any_vector("dropped", dropped, {{experts, "experts"}}));
    using Count = detail::element_of<decltype(lost)>;
    detail::check_places("drop_to_capacity", experts, capacity);
    detail::check_expert_ids("drop_to_capacity: ids", i, experts, i.valid);
    route_plan plan(ctx.memory());
    if constexpr (!detail::is_only<Ids>) {
      plan.place(ctx, i, experts, route_plan::order::token_major);
    } else {
      detail::buffer<std::int32_t> buffer(ctx.memory());
      auto const valid_ids = make_view(buffer.resize(tokens * k), tokens, k);
      detail::copy_valid_ids(i, i.valid, valid_ids);
      plan.place(ctx, valid_ids, experts, route_plan::order::token_major);
    }
    plan.lay_out(ragged{});
    // All that may fail or reads what the caller has comes before the first write.
    using contender = detail::contender<std::remove_cvref_t<decltype(order.value(0, 0))>>;
    detail::buffer<contender> contenders(ctx.memory());
    bool const over = plan.needed_capacity() > capacity;
    if (over) part_first(ctx, plan, capacity, order, contenders);
    detail::copy_valid_ids(i, i.valid, out);
    auto const offsets = plan.offsets();
    for (int e = 0; e < experts; ++e) {
      index_t const begin = offsets[static_cast<std::size_t>(e)];
      index_t const end = offsets[static_cast<std::size_t>(e) + 1];
      lost(e) = static_cast<Count>(end - begin > capacity ? end - begin - capacity : 0);
      if (end - begin <= capacity) continue;
      for (index_t at = begin + capacity; at < end; ++at)
        out.row(contenders[at].route / k)[contenders[at].route % k] = -1;
    }
    out.store();
    return plan.needed_capacity();
  }

 private:
  /// The routes of each expert; where they are over capacity, those that it keeps come first.
  template <class Order, class Contender>
  static void part_first(host_context const& ctx, route_plan const& plan, index_t capacity,
                         Order const& order, detail::buffer<Contender>& contenders) {
    using Value = decltype(Contender::value);
    index_t const k = plan.top_k();
    Contender* const all = contenders.resize(plan.rows());
    plan_view const routes = plan.view();
    ctx.for_each_chunk(plan.tokens(), 16384 / k + 1, [&](int, index_t first, index_t last) {
      for (index_t t = first; t < last; ++t)
        for (index_t j = 0; j < k; ++j)
          if (index_t const row = routes.row(t, static_cast<int>(j)); row >= 0) {
            Value const value = order.value(t, j);
            bool const none = detail::is_nan(static_cast<double>(value));
            all[row] = {none ? -std::numeric_limits<Value>::infinity() : value,
                        static_cast<std::int32_t>(order.group(j)),
                        static_cast<std::int32_t>(t * k + j)};
          }
    });
    auto const offsets = plan.offsets();
    ctx.for_each_chunk(plan.experts(), 1, [&](int, index_t first, index_t last) {
      for (auto e = static_cast<std::size_t>(first); e < static_cast<std::size_t>(last); ++e)
        if (offsets[e + 1] - offsets[e] > capacity)
          detail::move_first_to_front(all + offsets[e], offsets[e + 1] - offsets[e], capacity,
                                      [](Contender const& a, Contender const& b) { return a < b; });
    });
  }
};
/// `drop_to_capacity(ctx, ids, experts, capacity, order, kept, dropped)` drops what exceeds the
/// capacity of an expert. Stands between route() and make_plan().
///   ids: [T,k] signed integers, -1 = no expert; stay as they are, so that route_backward() sees
///        what was selected. A repeated id is a route of its own. Or only(valid, ids): the other
///        tokens take no place and are not counted, whatever their ids are
///   capacity: how many routes an expert keeps, at least 0; see capacities
///   order: which routes it keeps: the first by a drop_order
///   kept: [T,k] signed integers, written: the ids, or -1 where dropped or not valid. It may be
///   ids,
///         and is otherwise apart from them; for reroute_dropped() it is apart
///   dropped: [experts] integers, written: how many routes each expert dropped
/// Returns the capacity that would have kept everything: the largest number of routes of an expert.
///
/// make_plan() on `kept` gives rows to these routes alone. Its layout then pads: ragged{m} each
/// expert to a multiple of m, fixed_capacity{.rows = capacity} each expert to the capacity. Rows
/// without a route are zero, where Megatron's pad_to_capacity has tokens of weight 0. A dropped
/// route has a gradient of 0 for its weight; weights that are to add up to 1 without the dropped
/// ones: renormalize_kept(). Where a system limits each group, sequence or batch row, call this on
/// the rows of each.
///
/// Memory: some 28 bytes per route from the context. Cost: a few passes over the routes, and a
/// partial sort of those of experts that are over capacity; never a full sort. Throws where shapes
/// do not fit, the capacity is negative, an id is not -1 .. experts - 1, or memory runs out; then
/// nothing is written.
inline constexpr drop_to_capacity_fn drop_to_capacity{};

}  // namespace expar::inline v0
