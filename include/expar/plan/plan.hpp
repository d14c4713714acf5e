// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstring>
#include <span>

#include <expar/detail/arguments.hpp>
#include <expar/plan/layout.hpp>

namespace expar::inline v0 {

/// What a kernel sees of a plan, by value. A route is (token t, choice j); it stands at `location`
/// among the rows of its expert, or at -1 if it names no expert or was dropped.
struct plan_view {
  std::int32_t const* ids;
  std::int32_t const* locations;
  index_t const* offsets;
  index_t tokens;
  int top_k, experts;

  EXPAR_HD constexpr index_t row(index_t t, int j) const {
    index_t const at = t * top_k + j;
    return locations[at] < 0 ? -1 : offsets[ids[at]] + locations[at];
  }
};

/// Where every route of a batch goes: routes -> rows. Made by make_plan(); owns its arrays, and
/// building it again reuses them.
class route_plan {
 public:
  explicit route_plan(std::pmr::memory_resource* memory = std::pmr::get_default_resource())
      : ids_(memory),
        locations_(memory),
        counts_(memory),
        offsets_(memory),
        next_(memory),
        wrong_(memory) {}

  index_t tokens() const noexcept { return tokens_; }
  int top_k() const noexcept { return top_k_; }
  int experts() const noexcept { return experts_; }

  /// Rows of the layout, those that only fill included.
  index_t rows() const noexcept { return experts_ == 0 ? 0 : offsets_[experts_]; }
  /// The row of choice j of token t; -1: no expert, or dropped.
  index_t row(index_t t, int j) const {
    detail::expects(t >= 0 && t < tokens_ && j >= 0 && j < top_k_, "route_plan: route (", t, ", ",
                    j, ") is none of the ", tokens(), " x ", top_k(), " routes of the plan");
    return view().row(t, j);
  }
  /// The first row of each expert, and behind the last the number of rows: experts + 1 entries.
  std::span<index_t const> offsets() const noexcept { return {offsets_.data(), offsets_.size()}; }
  /// Routes that name each expert, dropped ones included.
  std::span<index_t const> counts() const noexcept { return {counts_.data(), counts_.size()}; }
  /// Routes of an expert that have a row.
  index_t kept(int expert) const {
    detail::expects(expert >= 0 && expert < experts_, "route_plan: expert is ", expert,
                    "; the plan has ", experts(), " experts");
    return capacity_ >= 0 && counts_[expert] > capacity_ ? capacity_ : counts_[expert];
  }

  /// Rows per expert of a fixed_capacity layout; -1 if the layout drops nothing.
  index_t capacity() const noexcept { return capacity_; }
  /// The capacity that would have kept every route: the largest count.
  index_t needed_capacity() const noexcept {
    index_t most = 0;
    for (index_t count : counts_) most = count > most ? count : most;
    return most;
  }
  index_t dropped() const {
    index_t n = 0;
    for (int e = 0; e < experts_; ++e) n += counts_[e] - kept(e);
    return n;
  }

  tensor_view<std::int32_t const, 2> ids() const noexcept {
    return make_view(ids_.data(), tokens_, index_t{top_k_});
  }
  /// The place of each route among the rows of its expert, or -1.
  tensor_view<std::int32_t const, 2> locations() const noexcept {
    return make_view(locations_.data(), tokens_, index_t{top_k_});
  }
  plan_view view() const noexcept {
    return {ids_.data(), locations_.data(), offsets_.data(), tokens_, top_k_, experts_};
  }

  /// The order in which routes take their places: by (token, choice), or by (choice, token).
  enum class order { token_major, choice_major };

  /// First half of make_plan(): counts and locations, before any drop. Throws and leaves an empty
  /// plan if an id is out of range. O(tokens * top_k + threads * experts).
  void place(host_context const& ctx, tensor_view<std::int32_t const, 2> ids, int experts,
             order by);
  /// Second half: where each expert begins. One of the two, after place(). Throws and leaves an
  /// empty plan if the experts have more rows than memory can hold.
  void lay_out(ragged layout);
  void lay_out(host_context const& ctx, index_t capacity);

