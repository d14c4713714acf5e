// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/detail/buffer.hpp>
#include <expar/detail/sizes.hpp>
#include <expar/exchange/segments.hpp>
#include <expar/plan/detail/copies.hpp>
#include <expar/plan/layout.hpp>

namespace expar::inline v0::detail {

/// What a layout asks of the rows of a slot.
struct seat_rule {
  int alignment = 1;
  index_t capacity = -1;        // routes of a rank for an expert; -1: all of them
  bool in_turn = true;          // copies share a capacity
  index_t budget = -1;          // rows of a rank; -1: as many as come
  bool drops = false;           // what is beyond the budget, instead of an error
  bool messages_known = false;  // whether every rank knows the messages of all
};

/// Where the rows of this rank's tokens go, and where those of all ranks stand here.
struct seats {
  explicit seats(std::pmr::memory_resource* memory)
      : sent(memory),
        to(memory),
        arrived(memory),
        first_row(memory),
        offsets(memory),
        counts(memory),
        abroad(memory) {}

  placement place;
  int rank = 0;
  seat_rule rule;

  buffer<index_t> sent, to;            // [slots]: rows of this rank, and the first on their rank
  buffer<index_t> arrived, first_row;  // [ranks * locals]: by rank and local slot
  buffer<index_t> offsets, counts;     // [locals + 1], [locals]
  buffer<index_t> abroad;              // [2 * ranks]: rows to other ranks, and from them
  index_t room = 0;                    // rows that are enough on every rank
  index_t needed = 0;                  // rows of the fullest rank, if nothing bounds them

  /// Of a new batch: memory for what is known after counts have travelled.
  void begin(placement const& of, int own_rank, seat_rule const& asked) {
    clear();
    place = of, rank = own_rank, rule = asked;
    auto const all = static_cast<std::size_t>(of.slot_count());
    auto const local = static_cast<std::size_t>(of.count(own_rank));
    auto const blocks = local * static_cast<std::size_t>(of.ranks());
    sent.reserve(all), to.reserve(all);
    arrived.reserve(blocks), first_row.reserve(blocks);
    offsets.reserve(local + 1), counts.reserve(local);
    if (rule.messages_known) abroad.reserve(2 * static_cast<std::size_t>(of.ranks()));
  }
  void clear() {
    sent.clear(), to.clear(), arrived.clear(), first_row.clear(), offsets.clear(), counts.clear();
    room = 0, needed = 0;
  }

  int locals() const { return static_cast<int>(counts.size()); }
  int blocks() const { return static_cast<int>(arrived.size()); }
  index_t rows() const { return offsets.size() == 0 ? 0 : offsets[locals()]; }
  bool is_own(int slot) const { return place.rank_of(slot) == rank; }

  /// Rows of every rank for a slot that has the same room for each.
  index_t room_of(int slot) const {
    if (place.copy_of(slot) < 0) return 0;
    index_t const copies = rule.in_turn ? place.copies(place.expert_of(slot)) : 1;
    return (rule.capacity + copies - 1) / copies;
  }
  /// Rows of a message, the same to and from every rank; -1: as many as there are.
  index_t equal_rows() const {
    if (rule.capacity < 0) return -1;
    index_t most = 0;
    for (int r = 0; r < place.ranks(); ++r) {
      index_t n = 0;
      for (int s = place.first(r); s < place.first(r + 1); ++s) n += room_of(s);
      most = n > most ? n : most;
    }
    return most;
  }

  /// The most bytes of a message to or from rank r, if the rule lets them be known.
  index_t message_bytes(int r, index_t bytes_of_row) const {
    index_t const out = abroad[2 * r], in = abroad[2 * r + 1];
    index_t const rows = rule.capacity >= 0 ? equal_rows() * place.ranks() : out > in ? out : in;
    return segments::bound(place.ranks(), rows, bytes_of_row);
  }

