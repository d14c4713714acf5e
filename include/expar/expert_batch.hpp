// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>

#include <expar/exchange/batch_state.hpp>
#include <expar/permute/detail/rows.hpp>

namespace expar::inline v0 {

namespace detail {
template <class From, class Layout, class Site>
class engine;
}  // namespace detail
template <class Comm, class Layout, class Site>
class overlapped_layer;

/// One batch on its way: where the routes of this rank's tokens went, and the rows that this rank's
/// experts get and make. Any number may be alive, and used in any order. T: element type of rows,
/// std::byte for rows that are never summed; W: of route weights; Y: of what experts make.
///
/// Memory. A batch holds its routes: for T tokens of k choices, E experts and S slots of s shards,
/// of which a rank of R has L, on one thread
///   T * k * (8 + s * sizeof(W)) + 20 * E + 16 * (S + (R + 1) * L) + 24 bytes,
/// 16 * R more where the communicator does not check sizes, and T * k * s * 8 where routes are
/// renumbered (copies, shards, a budget that drops). A side has N rows. It comes from the pool of
/// the transport when an operation needs it, or the caller asks for it after that, and goes back by
/// release(), when the batch is prepared again, or ends. So a batch that waits for its way back may
/// hold routes alone: dispatch() on it brings its rows again.
template <class T, class W = float, class Y = T>
class expert_batch {
 public:
  explicit expert_batch(std::pmr::memory_resource* memory = std::pmr::get_default_resource())
      : state_(memory), weights_(memory) {}

  /// [N, hidden]: the rows of the local slots, slot after slot, within one by (source rank, token,
  /// choice). Padding (alignment, unused capacity) is zero. No rows before dispatch.
  tensor_view<T, 2> rows() noexcept { return there<T>(side::rows); }
  /// [N, hidden_out]: for the caller to fill, from dispatch on: what the experts made of rows().
  tensor_view<Y, 2> y() { return wanted<Y>(side::y, "y"); }
  /// [N, hidden_out]: the gradient of y, zero in padding. None before combine_backward.
  tensor_view<Y, 2> d_y() noexcept { return there<Y>(side::d_y); }
  /// [N, hidden]: for the caller to fill, from combine_backward on: the gradient of rows.
  tensor_view<T, 2> d_rows() { return wanted<T>(side::d_rows, "d_rows"); }
  /// [N]: the weight of each row's route, where weights are handed over per row (else empty). Zero
  /// in padding.
  tensor_view<W const, 1> row_weights() const noexcept {
    return beside<W const>(state_.of(side::rows));
  }
  /// [N]: for the caller to fill: the gradient of row_weights().
  tensor_view<detail::row_scalar_t<T, W>, 1> d_row_weights() {
    static_cast<void>(d_rows());
    return beside<detail::row_scalar_t<T, W>>(state_.of(side::d_rows));
  }

  /// rows() of one local slot, its padding included, after dispatch.
  tensor_view<T, 2> slot_rows(int local_slot) {
    check_local("slot_rows", local_slot);
    detail::expects(state_.of(side::rows).held(),
                    "slot_rows: the batch has no rows; dispatch tokens first");
    index_t const first = state_.at.offsets[local_slot];
    return make_view(rows().data + first * hidden_, state_.at.offsets[local_slot + 1] - first,
                     hidden_);
  }

  // Of the routes, once they are prepared; before that there are no local slots, and what is asked
  // of a single one throws.

  /// The slots of this rank: first_slot() .. first_slot() + local_slots() - 1. Slot and expert have
  /// the same number where experts are placed in blocks.
  int local_slots() const noexcept { return state_.at.locals(); }
  int first_slot() const { return placed("first_slot").first(state_.at.rank); }
  int expert_of(int local_slot) const {
    check_local("expert_of", local_slot);
    return state_.at.place.expert_of(first_slot() + local_slot);
  }
  /// Rows that came for each local slot, without padding.
  std::span<index_t const> slot_counts() const noexcept {
    return {state_.at.counts.data(), state_.at.counts.size()};
  }
  /// The first row of each local slot, and behind the last N.
  std::span<index_t const> slot_offsets() const noexcept {
    return {state_.at.offsets.data(), state_.at.offsets.size()};
  }
  /// How many rows came from a rank for a local slot, and the first of them.
  index_t count_from(int rank, int local_slot) const {
    return state_.at.arrived[block("count_from", rank, local_slot)];
  }
  index_t first_row_from(int rank, int local_slot) const {
    return state_.at.first_row[block("first_row_from", rank, local_slot)];
  }
  /// N.
  index_t row_count() const noexcept { return state_.at.rows(); }
  /// The N of the rank that would have most, if no budget bounded it.
  index_t needed_rows() const noexcept { return state_.at.needed; }

