// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/detail/buffer.hpp>
#include <expar/detail/sizes.hpp>
#include <expar/exchange/segments.hpp>
#include <expar/plan/detail/copies.hpp>
#include <expar/plan/layout.hpp>

namespace expar::inline v0::detail {

/// What a layout and a transport ask of the rows of a slot.
struct seat_rule {
  int alignment = 1;
  index_t capacity = -1;        // routes of a rank for an expert; -1: all of them
  bool in_turn = true;          // copies share a capacity
  index_t budget = -1;          // rows of a rank; -1: as many as come
  bool drops = false;           // what is beyond the budget, instead of an error
  bool by_message = false;      // rows to another rank stand in a message
  bool messages_known = false;  // whether every rank knows the messages of all
  bool by_chain = false;        // whether rows pass other ranks on their way

  /// Whether rows may only fill.
  bool pads() const { return alignment != 1 || capacity >= 0; }
};

/// Where the rows of this rank's tokens go, and where those of all ranks stand here.
struct seats {
  explicit seats(std::pmr::memory_resource* memory)
      : sent(memory),
        to(memory),
        final(memory),
        arrived(memory),
        first_row(memory),
        offsets(memory),
        counts(memory),
        abroad(memory) {}

  placement place;
  int rank = 0;
  seat_rule rule;

  buffer<index_t> sent;   // [slots]: rows of this rank
  buffer<index_t> to;     // [slots]: the first of them, on their rank or in the message to it
  buffer<index_t> final;  // [slots]: the first of them on their rank, where rows go by a chain
  buffer<index_t> arrived, first_row;  // [ranks * locals]: by rank and local slot
  buffer<index_t> offsets, counts;     // [locals + 1], [locals]
  buffer<index_t> abroad;              // [2 * ranks]: rows to other ranks, and from them
  index_t room = 0;                    // rows that are enough on every rank
  index_t needed = 0;                  // rows of the fullest rank, if nothing bounds them
  index_t equal_rows = -1;             // of every message; -1: as many as there are

  /// Of a new batch: memory for what is known after counts have travelled.
  void begin(placement const& of, int own_rank, seat_rule const& asked) {
    clear();
    place = of, rank = own_rank, rule = asked;
    auto const all = static_cast<std::size_t>(of.slot_count());
    auto const local = static_cast<std::size_t>(of.count(own_rank));
    auto const blocks = local * static_cast<std::size_t>(of.ranks());
    sent.reserve(all), to.reserve(all);
    if (rule.by_chain) final.reserve(all);
    arrived.reserve(blocks), first_row.reserve(blocks);
    offsets.reserve(local + 1), counts.reserve(local);
    if (rule.messages_known) abroad.reserve(2 * static_cast<std::size_t>(of.ranks()));
  }
  void clear() {
    sent.clear(), to.clear(), final.clear(), arrived.clear(), first_row.clear(), offsets.clear(),
        counts.clear();
    room = 0, needed = 0, equal_rows = -1;
  }

  int locals() const { return static_cast<int>(counts.size()); }
  int blocks() const { return static_cast<int>(arrived.size()); }
  index_t rows() const { return offsets.size() == 0 ? 0 : offsets[locals()]; }
  bool is_own(int slot) const { return place.rank_of(slot) == rank; }
  /// Rows of this rank to rank p, and from it.
  index_t rows_to(int p) const { return sum(sent.data(), place.first(p), place.first(p + 1)); }
  index_t rows_from(int p) const {
    return sum(arrived.data(), index_t{p} * locals(), (index_t{p} + 1) * locals());
  }
  static index_t sum(index_t const* of, index_t first, index_t last) {
    index_t n = 0;
    for (index_t i = first; i < last; ++i) n += of[i];
    return n;
  }

  /// Rows of every rank for a slot that has the same room for each.
  index_t room_of(int slot) const {
    if (place.copy_of(slot) < 0) return 0;
    index_t const copies = rule.in_turn ? place.copies(place.expert_of(slot)) : 1;
    return (rule.capacity + copies - 1) / copies;
  }

