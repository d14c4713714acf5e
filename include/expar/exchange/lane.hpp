// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <optional>
#include <vector>

#include <expar/exchange/agreement.hpp>
#include <expar/exchange/cargo.hpp>
#include <expar/exchange/ticket.hpp>

namespace expar::inline v0 {

/// Local slots [first, last) of a batch.
struct slot_range {
  int first, last;
};

namespace detail {

/// The messages of one batch in one direction, cut into chunks, each of which is started and
/// finished by itself. Chunk c of a message is what belongs to chunk c of the slots of the rank
/// that has them. Rows keep their order, so that it is a run of the rows of the whole message.
template <class Comm>
class lane {
 public:
  /// `to_experts`: ranks send their tokens' rows; else they get them.
  lane(bool to_experts, std::pmr::memory_resource* memory)
      : out(memory),
        in(memory),
        to_experts_(to_experts),
        row_seats_(memory),
        scalar_seats_(memory),
        message_of_(memory),
        first_(memory) {}

  buffer<std::byte> out, in;

  static slot_range chunk_of(int slots, int chunk, int chunks) {
    return {static_cast<int>(index_t{slots} * chunk / chunks),
            static_cast<int>(index_t{slots} * (chunk + 1) / chunks)};
  }
  slot_range local_chunk(seats const& s, int chunk) const {
    return chunk_of(s.locals(), chunk, chunks());
  }

  /// Memory for so many chunks.
  void reserve(int chunks) {
    while (this->chunks() < chunks) parts_.emplace_back(out.resource());
  }
  /// Divides the messages of a batch, and takes memory for them.
  void divide(seats const& s, index_t row_bytes, index_t scalar_bytes) {
    int const ranks = s.place.ranks();
    index_t out_bytes = 0, in_bytes = 0;
    for (int c = 0; c < chunks(); ++c) {
      part& p = at(c);
      p.ticket.reset();
      auto const of_tokens = [&](int r) { return rows_abroad(s, r, c); };
      auto const of_experts = [&](int r) { return rows_here(s, r, c); };
      for (segments* m : {&p.outgoing, &p.incoming}) m->reserve(ranks);
      tokens_side(p).divide(ranks, of_tokens, row_bytes, scalar_bytes, s.rank);
      experts_side(p).divide(ranks, of_experts, row_bytes, scalar_bytes, s.rank);
      p.out_at = out_bytes, p.in_at = in_bytes;
      out_bytes = size_sum(out_bytes, p.outgoing.bytes());
      in_bytes = size_sum(in_bytes, p.incoming.bytes());
    }
    out.resize(out_bytes), in.resize(in_bytes);
    row_seats_.resize(index_t{ranks} * chunks()), scalar_seats_.resize(index_t{ranks} * chunks());
    number_slots(s);
  }

  /// Sends chunk c, as it is now, with this word in front of all that goes to a rank.
  void start(host_context const& ctx, Comm& comm, int c, word const& w) {
    part& p = at(c);
    std::byte* const from = out.data() + p.out_at;
    for (int r = 0; r < comm.size(); ++r)
      if (p.outgoing.counts()[index(r)] != 0)
        std::memcpy(from + p.outgoing.displacements()[index(r)], &w, sizeof w);
    p.ticket.emplace(start_all_to_all_v(ctx, comm, from, p.outgoing.counts(),
                                        p.outgoing.displacements(), in.data() + p.in_at,
                                        p.incoming.counts(), p.incoming.displacements()));
  }
  /// Waits for chunk c.
  void finish(int c) {
    if (at(c).ticket) at(c).ticket->wait();
    at(c).ticket.reset();
  }
  /// Where the word stands that rank r has sent in front of chunk c.
  std::byte const* word_of(int c, int r) {
    return in.data() + at(c).in_at + at(c).incoming.displacements()[index(r)];
  }

  /// Where rows stand, and scalars, for routes of this rank's tokens: `c` has those of its own.
  template <class T, class S>
  void take_seats(seats const& s, cargo<T, S> const& c) {
    for (int r = 0; r < s.place.ranks(); ++r)
      for (int k = 0; k < chunks(); ++k) {
        index_t const i = index_t{r} * chunks() + k;
        if (r == s.rank) {
          row_seats_[i] = seat_of(c.rows);
          scalar_seats_[i] = {reinterpret_cast<std::byte*>(c.scalars), c.scalar_bytes};
        } else {
          auto const& m = tokens_side(at(k));
          std::byte* const first = place_of(at(k), to_experts_, r);
          row_seats_[i] = {first + m.rows_at, c.row_bytes()};
          scalar_seats_[i] = {first + m.scalars_at(r), c.scalar_bytes};
        }
      }
  }
  template <class T>
  slot_rows<T> rows() const {
    return {row_seats_.data(), message_of_.data(), first_.data()};
  }
  template <class S>
  slot_rows<S> scalars() const {
    return {scalar_seats_.data(), message_of_.data(), first_.data()};
  }

