// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include <expar/element.hpp>
#include <expar/exchange/seats.hpp>
#include <expar/exchange/side.hpp>
#include <expar/plan/plan.hpp>

namespace expar::inline v0::detail {

/// A number that two types share only by chance: the same in all processes of a program.
template <class T>
constexpr std::uint64_t tag_of() {
  std::uint64_t h = 0xcbf29ce484222325u;
  for (char const* c = __PRETTY_FUNCTION__; *c != 0; ++c)
    h = (h ^ static_cast<unsigned char>(*c)) * 0x100000001b3u;
  return h;
}

/// Of the gradient of a weight that stands beside a row.
template <class T, class W>
struct row_scalar {
  using type = W;
};
template <element T, class W>
struct row_scalar<T, W> {
  using type = accumulator_t<T>;
};
template <class T, class W>
using row_scalar_t = typename row_scalar<T, W>::type;

/// Throws where rows are more than memory can hold.
inline index_t bytes_of_rows(index_t rows, index_t columns, std::size_t element) {
  index_t const bytes = size_product(rows, size_product(columns, static_cast<index_t>(element)));
  expects(bytes <= most_rows, "dispatch: ", rows, " rows of ", columns,
          " elements are more than memory can hold");
  return bytes;
}

/// What a transport knows of a batch, where rows pass other ranks on their way.
struct passage : counted {
  virtual ~passage() = default;
};

/// What a batch is, whatever its rows are made of: its routes, their seats, and its sides.
struct batch_state {
  explicit batch_state(std::pmr::memory_resource* memory)
      : plan(memory), at(memory), slot_ids(memory), slot_locations(memory) {}

  route_plan plan;  // of this rank's tokens, by expert
  seats at;
  shared<passage> way;  // of a batch whose rows pass other ranks
  shared<side_pool> pool;
  side_memory sides[side_count];
  bool open[side_count] = {};  // whether the caller may fill a side
  std::uint64_t number = 0;
  cleared_by_move<bool> prepared, dispatched;

  /// The routes by slot: [tokens, top_k * shards], of which one that lost its row has location -1.
  plan_view routes() const {
    plan_view v = plan.view();
    if (renumbered_) {
      v.ids = slot_ids.data(), v.locations = slot_locations.data();
      v.top_k *= at.place.shards(), v.experts = at.place.slot_count();
    }
    return v;
  }
  /// Routes that name an expert and have no row.
  index_t dropped() const { return plan.dropped() + cut_; }

  side_memory& of(side s) { return sides[static_cast<int>(s)]; }
  side_memory const& of(side s) const { return sides[static_cast<int>(s)]; }

  void release(side s) {
    of(s).release();
    open[static_cast<int>(s)] = false;
  }
  /// Nothing is prepared, and no row is here.
  void forget() {
    prepared = false, dispatched = false;
    at.clear();
    for (int s = 0; s < side_count; ++s) release(static_cast<side>(s));
  }

  /// Memory for renumber(), which must not fail.
  void reserve_routes() {
    renumbered_ = at.rule.drops || !at.place.is_identity();
    if (!renumbered_) return;
    index_t const n = size_product(plan.tokens() * plan.top_k(), at.place.shards());
    slot_ids.resize(n), slot_locations.resize(n);
  }
  /// From the routes to experts to those to slots, once `at` is known. `quotas`: how many routes of
  /// this rank go to each slot, or null where copies are taken by turns. Before `at` is known all
  /// routes are taken to be kept.
  void renumber(index_t const* quotas, seating::turn_table by_turns) {
    cut_ = 0;
    if (!renumbered_) return;
    placement const& place = at.place;
    int const shards = place.shards();
    plan_view const from = plan.view();
    for (index_t i = 0; i < from.tokens * from.top_k; ++i) {
      std::int32_t const e = from.ids[i];
      index_t l = from.locations[i];
      int copy = 0;
      if (l >= 0 && place.copies(e) == 0) l = -1, ++cut_;
      if (l >= 0 && quotas != nullptr) {
        for (; l >= quotas[place.slot(e, copy)]; ++copy) l -= quotas[place.slot(e, copy)];
      } else if (l >= 0 && place.copies(e) > 1) {
        copy = by_turns.copy(e, l + at.rank);
        l /= by_turns.count(e);
      }
      // All shards keep the same routes, or all lose them.
      if (l >= 0 && at.sent.size() != 0 && l >= at.sent[place.slot(e, copy)]) l = -1, ++cut_;
      for (int s = 0; s < shards; ++s) {
        slot_ids[i * shards + s] = l < 0 ? -1 : place.slot(e, copy, s);
        slot_locations[i * shards + s] = static_cast<std::int32_t>(l);
      }
    }
  }

 private:
  buffer<std::int32_t> slot_ids, slot_locations;
  bool renumbered_ = false;
  index_t cut_ = 0;
};

}  // namespace expar::inline v0::detail
