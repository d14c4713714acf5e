// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include <expar/exchange/cargo.hpp>
#include <expar/exchange/meeting.hpp>

namespace expar::inline v0 {

/// The transport of ranks that write and read each other's memory: a row is copied once, from the
/// token to its final place, and read there. Between phases, in which a rank works alone, ranks
/// meet by exchange_phase().
///
/// Sides stand in windows of one pool, each as large on every rank as the fullest rank needs (or as
/// the budget allows). Ranks agree which window serves, and that it grows, when they meet anyway: a
/// window that one rank has released serves again once all have. Sharing, lifetimes and threads as
/// for `messages`.
template <class Comm>
class windows {
  static_assert(window_communicator<Comm>,
                "expar: windows need a communicator with windows (tier 3); messages need none");

 public:
  explicit windows(Comm& comm, std::pmr::memory_resource* memory = std::pmr::get_default_resource())
      : comm_(&comm), agreed_(memory), own_(memory), row_seats_(memory), scalar_seats_(memory) {}

 private:
  template <class, class, class>
  friend class detail::engine;
  template <class>
  friend class detail::routing;
  template <class X, class Batch, class Local, class Say>
  friend detail::told detail::meet(host_context const&, X&, detail::intention const&, Batch const*,
                                   index_t, Local, Say);
  using state = detail::batch_state;
  using window = decltype(std::declval<Comm&>().allocate_window(std::size_t{}));

  static constexpr bool reaches_peers = true, has_hops = false, has_ragged_rows = true,
                        checks_sizes = true;
  static constexpr int most_pieces = 1024;
  // The numbers of a meeting: the word; how many pieces there are; which of them the sides of the
  // batch have (12 bits each); and a bit for each piece that is free. Of an operation: whether the
  // caller brings rows.
  static constexpr index_t numbers_before = detail::numbers_of_word + 2 + most_pieces / 64;

  /// Windows of equal size on all ranks, and which of them no batch of this rank holds.
  struct window_pool : detail::side_pool {
    struct piece {
      std::vector<window> memory{};  // one, unless ranks failed to make it
      index_t bytes = 0;
      bool free = false;
    };
    window_pool() { pieces.reserve(most_pieces); }
    void take(detail::side_memory&, index_t, index_t) override {}
    void put_back(int i) noexcept override { at(i).free = true; }
    piece& at(int i) noexcept { return pieces[static_cast<std::size_t>(i)]; }
    std::vector<piece> pieces;
  };

  Comm& comm() const { return *comm_; }
  detail::agreement& agreed() { return agreed_; }
  std::uint64_t& batches() { return batches_; }
  detail::shared<detail::side_pool> pool() const {
    return detail::shared<detail::side_pool>::one_more(pool_.get());
  }

  void say(detail::word& w, std::uint64_t* own, state const* b) const {
    w.batches = batches_, w.turn = turn_ + 1;
    if (b == nullptr) return;
    own += detail::numbers_of_word;
    own[0] = pool_->pieces.size(), own[1] = 0;
    for (int s = 0; s < detail::side_count; ++s)
      own[1] |= static_cast<std::uint64_t>(b->sides[s].piece() + 1) << 12 * s;
    own += 2;
    for (std::size_t i = 0; i < pool_->pieces.size(); ++i) {
      if (i % 64 == 0) own[i / 64] = 0;
      own[i / 64] |= std::uint64_t{pool_->pieces[i].free} << i % 64;
    }
  }