  /// Calls f(first, last) for each run of rows that is padding.
  template <class F>
  void for_each_gap(F f) const {
    int const n = locals();
    for (int l = 0; l < n; ++l) {
      index_t filled = offsets[l];
      for (int s = 0; s < place.ranks(); ++s) {
        index_t const b = static_cast<index_t>(s) * n + l;
        if (first_row[b] != filled) f(filled, first_row[b]);
        filled = first_row[b] + arrived[b];
      }
      if (filled != offsets[l + 1]) f(filled, offsets[l + 1]);
    }
  }
};

/// From the counts of all ranks to the seats of one. Every rank computes the same of every rank.
class seating {
 public:
  explicit seating(std::pmr::memory_resource* memory)
      : kept_(memory), split_(memory), copies_(memory), begin_(memory) {}

  void reserve(placement const& place) {
    index_t const ranks = place.ranks();
    kept_.resize(size_product(ranks, place.experts()));
    split_.resize(size_product(ranks, place.slot_count()));
    copies_.resize(index_t{place.slot_count()}), begin_.resize(index_t{place.experts()} + 1);
  }

  /// [ranks, experts]: the routes of every rank for every expert that a capacity keeps.
  tensor_view<index_t, 2> kept(placement const& place) {
    return make_view(kept_.data(), index_t{place.ranks()}, index_t{place.experts()});
  }
  /// [ranks, slots]: how many of these go to every slot.
  tensor_view<index_t, 2> split(placement const& place) {
    return make_view(split_.data(), index_t{place.ranks()}, index_t{place.slot_count()});
  }

  /// Fills split() from kept(): copies in turn. Notes those of `own` rank.
  void take_turns(placement const& place, int own) {
    auto const from = kept(place), to = split(place);
    for (index_t i = 0; i < to.size(); ++i) to.data[i] = 0;
    int noted = 0;
    for (int r = 0; r < place.ranks(); ++r)
      if (place.is_identity())
        for (int e = 0; e < place.experts(); ++e) to.row(r)[e] = from.row(r)[e];
      else
        for (int e = 0; e < place.experts(); ++e) {
          turns const copies(place, e, r);
          if (r == own) begin_[e] = noted, begin_[e + 1] = noted + copies.count();
          for (int c = 0, turn = 0; c < place.copies(e); ++c) {
            if (!copies.takes(c)) continue;
            if (r == own) copies_[noted++] = c;
            index_t const n = copies.share(from.row(r)[e], turn++);
            for (int i = 0; i < place.shards(); ++i) to.row(r)[place.slot(e, c, i)] = n;
          }
        }
  }

  /// The copies that routes of the own rank take in turn: of expert e, from begin[e].
  struct turn_table {
    int const *copies, *begin;

    int count(int expert) const { return begin[expert + 1] - begin[expert]; }
    int copy(int expert, index_t turn) const {
      return copies[begin[expert] + turn % count(expert)];
    }
  };
  turn_table turns_here() const { return {copies_.data(), begin_.data()}; }

