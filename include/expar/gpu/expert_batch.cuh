// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include <expar/detail/buffer.hpp>
#include <expar/gpu/exchange/detail/window.cuh>
#include <expar/gpu/exchange/ranks.cuh>

namespace expar::inline v0::gpu {

template <rank_group Group, class Layout>
class expert_parallel;

/// One batch on its way: where the routes of the tokens of this process' ranks went, and the
/// windows with the rows of the experts, which all ranks write and read. Made by
/// expert_parallel::make_batch(); any number may be alive, used in any order. Everything is device
/// memory. T: element type of rows, W: of route weights; `rank` is one that this process drives.
template <class T, class W, rank_windows Windows>
class expert_batch {
 public:
  /// [window_rows(), H]: the rows of the local experts, expert after expert, within one by (source
  /// rank, token, choice), written by dispatch. Rows that only fill between them (alignment, unused
  /// capacity) are zero. Their number N stands behind the last expert_offsets(); rows from there on
  /// are left alone.
  tensor_view<T, 2> rows(int rank) const { return buffer(rank, 0); }
  /// For the caller to fill before combine and combine_backward: what the experts made.
  tensor_view<T, 2> y(int rank) const { return buffer(rank, 1); }
  /// The gradient of y, written by combine_backward.
  tensor_view<T, 2> d_y(int rank) const { return buffer(rank, 2); }
  /// For the caller to fill before dispatch_backward: the gradient of rows.
  tensor_view<T, 2> d_rows(int rank) const { return buffer(rank, 3); }

  /// Rows of a window.
  index_t window_rows() const noexcept { return shape_.rows; }
  /// H.
  index_t hidden() const noexcept { return shape_.row_bytes / index_t{sizeof(T)}; }
  /// The experts of a rank: first_expert(rank) .. first_expert(rank) + local_experts(rank) - 1.
  int local_experts(int rank) const noexcept { return shape_.place.count(rank); }
  int first_expert(int rank) const noexcept { return shape_.place.first(rank); }
  /// [local_experts]: rows that came for each, without filling rows.
  tensor_view<index_t const, 1> expert_counts(int rank) const {
    return make_view<index_t const>(seats_of(rank).counts, local_experts(rank));
  }
  /// [local_experts + 1]: the first row of each, and behind the last N. Neither reaches beyond the
  /// window, whatever came.
  tensor_view<index_t const, 1> expert_offsets(int rank) const {
    return make_view<index_t const>(seats_of(rank).offsets, index_t{local_experts(rank)} + 1);
  }
  /// The routes of a rank's own tokens: counts, drops, capacity.
  route_plan const& plan(int rank) const { return part_of(rank).plan; }

 private:
  template <rank_group, class>
  friend class expert_parallel;

  struct part {
    explicit part(context const& ctx) : plan(ctx), weights(ctx), to(ctx), sums(ctx) {}
    route_plan plan;
    detail::buffer<W> weights;
    detail::buffer<detail::destination> to;
    detail::buffer<index_t> sums;
  };

  template <class Group>
  expert_batch(Group& group, expar::detail::window_shape const& shape)
      : windows_(group.allocate_window(shape.bytes())), shape_(shape), first_(group.first_rank()) {
    index_t const experts = shape.place.experts;
    for (int r = first_; r < first_ + group.local_ranks(); ++r)
      group.on(r, [&](context const& ctx) {
        part& p = parts_.emplace_back(ctx);
        p.to.resize("make_batch", experts);
        p.sums.resize("make_batch", experts + 1 + sums_of(r));
      });
  }

  /// Offsets, counts, and what was needed.
  index_t sums_of(int rank) const { return 2 * index_t{local_experts(rank)} + 3; }
  void check_rank(int rank) const {
    auto const ranks = static_cast<int>(parts_.size());
    expar::detail::expects(rank >= first_ && rank < first_ + ranks, "expert_batch: rank is ", rank,
                           "; the batch has ", ranks, " ranks of this process, from ", first_);
  }
  part& part_of(int rank) {
    check_rank(rank);
    return parts_[static_cast<std::size_t>(rank - first_)];
  }
  part const& part_of(int rank) const {
    check_rank(rank);
    return parts_[static_cast<std::size_t>(rank - first_)];
  }
  detail::seats seats_of(int rank) const {
    part const& p = part_of(rank);
    index_t* const offsets = p.sums.data() + shape_.place.experts + 1;
    index_t* const counts = offsets + local_experts(rank) + 1;
    return {p.to.data(), p.sums.data(), offsets, counts, counts + local_experts(rank)};
  }
  tensor_view<T, 2> buffer(int rank, int which) const {
    if (which >= shape_.buffers) return {};
    check_rank(rank);
    std::byte* const data = windows_.part(rank) + shape_.buffer(which);
    return make_view(reinterpret_cast<T*>(data), shape_.rows, hidden());
  }
  /// The rows of all experts, as kernels of a rank find them.
  template <class U>
  detail::peer_rows<U> everywhere(int rank, int which) const {
    return {expar::detail::rows_of<U>(shape_, part_of(rank).to.data(), which)};
  }
  detail::matrix_weights<W> weights(int rank) const {
    part const& p = part_of(rank);
    return {make_view<W const>(p.weights.data(), p.plan.tokens(), index_t{p.plan.top_k()})};
  }

  Windows windows_;
  expar::detail::window_shape shape_;
  int first_;
  std::vector<part> parts_;
  expar::detail::cleared_by_move<bool> prepared_, dispatched_;
};

}  // namespace expar::inline v0::gpu