  /// The routes of this rank's own tokens to experts, laid out as if it were alone: counts, and
  /// what a capacity dropped.
  route_plan const& plan() const noexcept { return state_.plan; }
  /// Routes of this rank's tokens that name an expert and have no row: beyond a capacity or budget,
  /// or of an expert without a copy.
  index_t dropped() const { return state_.dropped(); }
  /// By which the routes went. It stays when the object that prepared the batch gets another.
  expar::placement const& placement() const { return placed("placement"); }

  /// Gives a side back to the pool from which it came: its rows are gone, its memory serves others.
  void release(side s) noexcept { state_.release(s); }

  /// Elements of a row of rows() and of y().
  index_t hidden() const noexcept { return hidden_; }
  index_t hidden_out() const noexcept { return hidden_out_; }

 private:
  template <class, class, class>
  friend class detail::engine;
  template <class, class, class>
  friend class overlapped_layer;

  void check_local(char const* what, int local_slot) const {
    detail::expects(local_slot >= 0 && local_slot < local_slots(), what, ": local_slot is ",
                    local_slot, "; the batch has ", local_slots(), " local slots");
  }

  expar::placement const& placed(char const* what) const {
    detail::expects(state_.prepared, what,
                    ": the batch has no routes; dispatch or prepare it first");
    return state_.at.place;
  }
  index_t block(char const* what, int rank, int local_slot) const {
    check_local(what, local_slot);
    int const ranks = state_.at.place.ranks();
    detail::expects(rank >= 0 && rank < ranks, what, ": rank is ", rank, "; there are ", ranks,
                    " ranks");
    return index_t{rank} * local_slots() + local_slot;
  }
  index_t columns_of(side s) const noexcept {
    return s == side::rows || s == side::d_rows ? hidden_ : hidden_out_;
  }
  /// Bytes of the scalar beside each row of a side.
  index_t scalar_bytes(side s) const noexcept {
    if (weights_site_ != 2) return 0;
    return s == side::rows     ? index_t{sizeof(W)}
           : s == side::d_rows ? index_t{sizeof(detail::row_scalar_t<T, W>)}
                               : 0;
  }
  template <class U>
  tensor_view<U, 2> there(side s) const noexcept {
    detail::side_memory const& m = state_.of(s);
    bool const held = m.held();
    return make_view(held ? reinterpret_cast<U*>(m.rows()) : nullptr, held ? row_count() : 0,
                     columns_of(s));
  }
  template <class U>
  tensor_view<U, 2> wanted(side s, char const* name) {
    detail::side_memory& m = state_.of(s);
    if (state_.prepared && !m.held()) {
      detail::expects(state_.open[static_cast<int>(s)], name, ": it is not there; ",
                      s == side::y ? "dispatch" : "combine_backward", " gives it, until release");
      index_t const n = row_count();
      state_.pool->take(m, detail::bytes_of_rows(n, columns_of(s), sizeof(U)), n * scalar_bytes(s));
    }
    return there<U>(s);
  }
  template <class S>
  tensor_view<S, 1> beside(detail::side_memory const& m) const noexcept {
    auto* const first = m.held() ? m.scalars() : nullptr;
    return make_view(reinterpret_cast<S*>(first), first == nullptr ? 0 : row_count());
  }
  detail::matrix_weights<W> weights() const {
    plan_view const v = state_.routes();
    return {make_view(weights_.data(), v.tokens, index_t{v.top_k})};
  }

  detail::batch_state state_;
  detail::buffer<W> weights_;  // of the routes to slots
  index_t hidden_ = 0, hidden_out_ = 0;
  int weights_site_ = 0;  // where they are applied: 0 at decode, 1 at encode, 2 per row
};

}  // namespace expar::inline v0