 private:
  void clear(int experts) {
    tokens_ = 0, top_k_ = 0, experts_ = 0, capacity_ = -1;
    counts_.assign(static_cast<std::size_t>(experts), 0);
    offsets_.assign(static_cast<std::size_t>(experts) + 1, 0);
    experts_ = experts;
  }

  detail::cleared_by_move<index_t> tokens_;
  index_t capacity_ = -1;
  detail::cleared_by_move<int> top_k_, experts_;
  detail::buffer<std::int32_t> ids_, locations_;
  detail::buffer<index_t> counts_, offsets_;
  // Of place() alone, kept so that the next plan does not allocate.
  detail::buffer<std::int32_t> next_;
  detail::buffer<index_t> wrong_;
};

namespace detail {

/// Gives `count` routes, `step` apart, their places: `next` holds, per expert, the place that its
/// next route takes. Returns the number of the first whose id is not -1 .. experts - 1, or -1.
inline index_t place_routes(std::int32_t const* ids, index_t count, index_t step, int experts,
                            std::int32_t* next, std::int32_t* locations) {
  auto const most = static_cast<std::uint32_t>(experts);
  index_t wrong = -1;
  for (index_t at = 0, end = count * step; at < end; at += step) {
    std::int32_t const id = ids[at];
    if (static_cast<std::uint32_t>(id) < most) [[likely]] {
      locations[at] = next[id]++;
    } else {
      locations[at] = -1;
      if (id != -1 && wrong < 0) wrong = at;
    }
  }
  return wrong;
}

}  // namespace detail

// Routes that take their places before others are a group: all of them, or one group per choice.
// One thread places group after group with running counts. Several threads count their tokens
// first; the sums over earlier groups and threads are where each begins.
inline void route_plan::place(host_context const& ctx, tensor_view<std::int32_t const, 2> ids,
                              int experts, order by) {
  detail::expects(experts >= 1, "plan: experts is ", experts, "; at least 1 is needed");
  clear(experts);
  detail::expects(ids.extents[1] <= INT32_MAX && ids.size() <= INT32_MAX, "plan: ids has ",
                  ids.extents[0], " x ", ids.extents[1], " routes; at most ", INT32_MAX,
                  " are possible");
  index_t const tokens = ids.extents[0], k = ids.extents[1];
  std::int32_t* const id_out = ids_.resize(ids.size());
  std::int32_t* const location_out = locations_.resize(ids.size());
  if (ids.size() != 0) {
    index_t const grain = 65536 / k + 1, groups = by == order::choice_major ? k : 1;
    int const parts = ctx.chunks(tokens, grain);
    index_t const tables = parts == 1 ? 1 : groups * parts;
    std::int32_t* const next = next_.assign(static_cast<std::size_t>(tables * experts), 0);
    index_t* const wrong = wrong_.assign(static_cast<std::size_t>(parts), -1);
    auto const table = [&](index_t group, index_t part) {
      return next + (parts == 1 ? 0 : group * parts + part) * experts;
    };
    if (parts > 1) {
      ctx.for_each_chunk(tokens, grain, [&](int part, index_t first, index_t last) {
        for (index_t t = first; t < last; ++t)
          for (index_t j = 0; j < k; ++j)
            if (std::int32_t const id = ids.row(t)[j]; id >= 0 && id < experts)
              ++table(groups == 1 ? 0 : j, part)[id];
      });
      for (int e = 0; e < experts; ++e) {
        std::int32_t before = 0;
        for (index_t i = 0; i < tables; ++i) {
          std::int32_t& entry = next[i * experts + e];
          std::int32_t const count = entry;
          entry = before;
          before += count;
        }
      }
    }
    ctx.for_each_chunk(tokens, grain, [&](int part, index_t first, index_t last) {
      // Ids are copied apart from what needs them one after the other.
      index_t const begin = first * k, count = last - first;
      index_t const together = ids.strides[0] == k ? count : 1;
      for (index_t t = 0; t < count; t += together)
        std::memcpy(id_out + begin + t * k, ids.row(first + t),
                    static_cast<std::size_t>(together * k) * sizeof(std::int32_t));
      for (index_t group = 0; group < groups; ++group) {
        index_t const from = begin + group;
        index_t const at = detail::place_routes(id_out + from, count * k / groups, groups, experts,
                                                table(group, part), location_out + from);
        if (at >= 0 && (wrong[part] < 0 || from + at < wrong[part])) wrong[part] = from + at;
      }
    });
    for (index_t const at : wrong_)
      if (at >= 0)
        detail::fail("plan: ids(", at / k, ", ", at % k, ") is ", ids(at / k, at % k),
                     "; an expert id is -1 (no expert) or 0 to ", experts - 1);
    std::int32_t const* const totals = table(groups - 1, parts - 1);
    for (int e = 0; e < experts; ++e) counts_[e] = totals[e];
  }
  tokens_ = tokens, top_k_ = static_cast<int>(k);
}

// No sum overflows: routes, experts and the alignment are below 2^31 each.
inline void route_plan::lay_out(ragged layout) {
  detail::check_layout("plan", layout);
  detail::expects(experts_ >= 1, "plan: experts is ", experts(), "; place routes first");
  for (int e = 0; e < experts_; ++e)
    offsets_[e + 1] = offsets_[e] + detail::aligned(counts_[e], layout.alignment);
}

inline void route_plan::lay_out(host_context const& ctx, index_t capacity) {
  detail::expects(experts_ >= 1, "plan: experts is ", experts(), "; place routes first");
  try {
    detail::expects(capacity >= 0, "plan: capacity is ", capacity, "; it is at least 0");
    detail::check_rows_of_experts("plan", experts_, capacity);
  } catch (error const&) {
    clear(experts_);
    throw;
  }
  capacity_ = capacity;
  for (int e = 0; e <= experts_; ++e) offsets_[e] = e * capacity;
  if (needed_capacity() <= capacity) return;
  std::int32_t* const places = locations_.data();
  ctx.for_each_chunk(tokens_ * top_k_, 65536, [&](int, index_t first, index_t last) {
    for (index_t at = first; at < last; ++at)
      if (places[at] >= capacity) places[at] = -1;
  });
}

struct make_plan_fn {
  template <class Ids>
  void operator()(host_context const& ctx, Ids const& ids, int experts, ragged layout,
                  route_plan& out) const {
    detail::check_layout("plan", layout);
    detail::arguments a(ctx, "plan");
    out.place(ctx, a.ids("ids", ids), experts, route_plan::order::token_major);
    out.lay_out(layout);
  }
  template <class Ids>
  void operator()(host_context const& ctx, Ids const& ids, int experts, fixed_capacity layout,
                  route_plan& out) const {
    detail::check_layout("plan", layout);
    detail::arguments a(ctx, "plan");
    out.place(ctx, a.ids("ids", ids), experts, route_plan::order::choice_major);
    out.lay_out(ctx,
                capacity_of(layout, out.tokens(), experts, out.top_k(), out.needed_capacity()));
  }
  template <class Ids, class Layout = ragged>
  route_plan operator()(host_context const& ctx, Ids const& ids, int experts,
                        Layout layout = {}) const {
    route_plan out(ctx.memory());
    (*this)(ctx, ids, experts, layout, out);
    return out;
  }
};
/// `make_plan(ctx, ids, experts, layout)`, or with a route_plan to reuse as the last argument,
/// assigns a row to every route. ids: [T,k] signed integers, -1 = no expert; a repeated id is a
/// route of its own. A ragged layout orders the rows of an expert by (token, choice); a
/// fixed_capacity layout gives places in order of (choice, token) and drops by position. Throws if
/// an id is not -1 .. experts - 1. Cost: two passes over ids, never a sort.
inline constexpr make_plan_fn make_plan{};

}  // namespace expar::inline v0
