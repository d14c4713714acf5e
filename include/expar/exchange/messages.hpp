// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/exchange/cargo.hpp>
#include <expar/exchange/meeting.hpp>
#include <expar/exchange/segments.hpp>

namespace expar::inline v0 {

/// The transport of ranks that send each other messages: by all_to_all_v, or by all_to_all where a
/// capacity makes all segments equal. A row of another rank is packed into the message when it is
/// scattered, and copied out of it once; a row of the own rank never enters one.
///
/// Layers of which one runs at a time share a transport, and with it message buffers and the pool
/// of sides: `expar::messages x(comm); expar::expert_parallel first(x, shape), second(x, shape);`.
/// It keeps the largest message out and in, and 832 R + 8 E (R + 1) + 32 (S + max(S, R L)) + 96
/// bytes for R <= 64 ranks, E experts and S slots, of which L are local.
/// The communicator outlives the transport, and that its layers. One thread at a time uses a
/// transport, its layers and their batches.
template <class Comm>
class messages {
  static_assert(collective_communicator<Comm>,
                "expar: messages need a communicator with all_to_all, all_gather and barrier, or "
                "with all_to_all_v");

 public:
  explicit messages(Comm& comm,
                    std::pmr::memory_resource* memory = std::pmr::get_default_resource())
      : comm_(&comm),
        memory_(memory),
        agreed_(memory),
        own_(memory),
        numbers_(memory),
        outgoing_(memory),
        incoming_(memory),
        out_(memory),
        in_(memory),
        words_(memory),
        row_seats_(memory),
        scalar_seats_(memory) {}

 private:
  template <class, class, class>
  friend class detail::engine;
  template <class>
  friend class detail::routing;
  template <class X, class Batch, class Local, class Say>
  friend detail::told detail::meet(host_context const&, X&, detail::intention const&, Batch const*,
                                   index_t, Local, Say);
  using state = detail::batch_state;

  /// Whether rows on other ranks can be read where they are.
  static constexpr bool reaches_peers = false;
  static constexpr bool has_ragged_rows = variable_communicator<Comm>;
  static constexpr bool checks_sizes = detail::checks_sizes<Comm>;
  static constexpr index_t numbers_before = detail::numbers_of_word;

  Comm& comm() const { return *comm_; }
  detail::agreement& agreed() { return agreed_; }
  /// The largest number of a batch here; ranks agree on the next when they meet.
  std::uint64_t& batches() { return batches_; }
  detail::shared<detail::side_pool> pool() const { return pool_; }

  /// Memory for meetings of so many numbers, and for tables of so many slots.
  void reserve(index_t numbers, placement const& place) {
    int const ranks = place.ranks();
    agreed_.reserve(ranks);
    if (pool_.get() == nullptr)
      pool_ = detail::shared<detail::side_pool>(new detail::local_sides(memory_));
    numbers += numbers_before;
    if (numbers > static_cast<index_t>(own_.size())) own_.resize(numbers);
    if (numbers * ranks > static_cast<index_t>(numbers_.size())) numbers_.resize(numbers * ranks);
    row_seats_.reserve(static_cast<std::size_t>(place.slot_count()));
    scalar_seats_.reserve(static_cast<std::size_t>(place.slot_count()));
    int const by_rank = ranks * place.most();
    int const blocks = place.slot_count() > by_rank ? place.slot_count() : by_rank;
    for (detail::segments* s : {&outgoing_, &incoming_}) s->reserve(ranks, blocks);
    words_.resize(2 * sizeof(detail::word) * static_cast<std::size_t>(ranks));
  }
  /// Collective, after reserve() on all ranks.
  void open(host_context const&) {}

  std::uint64_t* own_numbers() { return own_.data(); }
  void say(detail::word& w, std::uint64_t*, state const*) const {
    w.batches = batches_;
    w.room = out_.capacity() < in_.capacity() ? out_.capacity() : in_.capacity();
  }
  std::uint64_t const* gather(host_context const& ctx, detail::word& mine,
                              detail::failure const& wrong, index_t count, index_t& pitch) {
    pitch = count;
    detail::keep_if_lost(
        [&] { agreed_.gather(ctx, comm(), mine, wrong, own_.data(), numbers_.data(), count); },
        own_, numbers_);
    return numbers_.data();
  }