  /// f(here, in the message, bytes, past the caches?) for rows and scalars of chunk k that belong
  /// to other ranks' tokens.
  template <class T, class S, class F>
  void for_each_piece(host_context const& ctx, seats const& s, cargo<T, S> const& c, int k, F f) {
    bool const streams = copy_exceeds_caches(ctx, s.rows(), c.row_bytes());
    auto const& m = experts_side(at(k));
    auto const [first_slot, last_slot] = local_chunk(s, k);
    for_each_foreign_run(ctx, s, first_slot, last_slot, c.row_bytes(),
                         [&](int r, index_t place, index_t first, index_t rows) {
                           std::byte* const segment = place_of(at(k), !to_experts_, r);
                           std::byte* const to = segment + m.rows_at + place * c.row_bytes();
                           f(c.rows.row(first), to, rows * c.row_bytes(), streams);
                           if (c.scalar_bytes != 0)
                             f(c.scalars + first,
                               segment + m.scalars_at(r) + place * c.scalar_bytes,
                               rows * c.scalar_bytes, false);
                         });
  }
  template <class T, class S>
  void unpack(host_context const& ctx, seats const& s, cargo<T, S> const& c, int k) {
    for_each_piece(ctx, s, c, k,
                   [](void* here, void const* in_message, index_t bytes, bool streams) {
                     copy_bytes(here, in_message, bytes, streams);
                   });
  }
  template <class T, class S>
  void pack(host_context const& ctx, seats const& s, cargo<T, S> const& c, int k) {
    for_each_piece(ctx, s, c, k,
                   [](void const* here, void* in_message, index_t bytes, bool streams) {
                     copy_bytes(in_message, here, bytes, streams);
                   });
  }

 private:
  using ticket_of = decltype(start_all_to_all_v(
      std::declval<host_context const&>(), std::declval<Comm&>(), nullptr, byte_counts{},
      byte_counts{}, nullptr, byte_counts{}, byte_counts{}));
  struct part {
    explicit part(std::pmr::memory_resource* memory) : outgoing(memory), incoming(memory) {}

    segments outgoing, incoming;
    index_t out_at = 0, in_at = 0;  // where they begin
    std::optional<ticket_of> ticket{};
  };

  static std::size_t index(int i) { return static_cast<std::size_t>(i); }
  int chunks() const { return static_cast<int>(parts_.size()); }
  part& at(int chunk) { return parts_[index(chunk)]; }
  segments& tokens_side(part& p) const { return to_experts_ ? p.outgoing : p.incoming; }
  segments& experts_side(part& p) const { return to_experts_ ? p.incoming : p.outgoing; }
  /// The segment of rank r, in the message that goes or in that which comes.
  std::byte* place_of(part const& p, bool goes, int r) {
    return goes ? out.data() + p.out_at + p.outgoing.displacements()[index(r)]
                : in.data() + p.in_at + p.incoming.displacements()[index(r)];
  }

  static slot_range slots_of(seats const& s, int r, int chunk, int chunks) {
    auto const [first, last] = chunk_of(s.place.count(r), chunk, chunks);
    return {s.place.first(r) + first, s.place.first(r) + last};
  }
  /// Rows of this rank's tokens for a slot, in the message to its rank.
  static index_t rows_for(seats const& s, int slot) {
    return s.equal_rows >= 0 ? s.room_of(slot) : s.sent[slot];
  }
  index_t rows_abroad(seats const& s, int r, int chunk) const {
    index_t n = 0;
    auto const [first, last] = slots_of(s, r, chunk, chunks());
    for (int slot = first; slot < last; ++slot) n += rows_for(s, slot);
    return n;
  }
  index_t rows_here(seats const& s, int r, int chunk) const {
    index_t n = 0;
    auto const [first, last] = local_chunk(s, chunk);
    for (int l = first; l < last; ++l)
      n += s.equal_rows >= 0 ? s.room_of(s.place.first(s.rank) + l)
                             : s.arrived[index_t{r} * s.locals() + l];
    return n;
  }
  /// For each slot the message of its rank and chunk, and the first row in that.
  void number_slots(seats const& s) {
    index_t const slots = s.place.slot_count();
    message_of_.resize(slots), first_.resize(slots);
    for (int r = 0; r < s.place.ranks(); ++r)
      for (int c = 0; c < chunks(); ++c) {
        index_t before = 0;
        auto const [first, last] = slots_of(s, r, c, chunks());
        for (int slot = first; slot < last; ++slot) {
          message_of_[slot] = r * chunks() + c;
          first_[slot] = r == s.rank ? s.to[slot] : before;
          before += rows_for(s, slot);
        }
      }
  }

  bool to_experts_;
  std::vector<part> parts_;
  buffer<seat> row_seats_, scalar_seats_;  // of the messages
  buffer<int> message_of_;
  buffer<index_t> first_;
};

}  // namespace detail
}  // namespace expar::inline v0
