// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/exchange/chain.hpp>
#include <expar/exchange/hop_tables.hpp>
#include <expar/exchange/messages.hpp>
#include <expar/permute/detail/movers.hpp>

namespace expar::inline v0 {

/// The transport of ranks of which some are far from others: messages by way of a chain, so that a
/// token crosses what is slow once. `expar::hops x(comm, expar::chain::once_per_node(nodes));
/// expar::expert_parallel moe(x, shape);`. All ranks pass the same chain.
///
/// Any placement, layout and communicator of tier 2. Rows, gradients and, with sum::exact, all sums
/// have the bits of linear messages. With sum::per_hop, combine and dispatch_backward add on the
/// way; weights at encode then have no dispatch_backward. prepare is the one collective of counts
/// (two where a capacity, a budget that drops or quotas decide what is sent); then an operation is
/// one collective for each hop. A failure before the last of them is told to all ranks, as over
/// messages. At most 2^31 - 1 rows stand on a rank or pass it.
///
/// Sharing, lifetimes and threads as for `messages`. It keeps the largest messages of each hop, and
/// of rows that go straight, out and in; where it sums per hop, a row for each token here, and over
/// nodes of several ranks one for each that is here before the second hop; and 1280 R +
/// 8 (E + R + N)(R + 1) + 96 bytes for E experts and R <= 64 ranks on N nodes, of which the largest
/// has P. A batch takes 32 R + 8 (slots) bytes more than over messages; for each token here, and
/// each row that comes by a hop, k (12 + sizeof(W)), k being routes to slots; and 8 a for each
/// token here, 8 b for each row that is here before the second hop: a = b = k in aggregated(),
/// a = N and b = P in gathered(), and else min(k, N) and min(k, P).
template <class Comm>
class hops : private messages<Comm> {
  static_assert(variable_communicator<Comm>,
                "expar: hops need a communicator with all_to_all_v (tier 2)");
  using base = messages<Comm>;
  using state = detail::batch_state;

 public:
  hops(Comm& of, chain way, std::pmr::memory_resource* memory = std::pmr::get_default_resource())
      : base(of, memory),
        chain_(std::move(way)),
        pairs_{detail::message_pair<Comm>(memory), detail::message_pair<Comm>(memory)},
        rail_(memory),
        node_(memory),
        last_(memory),
        next_(memory),
        of_rank_(memory),
        of_node_(memory),
        of_none_(memory) {}

  chain const& way() const noexcept { return chain_; }

 private:
  template <class, class, class>
  friend class detail::engine;
  template <class>
  friend class detail::routing;
  template <class X, class Batch, class Local, class Say>
  friend detail::told detail::meet(host_context const&, X&, detail::intention const&, Batch const*,
                                   index_t, Local, Say);
  using base::agreed, base::batches, base::checks_sizes, base::comm, base::for_each_foreign_run,
      base::gather, base::has_ragged_rows, base::numbers_before, base::own_numbers, base::pool,
      base::reaches_peers, base::readable, base::say, base::to_experts, base::to_tokens;

  static constexpr bool has_hops = true;
  bool by_chain() const { return !chain_.is_linear(); }
  /// The hop by which rows of this rank's tokens go to ranks of its node: the first.
  int direct() const { return chain_.has_first_hop() ? 0 : 1; }
  bool is_here(int rank) const { return node_.data()[rank] >= 0; }
  unsigned hop_count() const {
    return by_chain() && chain_.has_first_hop() && chain_.has_second_hop() ? 2 : 1;
  }
  bool sums_per_hop() const { return by_chain() && chain_.sums() == sum::per_hop; }

  void reserve(index_t numbers, placement const& place) {
    int const ranks = place.ranks();
    base::reserve(numbers + ranks + chain_.nodes().nodes(), place);
    for (auto& p : pairs_) p.reserve(ranks);
    for (auto* b : {&rail_, &node_}) b->resize(index_t{ranks});
    for (auto* b : {&last_, &next_}) b->resize(index_t{ranks});
  }
  /// Collective, after reserve() on all ranks.
  void open(host_context const& ctx) {
    topology const& nodes = chain_.nodes();
    int const ranks = comm().size(), me = comm().rank();
    detail::expects_agreement(ctx, comm(), agreed(), detail::step::construct, "hops",
                              {{"the number of ranks of the chain", nodes.ranks() + 0.0},
                               {"the chain (its hash)", static_cast<double>(chain_.hash() >> 12)}});
    detail::expects(nodes.ranks() == ranks, "hops: the chain is of ", nodes.ranks(),
                    " ranks, and the communicator has ", ranks);
    int const own = nodes.node_of(me);
    for (int r = 0; r < ranks; ++r) {
      rail_[r] = nodes.node_of(r) == own ? me : nodes.on_rail(me, nodes.node_of(r));
      node_[r] = nodes.node_of(r) == own ? r : -1;
    }
  }

