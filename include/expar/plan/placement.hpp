// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <vector>

#include <expar/detail/shared.hpp>
#include <expar/detail/sizes.hpp>
#include <expar/plan/block_placement.hpp>
#include <expar/tensor.hpp>

namespace expar::inline v0 {

/// Which ranks hold an expert. A *slot* is the place of one copy or one shard of an expert's
/// weights on a rank; slots are numbered rank after rank, so that a rank has consecutive ones, and
/// may have none. Routers, their losses and counts name experts; what is behind a plan names slots.
/// A value: copies share one table, which never changes.
///
/// Copies: each holds the whole expert, and a route goes to one of them: in turn, or nearest().
/// Shards: each holds a part, a route goes to all of them, and what they make is summed.
class placement {
 public:
  /// Of no experts on no ranks.
  placement() = default;
  placement(placement const&) = default;
  placement& operator=(placement const&) = default;

  /// Slot e is expert e, in consecutive blocks; the first experts % ranks ranks hold one more.
  static placement blocks(int experts, int ranks) {
    validate(experts, ranks, "ranks", ranks);
    return in_blocks(experts, ranks, 1, experts, [](int slot) { return slot; });
  }
  /// `copies` whole copies of every expert: all experts once, then all once more, cut into blocks.
  static placement replicated(int experts, int ranks, int copies) {
    validate(experts, ranks, "copies", copies);
    return in_blocks(experts, ranks, 1, detail::size_product(experts, copies),
                     [experts](int slot) { return slot % experts; });
  }
  /// `shards` parts of every expert, one behind the other, cut into blocks: on different ranks
  /// where the blocks are no longer than that, and else some on one rank, to which a row goes
  /// twice.
  static placement sharded(int experts, int ranks, int shards) {
    validate(experts, ranks, "shards", shards);
    return in_blocks(experts, ranks, shards, detail::size_product(experts, shards),
                     [shards](int slot) { return slot / shards; });
  }
  /// Every rank has all experts, and tokens stay where they are.
  static placement whole(int experts, int ranks) {
    return replicated(experts, ranks, ranks).nearest();
  }
  /// Any: the experts of each rank, slot by slot. The n-th slot of an expert is its copy
  /// n / shards and of that the shard n % shards. Experts may differ in their copies; each has one.
  static placement table(int experts, std::vector<std::vector<int>> const& experts_of_rank,
                         int shards = 1) {
    validate(experts, static_cast<int>(experts_of_rank.size()), "shards", shards);
    slot_table* const made = new slot_table;
    placement p(made, experts, static_cast<int>(experts_of_rank.size()), shards);
    for (auto const& held : experts_of_rank) {
      made->expert_of.insert(made->expert_of.end(), held.begin(), held.end());
      made->first.push_back(static_cast<int>(made->expert_of.size()));
    }
    p.finish();
    return p;
  }

  /// The same slots, but a route takes a copy on its token's rank, else on one of the
  /// `ranks_per_node` ranks of its node, else any; of several, in turn.
  placement nearest(int ranks_per_node = 1) const {
    detail::expects(ranks_per_node >= 1, "placement: ranks_per_node is ", ranks_per_node,
                    "; it is at least 1");
    placement p = *this;
    p.node_ = ranks_per_node;
    return p;
  }
  /// 0 where routes take copies in turn, else the ranks of a node.
  int ranks_per_node() const noexcept { return node_; }

  int experts() const noexcept { return experts_; }
  int ranks() const noexcept { return ranks_; }
  int slot_count() const noexcept {
    return experts_ == 0 ? 0 : static_cast<int>(table_->expert_of.size());
  }
  int shards() const noexcept { return shards_; }
  /// The first slot of a rank; first(ranks) is slot_count().
  int first(int rank) const {
    expects_below("rank", rank, ranks_ + 1);
    return table_->first[at(rank)];
  }
  int count(int rank) const {
    expects_below("rank", rank, ranks_);
    return table_->first[at(rank) + 1] - table_->first[at(rank)];
  }
  /// The most slots that a rank has.
  int most() const noexcept { return experts_ == 0 ? 0 : table_->most; }
  int rank_of(int slot) const { return table_->rank_of[valid(slot)]; }
  int expert_of(int slot) const { return table_->expert_of[valid(slot)]; }
  int copy_of(int slot) const { return table_->number[valid(slot)] / shards_; }
  int shard_of(int slot) const { return table_->number[valid(slot)] % shards_; }
  int copies(int expert) const {
    expects_below("expert", expert, experts_);
    return (table_->begin[at(expert) + 1] - table_->begin[at(expert)]) / shards_;
  }
  int slot(int expert, int copy, int shard = 0) const {
    expects_below("copy", copy, copies(expert));
    expects_below("shard", shard, shards_);
    return table_->slots_of[at(table_->begin[at(expert)] + copy * shards_ + shard)];
  }
  /// Whether slot e is expert e, so that nothing has to be renumbered.
  bool is_identity() const noexcept { return experts_ == 0 || table_->identity; }