  void reserve(index_t numbers, placement const& place) {
    agreed_.reserve(place.ranks());
    if (pool_.get() == nullptr) pool_ = detail::shared(new window_pool);
    numbers += numbers_before;
    if (numbers > static_cast<index_t>(own_.size())) own_.resize(numbers);
    words_.reserve(1);
    row_seats_.resize(index_t{place.ranks()}), scalar_seats_.resize(index_t{place.ranks()});
  }
  /// Collective, after reserve() on all ranks: the window in which ranks tell each other numbers.
  /// It has those of three meetings, so that no rank overwrites what another still reads.
  void open(host_context const& ctx) {
    auto const numbers = static_cast<index_t>(own_.size());
    if (numbers <= opened_) return;
    detail::intention mine{detail::step::construct, 0, 0, 1};
    std::vector<window> opened;
    agreed_.together(ctx, comm(), detail::agreement::word_of(mine, {}), [&] {
      opened.push_back(comm().allocate_window(
          static_cast<std::size_t>(3 * comm().size() * numbers) * sizeof(std::uint64_t)));
    });
    ++mine.phase;
    agreed_.run(ctx, comm(), mine, [&] {
      for (int p = 0; p < comm().size(); ++p)
        detail::expects(opened.front().view().peer(p, 0) != nullptr,
                        "expert_parallel: the window of rank ", p, " cannot be reached from rank ",
                        comm().rank());
    });
    words_.swap(opened);
    opened_ = numbers;
  }

  std::uint64_t* own_numbers() { return own_.data(); }
  /// `pitch` is the same in every meeting, so that ranks find what others intend even if they call
  /// other operations. A rank that is at another turn finds words of another one.
  std::uint64_t const* gather(host_context const& ctx, detail::word& mine,
                              detail::failure const& wrong, index_t count, index_t& pitch) {
    pitch = opened_;
    auto const view = words_.front().view();
    auto const of = [&](int rank) {
      auto const place = static_cast<index_t>(mine.turn % 3) * comm().size() + rank;
      return static_cast<std::size_t>(place * opened_) * sizeof(std::uint64_t);
    };
    auto const tell = [&](index_t numbers) {
      std::memcpy(own_.data(), &mine, sizeof mine);
      for (int p = 0; p < comm().size(); ++p)
        std::memcpy(view.peer(p, of(comm().rank())), own_.data(),
                    static_cast<std::size_t>(numbers) * sizeof(std::uint64_t));
    };
    auto const numbers_of = [&](int rank) {
      return static_cast<std::uint64_t const*>(view.peer(comm().rank(), of(rank)));
    };
    try {
      agreed_.hear(
          ctx, comm(), mine, wrong,
          [&] {
            turn_ = mine.turn;
            tell(count);
            comm().exchange_phase(ctx);
          },
          numbers_of);
    } catch (lost_rank const&) {
      throw;
    } catch (...) {
      // One that comes to this turn later must not take this word for a new one.
      mine = {.turn = mine.turn};
      tell(detail::numbers_of_word);
      throw;
    }
    return numbers_of(0);
  }

  /// Collective. Once `checks` pass on every rank, what `write(rows, scalars)` puts at the seats of
  /// this rank's routes is in `c` on the ranks of their slots. Opens `sides`, that of `c` among
  /// them. `met`: the words of the ranks, if they have met for this already. `read`: a side that
  /// all ranks read meanwhile.
  template <class T, class S, class Y, class V, class Checks, class Write>
  void to_experts(host_context const& ctx, detail::intention mine, state& b, detail::cargo<T, S>& c,
                  std::initializer_list<detail::opened_side> sides, detail::cargo<Y, V>* read,
                  detail::told met, bool, Checks checks, Write write) {
    if (met.numbers == nullptr) met = agree(ctx, mine, b, read, checks);
    for (detail::opened_side const& s : sides) allot(ctx, mine, b, s, met);
    if (read != nullptr) bring(ctx, mine, b, *read, met);
    tensor_view<T, 2> const callers = c.rows;
    point(b, c);
    finish(ctx, mine, [&] {
      write(detail::rows_at<T>(row_seats_, b.at), detail::rows_at<S>(scalar_seats_, b.at));
      c.clear_gaps(b.at);
    });
    if (c.callers) agreed_.behind_message([&] { copy_rows(ctx, c.rows, callers); });
  }

  /// Collective. Once `checks` pass on every rank, `read(rows, scalars)` finds what `c` holds on
  /// the ranks of their slots at the seats of this rank's routes.
  template <class T, class S, class Checks, class Read>
  void to_tokens(host_context const& ctx, detail::intention mine, state& b, detail::cargo<T, S>& c,
                 Checks checks, Read read) {
    auto const met = agree(ctx, mine, b, &c, checks);
    bring(ctx, mine, b, c, met);
    point(b, c);
    finish(ctx, mine, [&] {
      read(detail::rows_at<T const>(row_seats_, b.at),
           detail::rows_at<S const>(scalar_seats_, b.at));
    });
  }