  /// From split() to seats. Throws where a rank would get more rows than the budget has; where the
  /// rule drops them instead, split() loses them.
  void seat(seats& s) {
    placement const& place = s.place;
    int const ranks = place.ranks();
    auto const rows = split(place);
    if (s.rule.capacity >= 0) {
      index_t const bound = size_product(s.equal_rows(), ranks);
      expects(bound <= most_rows, "dispatch: the slots of a rank have ", s.equal_rows(),
              " rows for each of ", ranks, " ranks, more than memory can hold");
    }
    int fullest = 0;
    for (int r = 0; r < ranks; ++r)
      if (index_t const n = rows_at(s, r, uncountable); n > s.needed) s.needed = n, fullest = r;
    s.room = s.needed;
    if (s.rule.budget >= 0) {
      s.room = s.rule.budget;
      expects(s.needed <= s.room || s.rule.drops, "dispatch: rank ", fullest, " would get ",
              s.needed, " rows; the budget has ", s.room);
      if (s.needed > s.room) drop(s);
    }

    int const locals = place.count(s.rank), first = place.first(s.rank);
    s.sent.resize(index_t{place.slot_count()}), s.to.resize(index_t{place.slot_count()});
    s.counts.resize(index_t{locals}), s.offsets.resize(index_t{locals} + 1);
    s.arrived.resize(index_t{locals} * ranks), s.first_row.resize(index_t{locals} * ranks);
    for (int r = 0; r < ranks; ++r) {
      index_t begin = 0;
      for (int slot = place.first(r); slot < place.first(r + 1); ++slot) {
        int const l = slot - first;
        index_t const room = s.rule.capacity < 0 ? 0 : s.room_of(slot);
        index_t filled = 0, at = begin;
        for (int from = 0; from < ranks; ++from) {
          index_t const n = rows.row(from)[slot];
          if (from == s.rank) s.sent[slot] = n, s.to[slot] = at;
          if (r == s.rank) s.arrived[from * locals + l] = n, s.first_row[from * locals + l] = at;
          filled += n;
          at += s.rule.capacity < 0 ? n : room;
        }
        if (r == s.rank) s.offsets[l] = begin, s.counts[l] = filled;
        begin = round_up(at, s.rule.alignment);
      }
      if (r == s.rank) s.offsets[locals] = begin;
    }
    if (s.rule.messages_known) count_abroad(s);
  }

 private:
  void count_abroad(seats& s) {
    placement const& place = s.place;
    s.abroad.assign(2 * static_cast<std::size_t>(place.ranks()), 0);
    for (int from = 0; from < place.ranks(); ++from)
      for (int r = 0; r < place.ranks(); ++r)
        for (int slot = place.first(r); from != r && slot < place.first(r + 1); ++slot) {
          index_t const n = split(place).row(from)[slot];
          s.abroad[2 * from] += n, s.abroad[2 * r + 1] += n;
        }
  }

  /// Rows of rank r, padding included, if no slot has more than `level`.
  index_t rows_at(seats const& s, int r, index_t level) {
    index_t sum = 0;
    for (int slot = s.place.first(r); slot < s.place.first(r + 1); ++slot) {
      index_t n = 0;
      for (int from = 0; from < s.place.ranks(); ++from) n += split(s.place).row(from)[slot];
      if (s.rule.capacity >= 0) n = s.room_of(slot) * s.place.ranks();
      sum += round_up(n < level ? n : level, s.rule.alignment);
    }
    return sum;
  }

  /// Every slot keeps as many rows as the largest level allows with which its rank fits, those of
  /// the first ranks first. A route stays in all its shards or in none.
  void drop(seats const& s) {
    placement const& place = s.place;
    auto const rows = split(place);
    for (int r = 0; r < place.ranks(); ++r) {
      index_t fits = 0, fails = s.needed + 1;
      while (fails - fits > 1) {
        index_t const level = fits + (fails - fits) / 2;
        (rows_at(s, r, level) <= s.rule.budget ? fits : fails) = level;
      }
      for (int slot = place.first(r); slot < place.first(r + 1); ++slot) {
        index_t left = fits;
        for (int from = 0; from < place.ranks(); ++from) {
          index_t& n = rows.row(from)[slot];
          n = n < left ? n : left;
          left -= n;
        }
      }
    }
    if (place.shards() == 1) return;
    for (int from = 0; from < place.ranks(); ++from)
      for (int e = 0; e < place.experts(); ++e)
        for (int c = 0; c < place.copies(e); ++c) {
          index_t least = uncountable;
          for (int i = 0; i < place.shards(); ++i) {
            index_t const n = rows.row(from)[place.slot(e, c, i)];
            least = n < least ? n : least;
          }
          for (int i = 0; i < place.shards(); ++i) rows.row(from)[place.slot(e, c, i)] = least;
        }
  }

  buffer<index_t> kept_, split_;
  buffer<int> copies_, begin_;  // of turn_table
};

}  // namespace expar::inline v0::detail
