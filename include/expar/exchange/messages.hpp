// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/exchange/cargo.hpp>
#include <expar/exchange/meeting.hpp>
#include <expar/exchange/message_pair.hpp>

namespace expar::inline v0 {

template <class Comm>
class hops;
template <class Comm, class Layout, class Site>
class overlapped_layer;

/// The transport of ranks that send each other messages: by all_to_all_v, or by all_to_all where a
/// capacity makes all segments equal. A row of another rank is packed into the message when it is
/// scattered, and copied out of it once; a row of the own rank never enters one.
///
/// Layers of which one runs at a time share a transport, and with it message buffers and the pool
/// of sides: `expar::messages x(comm); expar::expert_parallel first(x, shape), second(x, shape);`.
/// It keeps the largest message out, and that in unless the communicator has read_all_to_all_v(),
/// and 888 R + 8 E (R + 1) + 96 bytes for R <= 64 ranks and E experts. The communicator outlives
/// the transport, and that its layers. One thread at a time uses a transport, its layers and their
/// batches.
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
        pair_(memory),
        row_seats_(memory),
        scalar_seats_(memory) {}

 private:
  template <class>
  friend class hops;
  template <class, class, class>
  friend class overlapped_layer;
  template <class, class, class>
  friend class detail::engine;
  template <class>
  friend class detail::routing;
  template <class X, class Batch, class Local, class Say>
  friend detail::told detail::meet(host_context const&, X&, detail::intention const&, Batch const*,
                                   index_t, Local, Say);
  using state = detail::batch_state;

  /// Whether rows on other ranks can be read where they are.
  static constexpr bool reaches_peers = false, has_hops = false;
  static constexpr bool has_ragged_rows = variable_communicator<Comm>;
  static constexpr bool checks_sizes = detail::checks_sizes<Comm>;
  /// Whether messages are read where their senders have them.
  static constexpr bool in_place = detail::reads_in_place<Comm>;
  static constexpr index_t numbers_before = detail::numbers_of_word;

