// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include <expar/detail/buffer.hpp>
#include <expar/exchange/routed_batch.hpp>

namespace expar::inline v0 {

template <class Comm, class Layout, class Site>
class expert_parallel;
namespace detail {
struct batch_fit;
}

/// One batch on its way: where the routes of this rank's tokens went, and the rows that this rank's
/// experts got. Made by expert_parallel, owns its memory, and is independent of every other batch:
/// any number may be alive, and used in any order. T: element type of rows, W: of route weights.
template <class T, class W = float>
class expert_batch : public routed_batch {
 public:
  explicit expert_batch(std::pmr::memory_resource* memory = std::pmr::get_default_resource())
      : routed_batch(memory), weights_(memory), rows_(memory), row_weights_(memory) {}

  /// [N,H]: the rows of the local experts, expert after expert, within one by (source rank, token,
  /// choice). Rows that only fill (alignment, unused capacity) are zero. No rows before dispatch.
  tensor_view<T, 2> rows() noexcept { return make_view(rows_.data(), rows_here(), hidden_); }
  tensor_view<T const, 2> rows() const noexcept {
    return make_view(rows_.data(), rows_here(), hidden_);
  }
  /// The same for one local expert, its filling rows included, after dispatch.
  tensor_view<T, 2> expert_rows(int local_expert) {
    check_local("expert_rows", local_expert);
    detail::expects(dispatched_, "expert_rows: the batch has no rows; dispatch tokens first");
    index_t const first = map_.offsets[local_expert];
    return make_view(rows_.data() + first * hidden_, map_.offsets[local_expert + 1] - first,
                     hidden_);
  }
  /// [N]: the weight of each row's route, where weights are handed over per row (else empty); zero
  /// in filling rows.
  tensor_view<W const, 1> row_weights() const noexcept {
    return make_view(row_weights_.data(), static_cast<index_t>(row_weights_.size()));
  }

  /// N.
  index_t row_count() const noexcept { return map_.rows(); }
  /// H.
  index_t hidden() const noexcept { return hidden_; }

 private:
  template <class, class, class>
  friend class expert_parallel;
  friend struct detail::batch_fit;

  index_t rows_here() const noexcept {
    return hidden_ == 0 ? 0 : static_cast<index_t>(rows_.size()) / hidden_;
  }
  // Nothing is prepared, and no row is here.
  void forget() {
    prepared_ = false, dispatched_ = false;
    map_.offsets.clear(), map_.counts.clear();
    rows_.clear(), row_weights_.clear();
  }
  void make_room() {
    index_t n = 0;
    detail::expects(!__builtin_mul_overflow(row_count(), hidden_, &n) &&
                        !__builtin_mul_overflow(n, index_t{sizeof(T)}, &n),
                    "dispatch: ", row_count(), " rows of ", hidden_,
                    " elements are more than memory can hold");
    rows_.resize(row_count() * hidden_);
  }

  detail::buffer<W> weights_;
  detail::buffer<T> rows_;
  detail::buffer<W> row_weights_;
  index_t hidden_ = 0;
  std::uint64_t number_ = 0;
  detail::cleared_by_move<bool> prepared_, dispatched_;
};

}  // namespace expar::inline v0
