// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>

#include <expar/error.hpp>
#include <expar/exchange/arrivals.hpp>
#include <expar/plan/plan.hpp>

namespace expar::inline v0 {

/// What every kind of batch tells of its rows, once it is prepared. Before that it has no local
/// experts, and what is asked of a single one throws.
class routed_batch {
 public:
  /// The experts of this rank: first_expert() .. first_expert() + local_experts() - 1.
  int local_experts() const noexcept { return static_cast<int>(map_.counts.size()); }
  int first_expert() const {
    detail::expects(map_.sent.size() != 0,
                    "first_expert: the batch has no routes; dispatch or prepare it first");
    return map_.place.first(map_.rank);
  }
  /// Rows that came for each local expert, without filling rows.
  std::span<index_t const> expert_counts() const noexcept {
    return {map_.counts.data(), map_.counts.size()};
  }
  /// The first row of each local expert, and behind the last N.
  std::span<index_t const> expert_offsets() const noexcept {
    return {map_.offsets.data(), map_.offsets.size()};
  }
  /// How many rows came from a rank for a local expert, and the first of them.
  index_t count_from(int rank, int local_expert) const {
    return map_.arrived[block("count_from", rank, local_expert)];
  }
  index_t first_row_from(int rank, int local_expert) const {
    return map_.first_row[block("first_row_from", rank, local_expert)];
  }

  /// The routes of this rank's own tokens, laid out as if it were alone: counts, drops, capacity.
  route_plan const& plan() const noexcept { return plan_; }

 protected:
  explicit routed_batch(std::pmr::memory_resource* memory) : plan_(memory), map_(memory) {}

  void check_local(char const* what, int local_expert) const {
    detail::expects(local_expert >= 0 && local_expert < local_experts(), what, ": local_expert is ",
                    local_expert, "; the batch has ", local_experts(), " local experts");
  }

  route_plan plan_;
  detail::arrivals map_;

 private:
  index_t block(char const* what, int rank, int local_expert) const {
    check_local(what, local_expert);
    detail::expects(rank >= 0 && rank < map_.place.ranks, what, ": rank is ", rank, "; there are ",
                    map_.place.ranks, " ranks");
    return index_t{rank} * local_experts() + local_expert;
  }
};

}  // namespace expar::inline v0
