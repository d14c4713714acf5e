// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include <expar/detail/shared.hpp>
#include <expar/error.hpp>

namespace expar::inline v0 {

/// Which ranks are near each other: each is on a node, and nodes are numbered in the order of their
/// first ranks. A value: copies share one table, which never changes.
class topology {
 public:
  /// Of no ranks.
  topology() = default;

  /// Rank r is on node r / ranks_per_node; the last node may have fewer ranks.
  static topology blocks(int ranks, int ranks_per_node) {
    detail::expects(ranks >= 1, "topology: ranks is ", ranks, "; at least 1 is needed");
    detail::expects(ranks_per_node >= 1, "topology: ranks_per_node is ", ranks_per_node,
                    "; at least 1 is needed");
    std::vector<int> colours;
    for (int r = 0; r < ranks; ++r) colours.push_back(r / ranks_per_node);
    return of_colours(colours);
  }
  /// Ranks of one colour are on one node. Any numbers serve, as of MPI_Comm_split_type.
  static topology of_colours(std::span<int const> colour_of_rank) {
    detail::expects(!colour_of_rank.empty(), "topology: there are no colours; each rank has one");
    node_table* const made = new node_table;
    topology t(made);
    for (std::size_t r = 0; r < colour_of_rank.size(); ++r) {
      std::size_t first = 0;
      while (colour_of_rank[first] != colour_of_rank[r]) ++first;
      if (first == r) made->members.emplace_back();
      int const node =
          first == r ? static_cast<int>(made->members.size()) - 1 : made->node_of[first];
      made->node_of.push_back(node);
      made->place_of.push_back(static_cast<int>(made->members[at(node)].size()));
      made->members[at(node)].push_back(static_cast<int>(r));
    }
    for (auto const& m : made->members)
      if (static_cast<int>(m.size()) > made->most) made->most = static_cast<int>(m.size());
    return t;
  }

  int ranks() const noexcept { return table_.get() ? static_cast<int>(table_->node_of.size()) : 0; }
  int nodes() const noexcept { return table_.get() ? static_cast<int>(table_->members.size()) : 0; }
  int node_of(int rank) const {
    std::size_t const r = valid(rank);
    return table_->node_of[r];
  }
  /// The ranks of a node, rising.
  std::span<int const> ranks_of(int node) const {
    detail::expects(node >= 0 && node < nodes(), "topology: node is ", node,
                    "; it lies between 0 and ", nodes() - 1);
    return table_->members[at(node)];
  }
  /// The most ranks that a node has.
  int most() const noexcept { return table_.get() ? table_->most : 0; }

  /// The rank of a node to which `rank` sends what that node is to get: where nodes have equally
  /// many ranks, the one on its rail, which has the same place in its node.
  int on_rail(int rank, int node) const {
    auto const there = ranks_of(node);
    return there[static_cast<std::size_t>(table_->place_of[valid(rank)]) % there.size()];
  }

  /// A number that differs, as good as surely, where the topologies do.
  std::uint64_t hash() const noexcept {
    std::uint64_t h = 0xcbf29ce484222325u;
    for (int r = 0; r < ranks(); ++r)
      h = (h ^ static_cast<std::uint32_t>(table_->node_of[at(r)])) * 0x100000001b3u;
    return h;
  }
  friend bool operator==(topology const& a, topology const& b) noexcept {
    return a.ranks() == b.ranks() &&
           (a.table_.get() == b.table_.get() || a.table_->node_of == b.table_->node_of);
  }

 private:
  struct node_table : detail::counted {
    std::vector<int> node_of, place_of;
    std::vector<std::vector<int>> members;
    int most = 0;
  };

  explicit topology(node_table* made) : table_(made) {}
  static std::size_t at(int i) noexcept { return static_cast<std::size_t>(i); }
  std::size_t valid(int rank) const {
    detail::expects(rank >= 0 && rank < ranks(), "topology: rank is ", rank,
                    "; it lies between 0 and ", ranks() - 1);
    return at(rank);
  }

  detail::shared<node_table> table_;
};

}  // namespace expar::inline v0