  /// Collective. Once `checks` pass on every rank, what `write(rows, scalars)` puts at the seats of
  /// this rank's routes is in `c` on the ranks of their slots. `met`: what ranks told if they have
  /// met in this call. `more`: whether another message follows in it.
  template <class T, class S, class Y, class V, class Checks, class Write>
  void to_experts(host_context const& ctx, detail::intention const& mine, state& b,
                  detail::cargo<T, S>& c, std::initializer_list<detail::opened_side> sides,
                  detail::cargo<Y, V>* read, detail::told const& met, bool more, Checks checks,
                  Write write) {
    bool const begun =
        !checks_sizes && met.numbers != nullptr && fit(met, b, c.row_bytes() + c.scalar_bytes);
    auto const cut = [&] { divide(outgoing_, incoming_, b.at, c.row_bytes(), c.scalar_bytes); };
    exchange(ctx, mine, b.at, begun, cut, [&](auto ready) {
      checks();
      ready();
      c.make_room(b);
      c.take_from(b);
      if (read != nullptr) read->take_from(b);
      point(b.at, c, outgoing_, out_.data());
      write(detail::slot_rows<T>{row_seats_.data()}, detail::slot_rows<S>{scalar_seats_.data()});
    });
    for (detail::opened_side const& s : sides) b.open[static_cast<int>(s.at)] = true;
    agreed_.behind_message(
        [&] {
          for_each_foreign_block(ctx, b.at, [&](index_t block, index_t first, index_t rows) {
            std::byte const* const from = in_.data() + incoming_.row_start()[block];
            for (index_t i = 0; i < rows && c.columns >= 0; ++i)
              detail::copy_bytes(c.rows.row(first + i), from + i * c.row_bytes(), c.row_bytes());
            if (c.scalar_bytes != 0)
              detail::copy_bytes(c.scalars + first, in_.data() + incoming_.scalar_start()[block],
                                 rows * c.scalar_bytes);
          });
          c.clear_gaps(b.at);
        },
        more);
  }

  /// Collective. Once `checks` pass on every rank, `read(rows, scalars)` finds what `c` holds on
  /// the ranks of their slots at the seats of this rank's routes.
  template <class T, class S, class Checks, class Read>
  void to_tokens(host_context const& ctx, detail::intention const& mine, state& b,
                 detail::cargo<T, S>& c, Checks checks, Read read) {
    auto const cut = [&] { divide(incoming_, outgoing_, b.at, c.row_bytes(), c.scalar_bytes); };
    exchange(ctx, mine, b.at, !checks_sizes && mine.phase != 0, cut, [&](auto ready) {
      checks();
      ready();
      c.take_from(b);
      for_each_foreign_block(ctx, b.at, [&](index_t block, index_t first, index_t rows) {
        std::byte* const to = out_.data() + outgoing_.row_start()[block];
        for (index_t i = 0; i < rows && c.columns >= 0; ++i)
          detail::copy_bytes(to + i * c.row_bytes(), c.rows.row(first + i), c.row_bytes());
        if (c.scalar_bytes != 0)
          detail::copy_bytes(out_.data() + outgoing_.scalar_start()[block], c.scalars + first,
                             rows * c.scalar_bytes);
      });
    });
    agreed_.behind_message([&] {
      point(b.at, c, incoming_, in_.data());
      read(detail::slot_rows<T const>{row_seats_.data()},
           detail::slot_rows<S const>{scalar_seats_.data()});
    });
  }

  /// Where this rank can read rows of a side without a message: those of its own slots.
  template <class T, class S>
  detail::slot_rows<T const> readable(state const& b, detail::cargo<T, S> const& c,
                                      detail::buffer<detail::seat>& table) const {
    detail::seats const& s = b.at;
    for (int slot = 0; slot < s.place.slot_count(); ++slot)
      table[slot] = s.is_own(slot) ? own_seat(c.rows, s.to[slot]) : detail::seat{nullptr, 0};
    return {table.data()};
  }

  /// `of_slots`: the segments whose blocks are slots, from or to the rank of each; `of_rows`: those
  /// whose blocks are the rows here, from or to each rank for each local slot.
  void divide(detail::segments& of_slots, detail::segments& of_rows, detail::seats const& s,
              index_t row_bytes, index_t scalar_bytes) {
    bool const equal = s.rule.capacity >= 0;
    int const locals = s.locals();
    of_slots.divide(
        s.place.ranks(),
        [&](int slot) { return equal            ? s.room_of(slot)
                               : s.is_own(slot) ? 0
                                                : s.sent[slot]; },
        [&](int rank) { return s.place.first(rank); }, row_bytes, scalar_bytes, s.equal_rows(),
        s.rank);
    of_rows.divide(
        s.place.ranks(),
        [&](int block) {
          return equal                      ? s.room_of(s.place.first(s.rank) + block % locals)
                 : block / locals == s.rank ? 0
                                            : s.arrived[block];
        },
        [&](int rank) { return rank * locals; }, row_bytes, scalar_bytes, s.equal_rows(), s.rank);
    if (s.rule.messages_known) {  // as much as fit() asks
      auto const most = static_cast<std::size_t>(s.message_bytes(s.rank, row_bytes + scalar_bytes));
      out_.reserve(most), in_.reserve(most);
    }
    out_.resize(outgoing_.bytes());
    in_.resize(incoming_.bytes());
  }