  // --- counts ------------------------------------------------------------------------------------

  /// What a rank tells of its parcels: how many go to each rank, and to each node.
  index_t parcel_numbers() const {
    return by_chain() ? index_t{comm().size()} + chain_.nodes().nodes() : 0;
  }
  void reserve_parcels(state& b) {
    if (b.way.get() == nullptr)
      b.way = detail::shared<detail::passage>(new detail::hop_tables(b.at.to.resource()));
    tables_of(b).reserve(comm().size());
  }
  /// Of a batch that is not prepared, which checks find out, those of none.
  detail::hop_tables& tables_of(state const& b) {
    return b.way.get() == nullptr ? of_none_ : static_cast<detail::hop_tables&>(*b.way);
  }
  void count_parcels(plan_view const& routes, std::span<int const> rank_of_slot,
                     std::uint64_t* to) {
    topology const& nodes = chain_.nodes();
    int const ranks = comm().size();
    std::uint64_t *const by_rank = to, *const by_node = to + ranks;
    auto const tokens = static_cast<std::uint64_t>(routes.tokens);
    for (int i = 0; i < ranks + nodes.nodes(); ++i) to[i] = chain_.sends_all() ? tokens : 0;
    if (chain_.sends_all()) return;
    for (int r = 0; r < ranks; ++r) last_[r] = next_[r] = -1;
    for (index_t t = 0, i = 0; t < routes.tokens; ++t)
      for (int j = 0; j < routes.top_k; ++j, ++i) {
        if (routes.locations[i] < 0) continue;
        int const r = rank_of_slot[static_cast<std::size_t>(routes.ids[i])], n = nodes.node_of(r);
        bool const each = chain_.sends_each();
        by_rank[r] += each || std::exchange(last_[r], t) != t;
        by_node[n] += each || std::exchange(next_[n], t) != t;
      }
  }
  /// From what all ranks told, `first` on among the operation's numbers, to what this one sends and
  /// gets by each hop.
  void take_parcels(detail::told const& met, index_t first, state& b) {
    topology const& nodes = chain_.nodes();
    int const ranks = comm().size(), me = comm().rank(), own = nodes.node_of(me);
    detail::hop_tables& t = tables_of(b);
    t.clear_counts(ranks);
    for (int r = 0; r < ranks; ++r) {
      if (is_here(r)) {
        if (r != me) {
          t.sent(direct())[r] = met(me, first + r);
          t.got(direct())[r] = met(r, first + me);
        }
        continue;
      }
      int const by = nodes.on_rail(r, own);  // what r sends to this node
      if (nodes.on_rail(me, nodes.node_of(r)) == r)
        t.sent(0)[r] = met(me, first + ranks + nodes.node_of(r));
      if (by == me) t.got(0)[r] = met(r, first + ranks + own);
      if (by != me) t.got(1)[by] += met(r, first + me);
      for (int const p : nodes.ranks_of(own))
        if (by == me && p != me) t.sent(1)[p] += met(r, first + p);
    }
  }

  // --- rows out ----------------------------------------------------------------------------------

  /// What travels: rows of this rank's tokens, and their routes with weights.
  template <class T, class W>
  struct load {
    tensor_view<T const, 2> rows;
    plan_view routes;
    detail::matrix_weights<W> weights;
  };