  /// Where this rank can read the rows of a side without a message: all of them.
  template <class T, class S>
  detail::slot_rows<T const> readable(state const& b, detail::cargo<T, S> const& c,
                                      detail::buffer<detail::seat>& table) const {
    seats_of(b, c, table, nullptr);
    return detail::rows_at<T const>(table, b.at);
  }

  // An operation has at least two meetings. After the first no rank works on what is written then;
  // after the last all rows are there, and no rank reads them any more.
  template <class T, class S, class Checks>
  detail::told agree(host_context const& ctx, detail::intention mine, state const& b,
                     detail::cargo<T, S> const* read, Checks checks) {
    return detail::meet(ctx, *this, mine, &b, 1, checks,
                        [&](std::uint64_t* own) { *own = read != nullptr && read->callers; });
  }
  template <class Local>
  void finish(host_context const& ctx, detail::intention& mine, Local local) {
    ++mine.phase;
    detail::meet(ctx, *this, mine, static_cast<state*>(nullptr), local);
  }

  /// Gives the batch the same piece on all ranks, unless it has one. Returns what it had before.
  detail::side_memory allot(host_context const& ctx, detail::intention& mine, state& b,
                            detail::opened_side const& s, detail::told const& met) {
    int const which = static_cast<int>(s.at), ranks = comm().size();
    auto const pieces_of = [&](int r) { return met.of(r)[detail::numbers_of_word]; };
    auto const held = [&](int r) {
      return met.of(r)[detail::numbers_of_word + 1] >> 12 * which & 0xfff;
    };
    auto const is_free = [&](int r, int i) {
      return (met.of(r)[detail::numbers_of_word + 2 + i / 64] >> i % 64 & 1) != 0;
    };
    bool same = b.of(s.at).held();
    for (int r = 0; r < ranks; ++r) same = same && held(r) == held(0);
    b.open[static_cast<std::size_t>(which)] = true;
    if (same) return {};
    detail::side_memory before = std::move(b.of(s.at));

    // Where a rank has failed alone in what made a piece on others, that is never free again.
    window_pool& pool = *pool_;
    std::size_t least = pool.pieces.size();
    for (int r = 0; r < ranks; ++r) {
      least = pieces_of(r) < least ? pieces_of(r) : least;
      while (pool.pieces.size() < pieces_of(r)) pool.pieces.push_back({});
    }
    // A piece that was free everywhere when ranks met, and that nobody has taken since.
    auto const free = [&](int i) {
      bool all = i < static_cast<int>(least) && pool.at(i).free;
      for (int r = 0; r < ranks; ++r) all = all && is_free(r, i);
      return all;
    };
    index_t const row_bytes = detail::size_product(b.at.room, s.row_bytes);
    index_t const beside = detail::size_product(b.at.room, s.scalar_bytes);
    detail::expects(row_bytes <= detail::most_rows && beside <= detail::most_rows,
                    "dispatch: ", b.at.room, " rows of ", s.row_bytes,
                    " bytes are more than memory can hold");
    index_t const bytes = detail::behind(row_bytes) + beside;
    int const pieces = static_cast<int>(pool.pieces.size());
    int i = detail::piece_for(bytes, pieces, free, [&](int p) { return pool.at(p).bytes; });
    detail::expects(i >= 0 || pieces < most_pieces, "dispatch: batches hold ", pieces,
                    " sides in windows; no more are possible: release some");
    if (i < 0) {
      i = pieces;
      pool.pieces.push_back({});
    }
    if (pool.at(i).memory.empty() || pool.at(i).bytes < bytes) grow(ctx, mine, i, bytes);
    pool.at(i).free = false;
    auto* const own =
        static_cast<std::byte*>(pool.at(i).memory.front().view().peer(comm().rank(), begin_of(i)));
    b.of(s.at) = detail::side_memory(this->pool(), i, own,
                                     beside == 0 ? nullptr : own + detail::behind(row_bytes));
    return before;
  }
  /// Where a piece begins in its window. Windows often begin at the same place of a page, and a
  /// processor takes addresses that are equal modulo 4096 for one where rows of several sides are
  /// read and written together.
  static std::size_t begin_of(int piece) { return static_cast<std::size_t>(piece) * 1088 % 4096; }
  void grow(host_context const& ctx, detail::intention& mine, int i, index_t bytes) {
    auto& piece = pool_->at(i);
    index_t const grown = piece.bytes == 0 ? bytes : detail::grown(bytes, piece.bytes);
    std::vector<window> made;
    made.reserve(1);
    piece.free = false;  // for good, if this fails
    ++mine.phase;
    agreed_.together(ctx, comm(), detail::agreement::word_of(mine, {}), [&] {
      made.push_back(comm().allocate_window(begin_of(i) + static_cast<std::size_t>(grown)));
    });
    piece.memory.swap(made);
    piece.bytes = grown;
  }