  template <class T>
  static detail::seat own_seat(tensor_view<T, 2> const& rows, index_t first) {
    auto* const data = reinterpret_cast<std::byte const*>(rows.data);
    index_t const pitch = rows.strides[0] * index_t{sizeof(T)};
    return {const_cast<std::byte*>(data) + first * pitch, pitch};
  }

  /// The seats of all slots: in the rows here, or in a message.
  template <class T, class S>
  void point(detail::seats const& s, detail::cargo<T, S> const& c, detail::segments const& message,
             std::byte* bytes) {
    int const n = s.place.slot_count();
    row_seats_.resize(index_t{n}), scalar_seats_.resize(index_t{n});
    for (int slot = 0; slot < n; ++slot)
      if (s.is_own(slot)) {
        if (c.columns >= 0) row_seats_[slot] = own_seat(c.rows, s.to[slot]);
        scalar_seats_[slot] = {
            reinterpret_cast<std::byte*>(c.scalars) + s.to[slot] * c.scalar_bytes, c.scalar_bytes};
      } else {
        row_seats_[slot] = {bytes + message.row_start()[slot], c.row_bytes()};
        scalar_seats_[slot] = {bytes + message.scalar_start()[slot], c.scalar_bytes};
      }
  }

  /// f(block, first row, rows) for what came from each other rank for each local slot.
  template <class F>
  static void for_each_foreign_block(host_context const& ctx, detail::seats const& s, F f) {
    int const locals = s.locals();
    ctx.for_each_chunk(s.blocks(), 1, [&](int, index_t first, index_t last) {
      for (index_t b = first; b < last; ++b)
        if (b / locals != s.rank) f(b, s.first_row[b], s.arrived[b]);
    });
  }

  /// Whether the messages of no rank have to grow for the rows of `b`: all ranks know of all.
  bool fit(detail::told const& met, state const& b, index_t bytes_of_row) const {
    for (int r = 0; r < b.at.place.ranks(); ++r)
      if (static_cast<std::uint64_t>(b.at.message_bytes(r, bytes_of_row)) > met.word_of(r).room)
        return false;
    return true;
  }

  /// Collective. Runs local(ready), which fills the message out once it has called ready(), and
  /// exchanges messages. Where nobody finds out that a rank is elsewhere ranks ask before, unless
  /// they have `begun`; then they know the sizes. A rank that does not get so far sends its word
  /// alone, which is no message.
  template <class Cut, class Local>
  void exchange(host_context const& ctx, detail::intention const& mine, detail::seats const& s,
                bool begun, Cut cut, Local local) {
    int const ranks = comm().size();
    bool divided = false;
    auto const ready = [&] {
      if (!divided) cut();
      divided = true;
    };
    if (ranks == 1) return local(ready);
    if (begun) ready();
    detail::failure const wrong = agreed_.attempt([&] { local(ready); });
    std::byte *out = out_.data(), *in = in_.data();
    if (!divided) {
      outgoing_.words_alone(ranks), incoming_.words_alone(ranks);
      out = words_.data(), in = out + outgoing_.bytes();
    }
    auto w = detail::agreement::word_of(mine, wrong);
    detail::keep_if_lost(
        [&] {
          if (!begun) agreed_.begin(ctx, comm(), w, wrong);
          agreed_.hear(
              ctx, comm(), w, wrong,
              [&] {
                for (int p = 0; p < ranks; ++p)
                  if (outgoing_.counts()[unsigned_of(p)] != 0)
                    std::memcpy(out + outgoing_.displacements()[unsigned_of(p)], &w, sizeof w);
                swap(ctx, s, out, in);
              },
              [&](int r) { return in + incoming_.displacements()[unsigned_of(r)]; });
        },
        out_, in_);
  }
  void swap(host_context const& ctx, detail::seats const& s, std::byte const* out, std::byte* in) {
    if constexpr (variable_communicator<Comm>)
      if (s.rule.capacity < 0) {
        comm().all_to_all_v(ctx, out, outgoing_.counts(), outgoing_.displacements(), in,
                            incoming_.counts(), incoming_.displacements());
        return;
      }
    all_to_all(ctx, comm(), out, in, outgoing_.counts()[0], agreed_.counts());
  }
  static constexpr std::size_t unsigned_of(int rank) { return static_cast<std::size_t>(rank); }

  Comm* comm_;
  std::pmr::memory_resource* memory_;
  detail::shared<detail::side_pool> pool_;
  detail::agreement agreed_;
  detail::buffer<std::uint64_t> own_, numbers_;
  detail::segments outgoing_, incoming_;
  detail::buffer<std::byte> out_, in_, words_;
  detail::buffer<detail::seat> row_seats_, scalar_seats_;
  std::uint64_t batches_ = 0;
};

template <class Comm>
messages(Comm&, std::pmr::memory_resource* = std::pmr::get_default_resource()) -> messages<Comm>;

}  // namespace expar::inline v0