  /// Collective. Once `checks` pass on every rank, `put(routes, rows, weights, to, scalars)` gets
  /// what came for rows of this rank, tokens of other ranks as well as its own: routes whose
  /// locations are rows of `c`. `tables`: routes and weights travel as well; else those that came
  /// last hold. `home`: bytes beside a row that go home straight in the same call, or 0.
  template <class W, class T, class S, class Y, class V, class Checks, class Load, class Put>
  void send_by_chain(host_context const& ctx, detail::intention const& mine, state& b,
                     detail::cargo<T, S>& c, std::initializer_list<detail::opened_side> sides,
                     detail::cargo<Y, V>* read, bool tables, index_t home, Checks checks,
                     Load load_of, Put put) {
    detail::hop_tables& t = tables_of(b);
    tensor_view<T const, 2> tokens;
    index_t rider_bytes = 0;
    auto const came = [&](int h, int from) {
      return from < 0 ? tokens : rows_in<T const>(pairs_[h], from, t.got(h)[from], c.columns);
    };
    run_hops(
        ctx, mine, false, home != 0,
        [&](auto ready) {
          checks();
          load<T, W> const l = load_of();
          tokens = l.rows;
          if (tables) {
            rider_bytes = t.begin(l.routes.tokens, l.routes.top_k, sizeof(W), width(0, l.routes),
                                  width(1, l.routes));
            take_routes(l, b);
            for (int h : {0, 1}) build(t, h, false);
          }
          divide(t, false, c.row_bytes(), rider_bytes);
          if (home != 0) base::divide(false, b.at, 0, home);
          ready();
          c.make_room(b);
          c.take_from(b);
          if (read != nullptr) read->take_from(b);
        },
        [&](int h) {
          if (h == direct()) {
            if (h == 0) pack(ctx, t, 0, h, 0, t.own, tokens, c, tables);
            pack(ctx, t, 1, h, 0, t.own, tokens, c, tables);
            return;
          }
          if (tables) build(t, 1, true);
          for_each_block(t, h, [&](index_t first, index_t count, int by, int from) {
            if (from >= 0 && !is_here(from))
              pack(ctx, t, 1, h, first, count, came(by, from), c, tables);
          });
        },
        [&](int h, bool last) {
          if (tables)
            for_each_block(t, h + 1, [&](index_t first, index_t count, int by, int from) {
              if (by != h || from < 0) return;
              auto const* at = pairs_[h].places[from] + pairs_[h].incoming.scalars_at(from);
              for (index_t i = 0; i < count; ++i) t.read(at + i * rider_bytes, first + i);
            });
          if (!last) return;
          if (tables) t.end_at(comm().rank());
          for_each_block(t, 2, [&](index_t first, index_t count, int by, int from) {
            put(
                t.ends_here(first, count), came(by, from), t.template weights_of<W>(first, count),
                [&c](int, index_t l) { return c.rows.row(l); },
                [&c](int, index_t l) { return c.scalars + l; });
          });
          c.clear_gaps(b.at);
        },
        [&] {
          for (detail::opened_side const& s : sides) b.open[static_cast<int>(s.at)] = true;
        });
  }

  // --- rows home, summed at every hop ------------------------------------------------------------

  /// Collective. Once `checks` pass on every rank, the sums that `chain` defines of the rows in
  /// `c`, by weights if these are a matrix, are in out(), where residual() comes first.
  template <class Weights, class T, class S, class Checks, class Out, class Residual>
  void sum_by_chain(host_context const& ctx, detail::intention const& mine, state& b,
                    detail::cargo<T, S>& c, bool more, Checks checks, Out out, Residual residual) {
    detail::hop_tables& t = tables_of(b);
    bool const twice = chain_.has_second_hop();
    tensor_view<T, 2> of_rank, of_node;
    auto const add = [&](plan_view const& plan, auto const& rows, auto weights, auto const& to,
                         auto const& before) {
      detail::gather_tokens(ctx, plan, rows, weights, to, before, [](index_t, bool) {});
    };
    // What is summed for a row that came by hop h goes back by it.
    auto const back = [&](int h, int from) {
      return from < 0 ? of_node : rows_in<T>(pairs_[h], from, t.got(h)[from], c.columns);
    };
    auto const returned = [&](int h, tensor_view<T, 2> const& own) {
      return [own, h, this, bytes = c.row_bytes()](int rank, index_t l) {
        return rank == comm().rank()
                   ? static_cast<T const*>(own.row(l))
                   : reinterpret_cast<T const*>(pairs_[h].places[rank] + detail::segments::rows_at +
                                                l * bytes);
      };
    };
    auto const sum_of_rank = [&](bool directly) {
      for_each_block(t, 2, [&](index_t first, index_t count, int by, int from) {
        bool const is_direct = twice && by == 0 && from >= 0 && is_here(from);
        if (is_direct != directly) return;
        auto const to = twice && by == 0 && !is_direct
                            ? make_view(of_rank.row(first), count, c.columns)
                            : back(by, from);
        add(
            t.ends_here(first, count), [&c](int, index_t l) -> T const* { return c.rows.row(l); },
            t.weights_like(Weights{}, first, count), to, tensor_view<T const, 2>{});
      });
    };
    auto const sum_of_node = [&](bool own) {
      for_each_block(t, 1, [&](index_t first, index_t count, int by, int from) {
        if ((from < 0) != own || (from >= 0 && is_here(from))) return;
        add(t.hop[1].view(first, count), returned(own ? direct() : 1, of_rank),
            detail::unit_weights{}, back(by, from), tensor_view<T const, 2>{});
      });
    };
    run_hops(
        ctx, mine, true, more,
        [&](auto ready) {
          checks();
          divide(t, true, c.row_bytes(), 0);
          if (more) base::divide(false, b.at, 0, sizeof(double));
          ready();
          c.take_from(b);
          of_rank = rows_of<T>(of_rank_, twice ? t.after_first : 0, c.columns);
          of_node = rows_of<T>(of_node_, t.own, c.columns);
        },
        [&](int h) {
          if (h == 1 || !twice) return sum_of_rank(false);
          sum_of_node(false);
          sum_of_rank(true);
        },
        [&](int, bool last) {
          if (!last) return;
          if (chain_.has_second_hop()) sum_of_node(true);
          add(t.hop[0].view(0, t.own), returned(0, of_node), detail::unit_weights{}, out(),
              residual());
        },
        [] {});
  }