  /// The most bytes of a message to or from rank r, if the rule lets them be known: enough for the
  /// gradients of weights too, which come home alone.
  index_t message_bytes(int r, index_t bytes_of_row) const {
    constexpr index_t gradient = sizeof(double);
    index_t const out = abroad[2 * r], in = abroad[2 * r + 1];
    index_t const rows = equal_rows >= 0 ? equal_rows * place.ranks() : out > in ? out : in;
    return segments::bound(place.ranks(), rows, bytes_of_row < gradient ? gradient : bytes_of_row);
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
      : kept_(memory), split_(memory), total_(memory), copies_(memory), begin_(memory) {}

  void reserve(placement const& place, bool has_capacity) {
    index_t const ranks = place.ranks();
    if (has_capacity) kept_.resize(size_product(ranks, place.experts()));
    split_.resize(size_product(ranks, place.slot_count()));
    total_.resize(index_t{place.slot_count()});
    copies_.resize(index_t{place.slot_count()}), begin_.resize(index_t{place.experts()} + 1);
  }

  /// [ranks, experts]: of the routes of every rank for every expert those that a capacity keeps.
  tensor_view<index_t const, 2> kept(tensor_view<index_t const, 2> const& counts,
                                     index_t capacity) {
    if (capacity < 0) return counts;
    index_t* n = kept_.data();
    for (index_t r = 0; r < counts.extents[0]; ++r)
      for (index_t e = 0; e < counts.extents[1]; ++e, ++n)
        *n = counts.row(r)[e] < capacity ? counts.row(r)[e] : capacity;
    return make_view(static_cast<index_t const*>(kept_.data()), counts.extents[0],
                     counts.extents[1]);
  }
  /// [ranks, slots]: how many of these go to every slot, for the caller to fill.
  tensor_view<index_t, 2> split(placement const& place) {
    auto const filled =
        make_view(split_.data(), index_t{place.ranks()}, index_t{place.slot_count()});
    rows_ = filled;
    return filled;
  }

  /// Which copies the own rank takes in turn.
  void note_turns(placement const& place, int own) {
    if (place.is_identity()) return;
    int noted = 0;
    for (int e = 0; e < place.experts(); ++e) {
      turns const copies(place, e, own);
      begin_[e] = noted;
      for (int c = 0; c < place.copies(e); ++c)
        if (copies.takes(c)) copies_[noted++] = c;
      begin_[e + 1] = noted;
    }
  }
  /// Splits `kept`: copies in turn. Notes those of `own` rank.
  void take_turns(placement const& place, tensor_view<index_t const, 2> const& from, int own) {
    rows_ = from;
    if (place.is_identity()) return;
    note_turns(place, own);
    auto const to = split(place);
    for (index_t i = 0; i < to.size(); ++i) to.data[i] = 0;
    for (int r = 0; r < place.ranks(); ++r)
      for (int e = 0; e < place.experts(); ++e) {
        turns const copies(place, e, r);
        for (int c = 0, turn = 0; c < place.copies(e); ++c) {
          if (!copies.takes(c)) continue;
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

  /// From what is split to seats. Throws where a rank would get more rows than the budget has;
  /// where the rule drops them instead, the split loses them.
  void seat(seats& s) {
    placement const& place = s.place;
    int const ranks = place.ranks();
    if (s.rule.capacity >= 0) {
      s.equal_rows = widest(s);
      expects(size_product(s.equal_rows, ranks) <= most_rows, "dispatch: the slots of a rank have ",
              s.equal_rows, " rows for each of ", ranks, " ranks, more than memory can hold");
    }
    add_up(s);
    int fullest = 0;
    for (int r = 0; r < ranks; ++r)
      if (index_t const n = rows_at(s, r); n > s.needed) s.needed = n, fullest = r;
    s.room = s.needed;
    if (s.rule.budget >= 0) {
      s.room = s.rule.budget;
      expects(s.needed <= s.room || s.rule.drops, "dispatch: rank ", fullest, " would get ",
              s.needed, " rows; the budget has ", s.room);
      if (s.needed > s.room) drop(s), add_up(s);
    }
    seat_own(s);
    seat_others(s);
    if (s.rule.messages_known) count_abroad(s);
  }

 private:
  /// Rows of all ranks for every slot, and in s.to those of the ranks before this one, as far as
  /// they have room of their own.
  void add_up(seats& s) {
    int const all = s.place.slot_count(), ranks = s.place.ranks();
    index_t* const total = total_.assign(static_cast<std::size_t>(all), 0);
    index_t *const sent = s.sent.resize(index_t{all}), *const before = s.to.resize(index_t{all});
    for (int from = 0; from < ranks; ++from) {
      index_t const* const n = rows_.row(from);
      if (from == s.rank)
        for (int i = 0; i < all; ++i) before[i] = total[i], sent[i] = n[i];
      for (int i = 0; i < all; ++i) total[i] += n[i];
    }
    if (s.rule.capacity >= 0)
      for (int i = 0; i < all; ++i) {
        index_t const room = s.room_of(i);
        total[i] = room * ranks, before[i] = room * s.rank;
      }
  }

  /// f(slot, its first row) for the slots of rank r. Returns the rows of the rank.
  template <class F>
  index_t for_each_slot(seats const& s, int r, F f) const {
    index_t begin = 0;
    for (int slot = s.place.first(r), end = s.place.first(r + 1); slot < end; ++slot) {
      f(slot, begin);
      begin = aligned(begin + total_[slot], s.rule.alignment);
    }
    return begin;
  }

  /// Where the rows of this rank stand: on the rank of their slot, or in the message to it.
  void seat_own(seats& s) {
    if (s.rule.by_chain) {
      index_t* const final = s.final.resize(index_t{s.place.slot_count()});
      for (int r = 0; r < s.place.ranks(); ++r)
        for_each_slot(s, r, [&](int slot, index_t begin) { final[slot] = s.to[slot] + begin; });
    }
    for (int r = 0; r < s.place.ranks(); ++r) {
      index_t sent = 0;
      for_each_slot(s, r, [&](int slot, index_t begin) {
        s.to[slot] += begin;
        if (!s.rule.by_message || r == s.rank) return;
        s.to[slot] = sent;
        sent += s.equal_rows < 0 ? s.sent[slot] : s.room_of(slot);
      });
    }
  }

  /// Where the rows of all ranks stand here.
  void seat_others(seats& s) {
    int const locals = s.place.count(s.rank), first = s.place.first(s.rank),
              ranks = s.place.ranks();
    index_t *const counts = s.counts.assign(static_cast<std::size_t>(locals), 0),
                   *const offsets = s.offsets.resize(index_t{locals} + 1);
    index_t *arrived = s.arrived.resize(index_t{locals} * ranks),
            *at = s.first_row.resize(index_t{locals} * ranks);
    offsets[locals] = for_each_slot(s, s.rank, [&](int slot, index_t begin) {
      offsets[slot - first] = at[slot - first] = begin;
    });
    for (int from = 0; from < ranks; ++from, arrived += locals, at += locals) {
      index_t const* const n = rows_.row(from) + first;
      for (int l = 0; l < locals; ++l) arrived[l] = n[l], counts[l] += n[l];
      for (int l = 0; from + 1 < ranks && l < locals; ++l)
        at[locals + l] = at[l] + (s.equal_rows < 0 ? n[l] : s.room_of(first + l));
    }
  }

  void count_abroad(seats& s) {
    placement const& place = s.place;
    s.abroad.assign(2 * static_cast<std::size_t>(place.ranks()), 0);
    for (int from = 0; from < place.ranks(); ++from)
      for (int r = 0; r < place.ranks(); ++r) {
        if (from == r) continue;
        index_t const n = seats::sum(rows_.row(from), place.first(r), place.first(r + 1));
        s.abroad[2 * from] += n, s.abroad[2 * r + 1] += n;
      }
  }

  /// With a capacity: rows of a message, the same to and from every rank.
  static index_t widest(seats const& s) {
    index_t most = 0;
    for (int r = 0; r < s.place.ranks(); ++r) {
      index_t n = 0;
      for (int slot = s.place.first(r); slot < s.place.first(r + 1); ++slot) n += s.room_of(slot);
      most = n > most ? n : most;
    }
    return most;
  }

  /// Rows of rank r, padding included, if no slot has more than `level`.
  index_t rows_at(seats const& s, int r, index_t level = uncountable) const {
    index_t all = 0;
    for (int slot = s.place.first(r), end = s.place.first(r + 1); slot < end; ++slot)
      all += aligned(total_[slot] < level ? total_[slot] : level, s.rule.alignment);
    return all;
  }

  /// Every slot keeps as many rows as the largest level allows with which its rank fits, those of
  /// the first ranks first. A route stays in all its shards or in none.
  void drop(seats const& s) {
    placement const& place = s.place;
    auto const whole = rows_;
    auto const rows = split(place);
    if (whole.data != rows.data)
      for (int r = 0; r < place.ranks(); ++r)
        for (int slot = 0; slot < place.slot_count(); ++slot)
          rows.row(r)[slot] = whole.row(r)[slot];
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

  tensor_view<index_t const, 2> rows_{};  // [ranks, slots]: what is split
  buffer<index_t> kept_, split_, total_;
  buffer<int> copies_, begin_;  // of turn_table
};

}  // namespace expar::inline v0::detail
