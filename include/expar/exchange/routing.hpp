// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/balance/quotas.hpp>
#include <expar/exchange/batch_state.hpp>
#include <expar/exchange/detail/arguments.hpp>
#include <expar/exchange/meeting.hpp>

namespace expar::inline v0::detail {

/// From the routes of this rank's tokens to the seats of all ranks' rows, by a layout and a
/// placement: what ranks tell each other before rows travel.
template <class Layout>
class routing {
  static constexpr bool has_capacity = std::is_same_v<Layout, fixed_capacity>;
  static constexpr bool has_budget = std::is_same_v<Layout, row_budget>;
  // What a rank tells: tokens, three element types, and its routes for each expert.
  static constexpr index_t head = 4;

 public:
  routing(expert_shape const& shape, Layout layout, std::pmr::memory_resource* memory)
      : shape_(shape), layout_(layout), seating_(memory), quotas_(memory) {}

  expar::placement const& placement() const { return place_; }
  /// Numbers of its own that a meeting needs.
  index_t numbers() const { return head + shape_.experts; }
  /// Memory for a placement, and the placement once all ranks have that.
  void reserve(expar::placement const& p) {
    seating_.reserve(p, has_capacity);
    quotas_.resize(index_t{p.slot_count()});
  }
  void place(expar::placement const& p) { place_ = p; }

  /// Collective. Prepares `b`, and keeps the weight of each route to a slot in `weights`; `types`
  /// of rows, weights and y; `checks` what else may fail on one rank. Returns what ranks told when
  /// they met last.
  template <class X, class Routes, class W, class Quotas, class Checks>
  told seat(host_context const& ctx, X& x, std::uint64_t object, Routes const& routes,
            Quotas const& quotas, batch_state& b, buffer<W>& weights,
            std::uint64_t const (&types)[3], Checks checks) {
    constexpr bool asks_quotas = !std::is_same_v<Quotas, take_turns>;
    intention mine{asks_quotas ? step::quotas : step::prepare, 0, object};
    // Over a chain ranks also tell how many rows pass: at once, if this rank knows what it sends.
    index_t parcels = 0;
    constexpr bool has_hops = X::has_hops;
    if constexpr (has_hops) parcels = x.parcel_numbers();
    constexpr bool at_once = !asks_quotas && !has_capacity;
    bool const known = at_once && !rule(x).drops;
    b.forget();
    told met = meet(
        ctx, x, mine, &b, numbers() + (known ? parcels : 0),
        [&] {
          arguments a(ctx, "dispatch");
          auto const ids = a.ids("ids", routes.ids, {any_extent, top_k_of(shape_)});
          auto const w = route_weights_of<W>(a, shape_, routes, ids.extents[0]);
          b.plan.place(
              ctx, ids, shape_.experts,
              has_capacity ? route_plan::order::choice_major : route_plan::order::token_major);
          b.at.begin(place_, x.comm().rank(), rule(x));
          b.reserve_routes();
          keep(w, weights);
          if constexpr (has_hops) x.reserve_parcels(b);
          if constexpr (at_once)
            if (known && parcels != 0) {
              b.plan.lay_out(ragged{layout_.alignment});
              seating_.note_turns(place_, b.at.rank);
              b.renumber(nullptr, seating_.turns_here());
            }
          checks();
        },
        [&](std::uint64_t* own) {
          *own++ = static_cast<std::uint64_t>(b.plan.tokens());
          for (std::uint64_t const type : types) *own++ = type;
          std::memcpy(own, b.plan.counts().data(), b.plan.counts().size_bytes());
          if (known) tell_parcels(x, b, own + shape_.experts);
        });
    if (known) take_parcels(x, met, numbers(), b);
    for (int r = 0; r < place_.ranks(); ++r)
      if (std::uint64_t const n = met.word_of(r).batches; n > x.batches()) x.batches() = n;
    mine.batch = ++x.batches();
    check_types(met);
    auto const kept = lay_out(met, b);
    if constexpr (asks_quotas)
      met = split_by_quotas(ctx, x, mine, quotas, b, kept);
    else
      seating_.take_turns(place_, kept, b.at.rank);
    seating_.seat(b.at);
    expects(parcels == 0 || b.at.needed <= INT32_MAX, "dispatch: a rank would get ", b.at.needed,
            " rows; over hops it has at most ", INT32_MAX);
    b.renumber(asks_quotas ? quotas_.data() : nullptr, seating_.turns_here());
    if (!known && parcels != 0) {
      ++mine.phase;
      met = meet(
          ctx, x, mine, &b, parcels, [] {}, [&](std::uint64_t* own) { tell_parcels(x, b, own); });
      take_parcels(x, met, 0, b);
    }
    b.pool = x.pool();
    b.number = mine.batch, b.prepared = true;
    return met;
  }