  // --- hops --------------------------------------------------------------------------------------

  /// The hops of an operation, or `back`: begin(ready) on this rank, which divides messages and
  /// calls ready(); fill(h) the message of each hop, found(h, last) what came; all_came() once all
  /// messages have come. `more`: whether another message follows in this call.
  template <class Begin, class Fill, class Found, class Agreed>
  void run_hops(host_context const& ctx, detail::intention mine, bool back, bool more, Begin begin,
                Fill fill, Found found, Agreed all_came) {
    int const count = static_cast<int>(hop_count());
    for (int i = 0; i < count; ++i) {
      int const h = count == 1 ? !chain_.has_first_hop() && chain_.has_second_hop()
                    : back     ? 1 - i
                               : i;
      bool const last = i + 1 == count;
      pairs_[h].template exchange<false>(
          ctx, comm(), agreed(), mine, {!checks_sizes && i > 0, false, more || !last}, [] {},
          [&](auto ready) {
            if (i == 0)
              begin(ready);
            else
              ready();
            pairs_[h].point_out();
            fill(h);
          },
          [&] { found(h, last); },
          [&] {
            if (last) all_came();
          });
      ++mine.phase;
    }
  }

  void divide(detail::hop_tables& t, bool back, index_t row_bytes, index_t rider_bytes) {
    int const ranks = comm().size(), me = comm().rank();
    for (int h = 0; h < 2; ++h) {
      auto& p = pairs_[h];
      auto& sent = t.sent(h);
      auto& got = t.got(h);
      (back ? p.incoming : p.outgoing)
          .divide(
              ranks, [&](int r) { return sent[r]; }, row_bytes, rider_bytes, me);
      (back ? p.outgoing : p.incoming)
          .divide(
              ranks, [&](int r) { return got[r]; }, row_bytes, rider_bytes, me);
      p.out.resize(p.outgoing.bytes()), p.in.resize(p.incoming.bytes());
    }
  }

  /// f(first parcel, parcels, hop by which they came, from which rank) for those that are here
  /// before hop h: the own tokens, from rank -1, and what came by the hops before.
  template <class F>
  void for_each_block(detail::hop_tables& t, int h, F f) const {
    f(index_t{0}, t.own, 0, -1);
    index_t first = t.own;
    for (int by = 0; by < h; ++by)
      for (int p = 0; p < comm().size(); ++p) {
        index_t const n = t.got(by)[p];
        if (n != 0) f(first, n, by, p);
        first += n;
      }
  }
  /// The rows of the segment of rank p.
  template <class T>
  static tensor_view<T, 2> rows_in(detail::message_pair<Comm> const& pair, int p, index_t rows,
                                   index_t columns) {
    return make_view(reinterpret_cast<T*>(pair.places[p] + detail::segments::rows_at), rows,
                     columns);
  }
  template <class T>
  static tensor_view<T, 2> rows_of(detail::buffer<std::byte>& memory, index_t rows,
                                   index_t columns) {
    memory.resize(detail::bytes_of_rows(rows, columns, sizeof(T)));
    return make_view(reinterpret_cast<T*>(memory.data()), rows, columns);
  }

