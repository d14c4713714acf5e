// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/plan/placement.hpp>

namespace expar::inline v0::detail {

/// Which copies of an expert the routes of a rank take in turn.
class turns {
 public:
  turns(placement const& place, int expert, int rank)
      : place_(place), expert_(expert), rank_(rank), all_(place.copies(expert)), count_(all_) {
    if (all_ == 1 || place.ranks_per_node() == 0) return;
    for (distance_ = 1; distance_ <= place.ranks_per_node(); distance_ = place.ranks_per_node()) {
      count_ = 0;
      for (int c = 0; c < all_; ++c) count_ += takes(c);
      if (count_ > 0) return;
      if (distance_ == place.ranks_per_node()) break;
    }
    distance_ = 0, count_ = all_;
  }

  /// How many there are.
  int count() const { return count_; }
  bool takes(int copy) const {
    return distance_ == 0 ||
           place_.rank_of(place_.slot(expert_, copy)) / distance_ == rank_ / distance_;
  }
  /// How many of `routes` routes go to the `turn`-th of them.
  index_t share(index_t routes, int turn) const {
    index_t const first = (turn + count_ - rank_ % count_) % count_;
    return routes > first ? (routes - first - 1) / count_ + 1 : 0;
  }

 private:
  placement const& place_;
  int expert_, rank_, all_, count_;
  int distance_ = 0;  // ranks whose copies are near, or 0 for all
};

}  // namespace expar::inline v0::detail