  Comm& comm() const { return *comm_; }
  detail::agreement& agreed() { return agreed_; }
  /// Messages that an operation takes to bring rows to experts.
  static constexpr unsigned hop_count() { return 1; }
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
    row_seats_.resize(index_t{ranks}), scalar_seats_.resize(index_t{ranks});
    pair_.reserve(ranks);
  }
  /// Collective, after reserve() on all ranks.
  void open(host_context const&) {}

  std::uint64_t* own_numbers() { return own_.data(); }
  void say(detail::word& w, std::uint64_t*, state const*) const {
    w.batches = batches_;
    auto const out = pair_.out.capacity(), in = pair_.in.capacity();
    w.room = in_place || out < in ? out : in;
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
    auto const cut = [&] { divide(true, b.at, c.row_bytes(), c.scalar_bytes); };
    exchange(
        ctx, mine, b.at, begun, cut,
        [&](auto ready) {
          checks();
          ready();
          c.make_room(b);
          c.take_from(b);
          if (read != nullptr) read->take_from(b);
          point(b.at, c, pair_.outgoing);
          write(detail::rows_at<T>(row_seats_, b.at), detail::rows_at<S>(scalar_seats_, b.at));
        },
        [&] {
          for_each_piece(ctx, b.at, c, pair_.incoming,
                         [](void* here, void* in_message, index_t bytes, bool streams) {
                           detail::copy_bytes(here, in_message, bytes, streams);
                         });
          c.clear_gaps(b.at);
        },
        more,
        [&] {
          for (detail::opened_side const& s : sides) b.open[static_cast<int>(s.at)] = true;
        });
  }

  /// Collective. Once `checks` pass on every rank, `read(rows, scalars)` finds what `c` holds on
  /// the ranks of their slots at the seats of this rank's routes.
  template <class T, class S, class Checks, class Read>
  void to_tokens(host_context const& ctx, detail::intention const& mine, state& b,
                 detail::cargo<T, S>& c, Checks checks, Read read) {
    auto const cut = [&] { divide(false, b.at, c.row_bytes(), c.scalar_bytes); };
    exchange(
        ctx, mine, b.at, !checks_sizes && mine.phase != 0, cut,
        [&](auto ready) {
          checks();
          ready();
          c.take_from(b);
          for_each_piece(ctx, b.at, c, pair_.outgoing,
                         [](void* here, void* in_message, index_t bytes, bool streams) {
                           detail::copy_bytes(in_message, here, bytes, streams);
                         });
        },
        [&] {
          point(b.at, c, pair_.incoming);
          read(detail::rows_at<T const>(row_seats_, b.at),
               detail::rows_at<S const>(scalar_seats_, b.at));
        },
        false, [] {});
  }

  /// Where this rank can read rows of a side without a message: those of its own slots.
  template <class T, class S>
  detail::slot_rows<T const> readable(state const& b, detail::cargo<T, S> const& c,
                                      detail::buffer<detail::seat>& table) const {
    for (int p = 0; p < b.at.place.ranks(); ++p)
      table[p] = p == b.at.rank ? detail::seat_of(c.rows) : detail::seat{nullptr, 0};
    return detail::rows_at<T const>(table, b.at);
  }

  /// Divides both messages. `to_experts`: this rank sends its tokens' rows; else it gets them.
  void divide(bool to_experts, detail::seats const& s, index_t row_bytes, index_t scalar_bytes) {
    bool const equal = s.equal_rows >= 0;
    int const ranks = s.place.ranks(), own = equal ? -1 : s.rank;
    (to_experts ? pair_.outgoing : pair_.incoming)
        .divide(
            ranks, [&](int p) { return equal ? s.equal_rows : s.rows_to(p); }, row_bytes,
            scalar_bytes, own);
    (to_experts ? pair_.incoming : pair_.outgoing)
        .divide(
            ranks, [&](int p) { return equal ? s.equal_rows : s.rows_from(p); }, row_bytes,
            scalar_bytes, own);
    if (s.rule.messages_known) {  // as much as fit() asks
      auto const most = static_cast<std::size_t>(s.message_bytes(s.rank, row_bytes + scalar_bytes));
      pair_.out.reserve(most);
      if (!in_place) pair_.in.reserve(most);
    }
    pair_.out.resize(pair_.outgoing.bytes());
    if (!in_place) pair_.in.resize(pair_.incoming.bytes());
    pair_.point_out();
  }

  /// The seats of all ranks: in the rows here, or in the messages at `pair_.places`.
  template <class T, class S>
  void point(detail::seats const& s, detail::cargo<T, S> const& c,
             detail::segments const& message) {
    for (int p = 0; p < s.place.ranks(); ++p)
      if (p == s.rank) {
        row_seats_[p] = detail::seat_of(c.rows);
        scalar_seats_[p] = {reinterpret_cast<std::byte*>(c.scalars), c.scalar_bytes};
      } else {
        row_seats_[p] = {pair_.places[p] + message.rows_at, c.row_bytes()};
        scalar_seats_[p] = {pair_.places[p] + message.scalars_at(p), c.scalar_bytes};
      }
  }

  template <class F>
  static void for_each_foreign_run(host_context const& ctx, detail::seats const& s, index_t bytes,
                                   F f) {
    detail::for_each_foreign_run(ctx, s, 0, s.locals(), bytes, f);
  }

  /// f(here, in the message, bytes, past the caches?) for the rows and scalars that come from other
  /// ranks.
  template <class T, class S, class F>
  void for_each_piece(host_context const& ctx, detail::seats const& s, detail::cargo<T, S> const& c,
                      detail::segments const& message, F f) const {
    bool const streams = detail::copy_exceeds_caches(ctx, s.rows(), c.row_bytes());
    for_each_foreign_run(
        ctx, s, c.row_bytes(), [&](int p, index_t at, index_t first, index_t rows) {
          std::byte* const to = pair_.places[p] + message.rows_at + at * c.row_bytes();
          index_t const together = c.rows.strides[0] == c.columns ? rows : 1;
          for (index_t i = 0; i < rows && c.columns >= 0; i += together)
            f(c.rows.row(first + i), to + i * c.row_bytes(), together * c.row_bytes(), streams);
          if (c.scalar_bytes != 0)
            f(c.scalars + first, pair_.places[p] + message.scalars_at(p) + at * c.scalar_bytes,
              rows * c.scalar_bytes, false);
        });
  }

  /// Whether the messages of no rank have to grow for the rows of `b`: all ranks know of all.
  bool fit(detail::told const& met, state const& b, index_t bytes_of_row) const {
    for (int r = 0; r < b.at.place.ranks(); ++r)
      if (static_cast<std::uint64_t>(b.at.message_bytes(r, bytes_of_row)) > met.word_of(r).room)
        return false;
    return true;
  }

  template <class Cut, class Local, class Behind, class Agreed>
  void exchange(host_context const& ctx, detail::intention const& mine, detail::seats const& s,
                bool begun, Cut cut, Local local, Behind behind, bool more, Agreed agreed) {
    pair_.template exchange<in_place>(ctx, comm(), agreed_, mine,
                                      {begun, s.rule.capacity >= 0, more}, cut, local, behind,
                                      agreed);
  }

  Comm* comm_;
  std::pmr::memory_resource* memory_;
  detail::shared<detail::side_pool> pool_;
  detail::agreement agreed_;
  detail::buffer<std::uint64_t> own_, numbers_;
  detail::message_pair<Comm> pair_;
  detail::buffer<detail::seat> row_seats_, scalar_seats_;
  std::uint64_t batches_ = 0;
};

template <class Comm>
messages(Comm&, std::pmr::memory_resource* = std::pmr::get_default_resource()) -> messages<Comm>;

}  // namespace expar::inline v0