  template <class T, class S>
  void pack(host_context const& ctx, detail::hop_tables const& t, int table, int h, index_t first,
            index_t count, tensor_view<T const, 2> const& rows, detail::cargo<T, S> const& c,
            bool tables) const {
    auto const& pair = pairs_[h];
    auto const plan = t.hop[table].view(first, count);
    index_t const bytes = c.row_bytes();
    detail::scatter_tokens(ctx, plan, bytes, [&](index_t i, bool streams) {
      for (int j = 0; j < plan.top_k; ++j) {
        int const to = plan.ids[i * plan.top_k + j];
        index_t const l = plan.locations[i * plan.top_k + j];
        if (to < 0 || to == comm().rank()) continue;
        std::byte* const segment = pair.places[to];
        auto* const row = reinterpret_cast<T*>(segment + detail::segments::rows_at + l * bytes);
        detail::put_row(rows.row(i), row, c.columns, streams);
        if (tables)
          t.write(segment + pair.outgoing.scalars_at(to), l, first + i,
                  chain_.sends_each() ? j : -1);
      }
    });
  }

  int width(int h, plan_view const& routes) const {
    int const most = h == 0 ? chain_.nodes().nodes() : chain_.nodes().most();
    bool const fewer = chain_.sends_each() || (!chain_.sends_all() && routes.top_k < most);
    return fewer ? routes.top_k : most;
  }
  /// Where the rows of this rank's tokens are to stand.
  template <class T, class W>
  void take_routes(load<T, W> const& l, state& b) {
    detail::hop_tables& t = tables_of(b);
    index_t const n = l.routes.tokens * l.routes.top_k;
    for (index_t i = 0; i < n; ++i) {
      int const slot = l.routes.ids[i];
      index_t const location = l.routes.locations[i];
      t.ranks[i] = location < 0 ? -1 : b.at.place.rank_of(slot);
      t.rows[i] = location < 0 ? -1 : static_cast<std::int32_t>(b.at.final[slot] + location);
    }
    detail::copy_bytes(t.weights.data(), l.weights.at.data, n * index_t{sizeof(W)});
  }
  /// To which ranks rows of own tokens go, other nodes (h = 0) or ranks of this one (1); or to
  /// which of these go rows that `came` by the first hop from other nodes.
  void build(detail::hop_tables& t, int h, bool came) {
    int const ranks = comm().size(), me = comm().rank(), wide = t.hop[h].width();
    auto const& to = h == 0 ? rail_ : node_;
    for (int r = 0; r < ranks; ++r) last_[r] = -1, next_[r] = 0;
    auto const put = [&](index_t i, bool ends_here) {
      int used = 0;
      auto const go = [&](int rank) {
        bool const new_one =
            rank >= 0 && (chain_.sends_each() || std::exchange(last_[rank], i) != i);
        if (new_one)
          t.hop[h].put(i, used++, rank, rank == me ? i : next_[rank]++);
        else if (chain_.sends_each())
          t.hop[h].put(i, used++, -1, -1);
      };
      if (chain_.sends_all() && !ends_here)
        for (int r = 0; r < ranks; ++r) go(to[r]);
      if (!chain_.sends_all() && !ends_here)
        for (int j = 0; j < t.top_k; ++j) {
          int const r = t.ranks[i * t.top_k + j];
          go(r < 0 ? -1 : to[r]);
        }
      while (used < wide) t.hop[h].put(i, used++, -1, -1);
    };
    for_each_block(t, came ? 1 : 0, [&](index_t first, index_t count, int, int from) {
      if (came && from < 0) return;
      for (index_t i = 0; i < count; ++i) put(first + i, from >= 0 && is_here(from));
    });
  }

  chain chain_;
  detail::message_pair<Comm> pairs_[2];
  detail::buffer<int> rail_, node_;      // [ranks]: to whom rows for a rank go by each hop, or -1
  detail::buffer<index_t> last_, next_;  // [ranks]
  detail::buffer<std::byte> of_rank_, of_node_;  // sums of this rank and node
  detail::hop_tables of_none_;
};

template <class Comm>
struct detail::transport_of<hops<Comm>> {
  using type = hops<Comm>&;
};

}  // namespace expar::inline v0
