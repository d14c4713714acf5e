// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <span>
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
/// Every expert has a copy, unless ranks were lost: see without().
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
    p.number_slots();
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
  /// What is left where a rank is lost: the slots of the others, each with the weights that it has;
  /// ranks above are numbered down by one. An expert may have no copy then: its routes are dropped
  /// and counted. A copy of which a shard is lost is lost: its other slots stay, but are of no copy
  /// (copy_of is -1), and no row comes to them. What nearest() said holds on if the last node lost
  /// the rank; elsewhere nodes would shift, and a route takes a copy on its own rank, else any, as
  /// by nearest(1), until the caller says more.
  placement without(int rank) const {
    detail::expects(ranks_ >= 2, "placement: ranks is ", ranks_, "; without one, none is left");
    expects_below("rank", rank, ranks_);
    std::vector<int> number = table_->number;
    for (int e = 0; e < experts_; ++e)
      for (int c = 0, whole = 0; c < copies(e); ++c) {
        bool left = true;
        for (int i = 0; i < shards_; ++i) left = left && rank_of(slot(e, c, i)) != rank;
        for (int i = 0; i < shards_; ++i)
          number[at(slot(e, c, i))] = (left ? whole : -1) * shards_ + i;
        whole += left;
      }
    slot_table* const made = new slot_table;
    placement p(made, experts_, ranks_ - 1, shards_);
    for (int r = 0; r < ranks_; ++r) {
      if (r == rank) continue;
      for (int s = first(r); s < first(r + 1); ++s) {
        made->expert_of.push_back(expert_of(s));
        made->number.push_back(number[at(s)]);
      }
      made->first.push_back(static_cast<int>(made->expert_of.size()));
    }
    p.index_slots();
    bool const same_nodes = node_ == 0 || rank / node_ == (ranks_ - 1) / node_;
    p.node_ = same_nodes ? node_ : 1;
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
  /// The rank of every slot.
  std::span<int const> rank_of_slots() const noexcept {
    return experts_ == 0 ? std::span<int const>() : std::span<int const>(table_->rank_of);
  }
  int expert_of(int slot) const { return table_->expert_of[valid(slot)]; }
  /// -1 where shards of the copy are lost.
  int copy_of(int slot) const {
    int const n = table_->number[valid(slot)];
    return n < 0 ? -1 : n / shards_;
  }
  int shard_of(int slot) const {
    int const n = table_->number[valid(slot)];
    return n < 0 ? n + shards_ : n % shards_;
  }
  int copies(int expert) const {
    expects_below("expert", expert, experts_);
    return (table_->begin[at(expert) + 1] - table_->begin[at(expert)]) / shards_;
  }
  int slot(int expert, int copy, int shard = 0) const {
    int const all = copies(expert);
    detail::expects(all > 0, "placement: expert ", expert, " has no copy; its ranks are lost");
    expects_below("copy", copy, all);
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
    for (int const n : table_->number) add(n);
    return h;
  }
  friend bool operator==(placement const& a, placement const& b) noexcept {
    return a.experts_ == b.experts_ && a.ranks_ == b.ranks_ && a.shards_ == b.shards_ &&
           a.node_ == b.node_ &&
           (a.table_.get() == b.table_.get() ||
            (a.table_->first == b.table_->first && a.table_->expert_of == b.table_->expert_of &&
             a.table_->number == b.table_->number));
  }

 private:
  /// By slot: expert_of, rank_of, number (copy * shards + shard, negative where the copy is lost);
  /// by expert: the slots of its copies, from begin[e].
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
    p.number_slots();
    return p;
  }

  /// The slots of an expert by their order; it needs whole copies.
  void number_slots() {
    slot_table& t = *table_;
    std::vector<int> seen(at(experts_));
    for (std::size_t s = 0; s < t.expert_of.size(); ++s) {
      int const e = t.expert_of[s];
      detail::expects(e >= 0 && e < experts_, "placement: slot ", s, " holds expert ", e,
                      "; there are ", experts_, " experts");
      t.number.push_back(seen[at(e)]++);
    }
    for (int e = 0; e < experts_; ++e) {
      int const n = seen[at(e)];
      detail::expects(n >= 1, "placement: expert ", e, " has no slot; it needs one");
      detail::expects(n % shards_ == 0, "placement: expert ", e, " has ", n,
                      " slots; with shards it has a multiple of ", shards_);
    }
    index_slots();
  }
  /// From `first`, `expert_of` and `number` to the rest.
  void index_slots() {
    slot_table& t = *table_;
    std::size_t const n = t.expert_of.size();
    t.identity = shards_ == 1 && n == at(experts_);
    t.begin.assign(at(experts_) + 1, 0);
    for (std::size_t s = 0; s < n; ++s) {
      t.begin[at(t.expert_of[s]) + 1] += t.number[s] >= 0;
      t.identity = t.identity && t.expert_of[s] == static_cast<int>(s);
    }
    for (int e = 0; e < experts_; ++e) t.begin[at(e) + 1] += t.begin[at(e)];
    t.slots_of.resize(at(t.begin[at(experts_)]));
    for (int r = 0; r < ranks_; ++r) {
      int const end = t.first[at(r) + 1];
      t.most = end - t.first[at(r)] > t.most ? end - t.first[at(r)] : t.most;
      for (int s = t.first[at(r)]; s < end; ++s) {
        t.rank_of.push_back(r);
        if (t.number[at(s)] >= 0)
          t.slots_of[at(t.begin[at(t.expert_of[at(s)])] + t.number[at(s)])] = s;
      }
    }
  }

  detail::shared<slot_table> table_;
  int experts_ = 0, ranks_ = 0, shards_ = 1, node_ = 0;
};

}  // namespace expar::inline v0
