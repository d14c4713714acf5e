// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/error.hpp>
#include <expar/expert_batch.hpp>
#include <expar/expert_shape.hpp>

namespace expar::inline v0::detail {

/// What an expert_parallel asks of a batch. Each throws a sentence that begins with `what` where it
/// does not fit.
struct batch_fit {
  expert_shape shape;
  int ranks;
  bool has_capacity;

  template <class T, class W>
  void prepared(char const* what, expert_batch<T, W> const& batch) const {
    expects(batch.prepared_, what, ": the batch has no routes; dispatch or prepare it first");
    route_plan const& plan = batch.plan_;
    expects(plan.experts() == shape.experts && plan.top_k() == shape.top_k &&
                batch.hidden_ == shape.hidden && batch.map_.place.ranks == ranks,
            what, ": the batch was made for ", plan.experts(), " experts, top_k ", plan.top_k(),
            ", rows of ", batch.hidden_, " and ", batch.map_.place.ranks, " ranks, not for ",
            shape.experts, ", ", shape.top_k, ", ", shape.hidden, " and ", ranks);
    expects((batch.map_.capacity >= 0) == has_capacity, what, ": the batch was made for ",
            has_capacity ? "a ragged layout, not for fixed_capacity"
                         : "fixed_capacity, not for a ragged layout");
  }
  template <class T, class W>
  void dispatched(char const* what, expert_batch<T, W> const& batch) const {
    prepared(what, batch);
    expects(batch.dispatched_, what, ": the batch has no rows; dispatch tokens first");
  }
};

}  // namespace expar::inline v0::detail