 private:
  template <class X>
  static void tell_parcels(X& x, batch_state const& b, std::uint64_t* own) {
    if constexpr (X::has_hops)
      if (x.parcel_numbers() != 0) x.count_parcels(b.routes(), b.at.place.rank_of_slots(), own);
  }
  template <class X>
  static void take_parcels(X& x, told const& met, index_t first, batch_state& b) {
    if constexpr (X::has_hops)
      if (x.parcel_numbers() != 0) x.take_parcels(met, first, b);
  }
  template <class X>
  seat_rule rule(X& x) const {
    seat_rule r;
    r.by_message = !X::reaches_peers, r.messages_known = !X::checks_sizes;
    if constexpr (X::has_hops) r.by_chain = x.parcel_numbers() != 0;
    if constexpr (!has_capacity) r.alignment = layout_.alignment;
    if constexpr (has_budget) r.budget = layout_.rows, r.drops = layout_.drops;
    r.in_turn = place_.ranks_per_node() == 0;
    return r;
  }
  template <class T, class W>
  void keep(tensor_view<T, 2> const& from, buffer<W>& to) const {
    W* out = to.resize(size_product(from.size(), place_.shards()));
    int const shards = place_.shards();
    for (index_t t = 0; t < from.extents[0]; ++t) {
      W const* const row = from.row(t);
      for (index_t j = 0; j < from.extents[1]; ++j) {
        *out++ = row[j];
        for (int i = 1; i < shards; ++i) *out++ = row[j];
      }
    }
  }
  void check_types(told const& met) const {
    constexpr char const* names[] = {"rows", "weights", "y"};
    for (int r = 1; r < place_.ranks(); ++r)
      for (int i = 0; i < 3; ++i)
        expects(met(r, 1 + i) == met(0, 1 + i), "dispatch: ", names[i], " on rank ", r,
                " have another element type than on rank 0; all ranks must use the same");
  }
  /// The plan of this rank, and what every rank keeps, which stands where they told it. On this
  /// thread alone: nothing may fail on one rank here, since the others do not ask any more.
  tensor_view<index_t const, 2> lay_out(told const& met, batch_state& b) {
    tensor_view<index_t const, 2> const counts =
        make_view(reinterpret_cast<index_t const*>(met.of(0)) + met.own + head,
                  index_t{place_.ranks()}, index_t{shape_.experts}, met.pitch);
    if constexpr (has_capacity) {
      index_t tokens = 0, most = 0;
      for (int r = 0; r < place_.ranks(); ++r) {
        tokens = met(r, 0) > tokens ? met(r, 0) : tokens;
        for (int e = 0; e < shape_.experts; ++e)
          most = counts.row(r)[e] > most ? counts.row(r)[e] : most;
      }
      b.at.rule.capacity = capacity_of(layout_, tokens, shape_.experts, shape_.top_k, most);
      b.plan.lay_out(host_context{}, b.at.rule.capacity);
    } else {
      b.plan.lay_out(ragged{layout_.alignment});
    }
    return seating_.kept(counts, b.at.rule.capacity);
  }
  template <class X, class Quotas>
  told split_by_quotas(host_context const& ctx, X& x, intention& mine, Quotas const& quotas,
                       batch_state& b, tensor_view<index_t const, 2> const& kept) {
    ++mine.phase;
    b.at.rule.in_turn = false;
    auto const split = seating_.split(place_);
    told const met = meet(
        ctx, x, mine, &b, 1, [&] { split_by(quotas, place_, kept, split); },
        [&](std::uint64_t* own) { *own = checksum(split); });
    for (int r = 1; r < place_.ranks(); ++r)
      expects(met(r, 0) == met(0, 0), "prepare: the quotas of rank ", r,
              " give other numbers than those of rank 0; all ranks compute the same");
    for (int slot = 0; slot < place_.slot_count(); ++slot)
      quotas_[slot] = split.row(b.at.rank)[slot];
    return met;
  }

  expert_shape shape_;
  Layout layout_;
  expar::placement place_;
  seating seating_;
  buffer<index_t> quotas_;  // of this rank, before a budget drops
};

}  // namespace expar::inline v0::detail