  /// A number that differs, as good as surely, where the placements do.
  std::uint64_t hash() const noexcept {
    std::uint64_t h = 0xcbf29ce484222325u;
    auto const add = [&](int value) {
      h = (h ^ static_cast<std::uint32_t>(value)) * 0x100000001b3u;
      h ^= h >> 32;
    };
    add(experts_), add(ranks_), add(shards_), add(node_);
    if (experts_ == 0) return h;
    for (int const f : table_->first) add(f);
    for (int const e : table_->expert_of) add(e);
    return h;
  }
  friend bool operator==(placement const& a, placement const& b) noexcept {
    return a.experts_ == b.experts_ && a.ranks_ == b.ranks_ && a.shards_ == b.shards_ &&
           a.node_ == b.node_ &&
           (a.table_.get() == b.table_.get() ||
            (a.table_->first == b.table_->first && a.table_->expert_of == b.table_->expert_of));
  }

 private:
  /// By slot: expert_of, rank_of, number (among the slots of its expert); by expert: slots from
  /// begin[e].
  struct slot_table : detail::counted {
    std::vector<int> first{0}, expert_of, rank_of, number, begin, slots_of;
    int most = 0;
    bool identity = true;
  };

  placement(slot_table* made, int experts, int ranks, int shards)
      : table_(made), experts_(experts), ranks_(ranks), shards_(shards) {}

  static std::size_t at(int i) noexcept { return static_cast<std::size_t>(i); }
  static void validate(int experts, int ranks, char const* name, int value) {
    detail::expects(experts >= 1, "placement: experts is ", experts, "; at least 1 is needed");
    detail::expects(ranks >= 1, "placement: ranks is ", ranks, "; at least 1 is needed");
    detail::expects(value >= 1, "placement: ", name, " is ", value, "; at least 1 is needed");
  }
  static void expects_below(char const* name, int value, int end) {
    detail::expects(value >= 0 && value < end, "placement: ", name, " is ", value,
                    "; it lies between 0 and ", end - 1);
  }
  std::size_t valid(int slot) const {
    expects_below("slot", slot, slot_count());
    return at(slot);
  }

  template <class ExpertOf>
  static placement in_blocks(int experts, int ranks, int shards, index_t count,
                             ExpertOf expert_of) {
    detail::expects(count <= INT32_MAX, "placement: ", experts, " experts have ", count,
                    " slots; at most ", INT32_MAX, " are possible");
    slot_table* const made = new slot_table;
    placement p(made, experts, ranks, shards);
    block_placement const blocks{static_cast<int>(count), ranks};
    for (int r = 1; r <= ranks; ++r) made->first.push_back(blocks.first(r));
    for (int s = 0; s < count; ++s) made->expert_of.push_back(expert_of(s));
    p.finish();
    return p;
  }

  /// From `first` and `expert_of` to the rest.
  void finish() {
    slot_table& t = *table_;
    t.begin.assign(at(experts_) + 1, 0);
    for (std::size_t s = 0; s < t.expert_of.size(); ++s) {
      int const e = t.expert_of[s];
      detail::expects(e >= 0 && e < experts_, "placement: slot ", s, " holds expert ", e,
                      "; there are ", experts_, " experts");
      t.number.push_back(t.begin[at(e) + 1]++);
      t.identity = t.identity && e == static_cast<int>(s);
    }
    t.identity = t.identity && shards_ == 1;
    for (int e = 0; e < experts_; ++e) {
      int& n = t.begin[at(e) + 1];
      detail::expects(n >= 1, "placement: expert ", e, " has no slot; it needs one");
      detail::expects(n % shards_ == 0, "placement: expert ", e, " has ", n,
                      " slots; with shards it has a multiple of ", shards_);
      n += t.begin[at(e)];
    }
    t.slots_of.resize(t.expert_of.size());
    for (int r = 0; r < ranks_; ++r) {
      int const end = t.first[at(r) + 1];
      t.most = end - t.first[at(r)] > t.most ? end - t.first[at(r)] : t.most;
      for (int s = t.first[at(r)]; s < end; ++s) {
        t.rank_of.push_back(r);
        t.slots_of[at(t.begin[at(t.expert_of[at(s)])] + t.number[at(s)])] = s;
      }
    }
  }

  detail::shared<slot_table> table_;
  int experts_ = 0, ranks_ = 0, shards_ = 1, node_ = 0;
};

}  // namespace expar::inline v0