  /// Puts what callers have brought where all ranks can read it.
  template <class T, class S>
  void bring(host_context const& ctx, detail::intention& mine, state& b, detail::cargo<T, S>& c,
             detail::told const& met) {
    bool any = false;
    for (int r = 0; r < comm().size(); ++r) any = any || met(r, 0) != 0;
    auto from = c;
    from.take_from(b);
    detail::side_memory before;
    if (any) before = allot(ctx, mine, b, {c.at, c.row_bytes(), c.scalar_bytes}, met);
    c.callers = false, c.scalars = nullptr;
    c.take_from(b);
    if (!any) return;
    finish(ctx, mine, [&] {
      if (from.rows.data != c.rows.data) copy_rows(ctx, from.rows, c.rows);
      if (c.scalar_bytes != 0 && from.scalars != c.scalars)
        detail::copy_bytes(c.scalars, from.scalars, b.at.rows() * c.scalar_bytes);
    });
  }

  /// Seats in windows; `c` becomes the rows here.
  template <class T, class S>
  void point(state const& b, detail::cargo<T, S>& c) {
    bool const callers = std::exchange(c.callers, false);
    c.scalars = nullptr;
    c.take_from(b);
    c.callers = callers;
    seats_of(b, c, row_seats_, &scalar_seats_);
  }
  template <class T, class S>
  void seats_of(state const& b, detail::cargo<T, S> const& c, detail::buffer<detail::seat>& rows,
                detail::buffer<detail::seat>* scalars) const {
    detail::seats const& s = b.at;
    int const piece = b.of(c.at).piece();
    auto const view = pool_->at(piece).memory.front().view();
    index_t const behind = detail::behind(s.room * c.row_bytes());
    for (int rank = 0; rank < s.place.ranks(); ++rank) {
      auto* const base = static_cast<std::byte*>(view.peer(rank, begin_of(piece)));
      rows[rank] = {base, c.row_bytes()};
      if (scalars != nullptr) (*scalars)[rank] = {base + behind, c.scalar_bytes};
    }
  }

  template <class X, class T>
  static void copy_rows(host_context const& ctx, tensor_view<X, 2> const& from,
                        tensor_view<T, 2> const& to) {
    index_t const bytes = to.extents[1] * index_t{sizeof(T)};
    bool const streams = detail::copy_exceeds_caches(ctx, to.extents[0], bytes);
    ctx.for_each_chunk(to.extents[0], 1 + 262144 / (1 + bytes),
                       [&](int, index_t first, index_t last) {
                         for (index_t i = first; i < last; ++i)
                           detail::copy_bytes(to.row(i), from.row(i), bytes, streams);
                       });
  }

  Comm* comm_;
  detail::shared<window_pool> pool_;
  detail::agreement agreed_;
  std::vector<window> words_;  // of the numbers that ranks tell; none before open()
  detail::buffer<std::uint64_t> own_;
  detail::buffer<detail::seat> row_seats_, scalar_seats_;
  index_t opened_ = 0;      // numbers of a rank that fit the window
  std::uint64_t turn_ = 0;  // of the last meeting
  std::uint64_t batches_ = 0;
};

template <class Comm>
windows(Comm&, std::pmr::memory_resource* = std::pmr::get_default_resource()) -> windows<Comm>;

}  // namespace expar::inline v0
