// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <utility>

#include <expar/exchange/routed_batch.hpp>
#include <expar/exchange/window_layout.hpp>
#include <expar/permute/detail/rows.hpp>

namespace expar::inline v0 {

template <class Comm, class Layout>
class window_parallel;

/// One batch of a window_parallel, in a window of its own: where the routes of this rank's tokens
/// went, and the buffers of expert rows that all ranks write and read. Any number may be alive,
/// used in any order. T: element type of rows, W: of route weights.
template <class T, class W, symmetric_window Window>
class window_batch : public routed_batch {
 public:
  /// [N,H]: the rows of the local experts, as expert_batch::rows(), written by dispatch.
  tensor_view<T, 2> rows() const noexcept { return buffer(0); }
  /// [N,H]: for the caller to fill before combine and combine_backward: what the experts made.
  tensor_view<T, 2> y() const noexcept { return buffer(1); }
  /// [N,H]: the gradient of y, written by combine_backward.
  tensor_view<T, 2> d_y() const noexcept { return buffer(2); }
  /// [N,H]: for the caller to fill before dispatch_backward: the gradient of rows.
  tensor_view<T, 2> d_rows() const noexcept { return buffer(3); }

  /// N, and what it may be at most.
  index_t row_count() const noexcept { return prepared_ ? map_.rows() : 0; }
  index_t window_rows() const noexcept { return shape_.rows; }
  /// H.
  index_t hidden() const noexcept { return shape_.row_bytes / static_cast<index_t>(sizeof(T)); }

 private:
  template <class, class>
  friend class window_parallel;

  window_batch(Window window, detail::window_shape const& shape, int rank, void const* maker,
               detail::buffer<detail::destination> to, std::pmr::memory_resource* memory)
      : routed_batch(memory),
        window_(std::move(window)),
        shape_(shape),
        maker_(maker),
        weights_(memory),
        to_(std::move(to)) {
    map_.place = shape.place, map_.rank = rank;
  }

  tensor_view<T, 2> buffer(int which) const noexcept { return buffer(which, row_count()); }
  tensor_view<T, 2> buffer(int which, index_t rows) const noexcept {
    if (which >= shape_.buffers || maker_ == nullptr) return {};
    void* const data = window_.view().peer(map_.rank, shape_.buffer(which));
    return make_view(static_cast<T*>(data), rows, hidden());
  }
  template <class U>
  detail::peer_rows<U> everywhere(int which) const {
    return detail::rows_of<U>(shape_, to_.data(), which);
  }
  index_t const* said(unsigned turn) const {
    return static_cast<index_t const*>(window_.view().peer(map_.rank, shape_.said_by(turn, 0)));
  }
  detail::matrix_weights<W> weights() const {
    return {make_view(weights_.data(), plan_.tokens(), index_t{plan_.top_k()})};
  }

  Window window_;
  detail::window_shape shape_;
  detail::cleared_by_move<void const*> maker_;
  detail::buffer<W> weights_;
  detail::buffer<detail::destination> to_;
  std::uint64_t number_ = 0;
  detail::cleared_by_move<bool> prepared_, dispatched_;
};

}  // namespace expar::inline v0
