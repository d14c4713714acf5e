// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/exchange/messages.hpp>
#include <expar/exchange/routing.hpp>
#include <expar/exchange/weight_gradients.hpp>
#include <expar/exchange/windows.hpp>
#include <expar/permute/detail/movers.hpp>
#include <expar/permute/detail/products.hpp>
#include <expar/permute/detail/residual.hpp>

namespace expar::inline v0 {
template <class T, class W, class Y>
class expert_batch;  // the public face of a batch_state and the weights of its routes
}

namespace expar::inline v0::detail {

/// The transport that an engine makes of a communicator, or shares with others.
template <class From>
struct transport_of {
  using type = std::conditional_t<window_communicator<From>, windows<From>, messages<From>>;
};
template <class Comm>
struct transport_of<messages<Comm>> {
  using type = messages<Comm>&;
};
template <class Comm>
struct transport_of<windows<Comm>> {
  using type = windows<Comm>&;
};

/// The steps of expert_parallel: how rows move between tokens and the sides of a batch, over either
/// transport and wherever weights apply.
template <class From, class Layout, class Site>
class engine {
 public:
  using transport = typename transport_of<From>::type;
  using transport_class = std::remove_reference_t<transport>;
  static constexpr bool has_capacity = std::is_same_v<Layout, fixed_capacity>;
  static constexpr bool has_budget = std::is_same_v<Layout, row_budget>;
  static_assert(has_capacity || has_budget || std::is_same_v<Layout, ragged>,
                "expar: the layout of expert_parallel is ragged, row_budget or fixed_capacity");
  static_assert(has_capacity || transport_class::has_ragged_rows,
                "expar: a ragged layout needs a communicator with all_to_all_v; a fixed_capacity "
                "layout needs one with all_to_all, all_gather and barrier, or with all_to_all_v");
  static constexpr bool at_decode = std::is_same_v<Site, weights_at_decode>;
  static constexpr bool at_encode = std::is_same_v<Site, weights_at_encode>;
  static constexpr bool per_row = std::is_same_v<Site, weights_per_row>;
  static constexpr int weights_site = at_decode ? 0 : 2 - at_encode;

  engine(From& from, expert_shape const& shape, Layout layout, std::pmr::memory_resource* memory)
      : x_(transport_from(from, memory)),
        shape_(shape),
        memory_(memory),
        routing_(shape, layout, memory),
        y_seats_(memory),
        weight_gradients_(memory),
        scalars_(memory) {
    if (shape.hidden_out == 0) shape_.hidden_out = shape.hidden;
    auto const wrong = failure_of([&] {
      if (shape.experts < 1) return;
      auto const blocks = expar::placement::blocks(shape.experts, x_.comm().size());
      reserve(blocks);
      routing_.place(blocks);
    });
    auto const clock = std::chrono::steady_clock::now().time_since_epoch().count();
    id_ = check_group(
        host_context{}, x_.comm(), x_.agreed(), "expert_parallel", shape_, layout, weights_site,
        wrong, reinterpret_cast<std::uintptr_t>(this) ^ static_cast<std::uint64_t>(clock) << 20);
    x_.open(host_context{});
  }

  void place(expar::placement const& p) {
    auto const met = meet(
        host_context{}, x(), {step::place, 0, id_}, no_batch, 1,
        [&] {
          expects(p.experts() == shape_.experts && p.ranks() == x().comm().size(),
                  "place: the placement is of ", p.experts(), " experts on ", p.ranks(),
                  " ranks, not of ", shape_.experts, " on ", x().comm().size());
          reserve(p);
        },
        [&](std::uint64_t* own) { *own = p.hash(); });
    for (int r = 1; r < x().comm().size(); ++r)
      expects(met(r, 0) == met(0, 0), "place: rank ", r,
              " passes another placement than rank 0; all ranks pass the same");
    routing_.place(p);
  }

  struct none {};
  template <class T, class W>
  using row_scalar = row_scalar_t<T, W>;

  bool goes_by_chain() {
    if constexpr (transport_class::has_hops)
      return x().by_chain();
    else
      return false;
  }
  bool sums_per_hop() {
    if constexpr (transport_class::has_hops)
      return x().sums_per_hop();
    else
      return false;
  }
  template <class R, class T, class W, class Y>
  static auto load_of(tensor_view<R const, 2> const& rows, expert_batch<T, W, Y> const& batch) {
    return
        typename transport_class::template load<R, W>{rows, batch.state_.routes(), batch.weights()};
  }

  transport_class& x() {
    expects(usable_, "expert_parallel: the object was moved from");
    return x_;
  }
  static transport transport_from(From& from, std::pmr::memory_resource* memory) {
    if constexpr (std::is_reference_v<transport>)
      return from;
    else
      return transport(from, memory);
  }
  void reserve(expar::placement const& p) {
    x_.reserve(routing_.numbers(), p);
    routing_.reserve(p);
    y_seats_.resize(index_t{p.ranks()});
  }

  template <class Routes, class T, class W, class Y, class Quotas, class Checks>
  told take_routes(host_context const& ctx, Routes const& routes, expert_batch<T, W, Y>& batch,
                   Quotas const& quotas, Checks checks) {
    return routing_.seat(ctx, x(), id_, routes, quotas, batch.state_, batch.weights_,
                         {tag_of<T>(), tag_of<W>(), tag_of<Y>()}, [&] {
                           batch.hidden_ = shape_.hidden, batch.hidden_out_ = shape_.hidden_out;
                           batch.weights_site_ = weights_site;
                           checks();
                         });
  }

  // --- rows out --------------------------------------------------------------------------------

  template <class T, class W, class Y>
  void check_tokens(tensor_view<T const, 2> const& tokens,
                    expert_batch<T, W, Y> const& batch) const {
    argument_table a("dispatch");
    a.reads("tokens", tokens, {tokens_of_batch(batch), columns_of(shape_)});
  }

  /// Tokens' rows to those of their routes; `Scales`: times the weights, `Scalars`: with these
  /// beside them.
  template <bool Scales, bool Scalars, class X, class W, class Rows, class Seats>
  static void put_rows(host_context const& ctx, plan_view const& routes,
                       tensor_view<X const, 2> const& x, matrix_weights<W> weights,
                       Rows const& rows, [[maybe_unused]] Seats const& scalars) {
    index_t const n = x.extents[1];
    auto const next = next_token(routes, x);
    scatter_tokens(ctx, routes, n * index_t{sizeof(X)}, [&](index_t t, bool streams) {
      if constexpr (Scales)
        scatter_token<X>(routes, t, x.row(t), n, weights, rows, streams, next);
      else
        scatter_token<X>(routes, t, x.row(t), n, unit_weights{}, rows, streams, next);
      if constexpr (Scalars) scatter_scalars<W>(routes, t, weights.at.row(t), scalars);
    });
  }

  /// Collective. The rows that rows_of() gives, by the routes of a batch to `c`; `Scales`: times
  /// the weights of routes, `Scalars`: with these beside them. `met`: the words of the ranks, if
  /// they have met for this already.
  template <bool Scales, bool Scalars, class X, class T, class W, class Y, class Checks, class Rows>
  void send_rows(host_context const& ctx, expert_batch<T, W, Y>& batch, intention const& mine,
                 std::initializer_list<opened_side> opens, told const& met, cargo<X, W>& c,
                 Checks checks, Rows rows_of) {
    batch_state& b = batch.state_;
    auto const put = [&](plan_view const& routes, tensor_view<X const, 2> const& x, auto weights,
                         auto const& rows, auto const& scalars) {
      put_rows<Scales, Scalars>(ctx, routes, x, weights, rows, scalars);
    };
    bool const by_chain = goes_by_chain();
    b.dispatched = false;
    if constexpr (transport_class::has_hops)
      if (by_chain)
        x().template send_by_chain<W>(
            ctx, mine, b, c, opens, no_cargo, true, false, checks,
            [&] { return load_of<X>(rows_of(), batch); }, put);
    if (!by_chain)
      x().to_experts(ctx, mine, b, c, opens, no_cargo, met, false, checks,
                     [&](slot_rows<X> rows, slot_rows<W> scalars) {
                       put(b.routes(), rows_of(), batch.weights(), rows, scalars);
                     });
    b.dispatched = true;
  }

  template <class Tokens, class T, class W, class Y>
  void send(host_context const& ctx, Tokens const& tokens, expert_batch<T, W, Y>& batch,
            told const& met, cargo<T, W> c) {
    static_assert(!at_encode || element<T>,
                  "expar: weights at encode scale rows, whose element type must be one that can be "
                  "scaled");
    batch_state& b = batch.state_;
    tensor_view<T const, 2> from;
    c.columns = shape_.hidden, c.scalar_bytes = per_row ? index_t{sizeof(W)} : 0;
    send_rows<at_encode, per_row>(
        ctx, batch, {step::dispatch, b.number, id_},
        {{side::rows, c.row_bytes(), c.scalar_bytes}, {side::y, bytes<Y>(shape_.hidden_out), 0}},
        met, c,
        [&] {
          check_prepared("dispatch", batch);
          from = rows_view<T>(ctx, tokens);
          check_tokens(from, batch);
          argument_table a("dispatch");
          a.reads("tokens", from);
          c.written_in(a, "rows", b, "hidden");
        },
        [&] {
          if (met.numbers != nullptr) from = rows_view<T>(ctx, tokens);
          argument_table a("dispatch");
          a.reads("tokens", from);
          a.writes("rows", c.rows);
          return from;
        });
  }

  /// Rows that are packed as `format` says while they travel.
  template <class Tokens, class T, class W, class Y, class Format>
  void send_packed(host_context const& ctx, Tokens const& tokens, expert_batch<T, W, Y>& batch,
                   Format const& format) {
    static_assert(!at_encode,
                  "expar: what is packed is not scaled on its way; apply weights at decode or per "
                  "row");
    batch_state& b = batch.state_;
    index_t const packed = format.bytes(shape_.hidden);
    tensor_view<T const, 2> from;
    tensor_view<std::byte, 2> leaves;
    cargo<std::byte, W> c{carried};
    c.columns = packed, c.scalar_bytes = per_row ? index_t{sizeof(W)} : 0, c.callers = true;
    cargo<T, W> arrives{side::rows};
    arrives.columns = shape_.hidden, arrives.scalar_bytes = c.scalar_bytes;
    b.release(carried);
    send_rows<false, per_row>(
        ctx, batch, {step::dispatch, b.number, id_, 0, packed},
        {{carried, packed, c.scalar_bytes},
         {side::rows, arrives.row_bytes(), c.scalar_bytes},
         {side::y, bytes<Y>(shape_.hidden_out), 0}},
        {}, c,
        [&] {
          check_prepared("dispatch", batch);
          from = rows_view<T>(ctx, tokens);
          check_tokens(from, batch);
          index_t const out = bytes_of_rows(b.plan.tokens(), packed, 1);
          index_t const in = bytes_of_rows(b.at.rows(), packed, 1);
          std::byte* const memory = scalars_.resize(round_up(out, 64) + in);
          leaves = make_view(memory, b.plan.tokens(), packed);
          c.rows = make_view(memory + round_up(out, 64), b.at.rows(), packed);
          arrives.make_room(b);
        },
        [&]() -> tensor_view<std::byte const, 2> {
          ctx.for_each_chunk(from.extents[0], 1 + 262144 / (1 + packed),
                             [&](int, index_t first, index_t last) {
                               for (index_t t = first; t < last; ++t)
                                 format.pack(from.row(t), leaves.row(t), shape_.hidden);
                             });
          return leaves;
        });
    b.dispatched = false;
    x().agreed().behind_message([&] {
      auto const rows = arrives.rows_of(b);
      ctx.for_each_chunk(rows.extents[0], 1 + 262144 / (1 + packed),
                         [&](int, index_t first, index_t last) {
                           for (index_t i = first; i < last; ++i)
                             format.unpack(c.rows.row(i), rows.row(i), shape_.hidden);
                         });
      if (per_row)
        copy_bytes(b.of(side::rows).scalars(), c.scalars, b.at.rows() * index_t{sizeof(W)});
    });
    b.release(carried);
    b.dispatched = true;
  }

  /// Rows of any type and width, from the caller's tensor to the caller's.
  template <class What, class T, class W, class Y, class To>
  void carry(host_context const& ctx, What const& what, expert_batch<T, W, Y>& batch, To& to) {
    using X = element_of<decltype(as_view<2>(ctx, what))>;
    static_assert(std::is_trivially_copyable_v<X>, "expar: what is carried is copied as bytes");
    batch_state& b = batch.state_;
    tensor_view<X const, 2> from;
    auto c = cargo_of_caller<X, W>(carried, b, {}, [&] {
      from = rows_view<X>(ctx, what);
      auto const v = as_output<2>(ctx, to);
      static_assert(std::is_same_v<element_of<decltype(v)>, X>,
                    "expar: what is carried arrives in the element type in which it leaves");
      return v;
    });
    c.callers = true, c.columns = from.extents[1];
    b.release(carried);
    send_rows<false, false>(
        ctx, batch, {step::carry, b.number, id_, 0, c.row_bytes()},
        {{carried, c.row_bytes(), 0}, {side::y, bytes<Y>(shape_.hidden_out), 0}}, {}, c,
        [&] {
          check_prepared("carry", batch);
          argument_table a("carry");
          a.reads("what", from, {tokens_of_batch(batch)});
          c.written_in(a, "to", b, "the columns of what");
        },
        [&] { return from; });
    b.release(carried);
  }

  /// Gradients of tokens to the rows of their routes. Where y is read here, times the weight, of
  /// which this is the gradient; elsewhere with the weight beside them.
  template <class Y, class W, class A, class YRows, class Rows, class Seats>
  static void put_gradients(host_context const& ctx, plan_view const& routes,
                            tensor_view<Y const, 2> const& d, matrix_weights<W> weights,
                            YRows const& y_rows, A* dots, Rows const& rows, Seats const& scalars) {
    scatter_products<false>(
        ctx, routes, d,
        [&](index_t at) -> Y const* {
          index_t const l = routes.locations[at];
          return l < 0 || !y_rows.reach(routes.ids[at]) ? nullptr : y_rows(routes.ids[at], l);
        },
        weights, rows, [&](index_t at, auto dot) { dots[at] = static_cast<A>(dot); },
        [&](index_t at, bool streams) {
          dots[at] = 0;
          index_t const l = routes.locations[at], t = at / routes.top_k;
          if (l < 0) return;
          int const slot = routes.ids[at];
          put_row(d.row(t), rows(slot, l), d.extents[1], streams);
          *scalars(slot, l) = weights.at.row(t)[at % routes.top_k];
        });
  }

  /// Where this rank can read y, it makes d_y and the gradient of the weight itself. Elsewhere the
  /// weights travel with the gradients, and the rank that has y makes both and sends one home.
  template <class T, class W, class Y, class DOut, class DWeights>
  void scatter_d_y(host_context const& ctx, expert_batch<T, W, Y>& batch, DOut const& d_out,
                   cargo<Y, W> y, cargo<Y, W> c, DWeights&& d_weights) {
    constexpr bool has_weights = !std::is_same_v<std::remove_cvref_t<DWeights>, none>;
    static_assert(at_decode || !has_weights,
                  "expar: weights have a gradient in combine_backward only where they are applied "
                  "at decode; leave y and d_weights out");
    static_assert(!at_decode || has_weights,
                  "expar: with weights at decode, combine_backward gives d_weights as well");
    static_assert(!has_weights || element<Y>,
                  "expar: combine_backward scales rows of y, whose element type must be one that "
                  "is scaled");
    batch_state& b = batch.state_;
    tensor_view<Y const, 2> d;
    decltype(gradient_or_none(ctx, d_weights)) d_w{};
    using A = row_scalar_t<Y, W>;
    bool const by_chain = goes_by_chain();
    bool const by_message =
        has_weights && !by_chain && !transport_class::reaches_peers && x().comm().size() > 1;
    c.columns = shape_.hidden_out, y.columns = shape_.hidden_out;
    c.scalar_bytes = by_message ? index_t{sizeof(W)} : 0;
    A* dots_here = nullptr;
    intention const mine{step::combine_backward, b.number, id_};
    std::initializer_list<opened_side> const opens = {
        {side::d_y, c.row_bytes(), 0},
        {side::d_rows, bytes<T>(shape_.hidden), batch.scalar_bytes(side::d_rows)}};
    auto const checks = [&] {
      check_dispatched("combine_backward", batch);
      argument_table a("combine_backward");
      d = rows_view<Y>(ctx, d_out);
      a.reads("d_out", d, {tokens_of_batch(batch), {c.columns, "hidden_out"}});
      if (has_weights) y.read_in(a, "y", b, "hidden_out");
      c.written_in(a, "d_y", b, "hidden_out");
      if constexpr (has_weights) {
        d_w = gradient_or_none(ctx, d_weights);
        name_weights<A>(a, batch, d_w);
      }
      if (!has_weights || !(by_message || by_chain)) return;
      index_t const dots = round_up(bytes<A>(b.at.rows()), 64);
      std::byte* const scratch = scalars_.resize(dots + bytes<W>(b.at.rows()));
      dots_here = reinterpret_cast<A*>(scratch);
      if (by_message) c.scalars = reinterpret_cast<W*>(scratch + dots);
    };
    if constexpr (transport_class::has_hops)
      if (by_chain)
        x().template send_by_chain<W>(
            ctx, mine, b, c, opens, has_weights ? &y : nullptr, false,
            has_weights ? index_t{sizeof(A)} : 0, checks, [&] { return load_of<Y>(d, batch); },
            [&](plan_view const& routes, tensor_view<Y const, 2> const& from,
                [[maybe_unused]] auto weights, auto const& rows, auto const&) {
              if constexpr (!has_weights)
                scatter_tokens(ctx, routes, c.row_bytes(), [&](index_t t, bool streams) {
                  scatter_token<Y>(routes, t, from.row(t), c.columns, unit_weights{}, rows, streams,
                                   next_token(routes, from));
                });
              else
                scatter_products<false>(
                    ctx, routes, from,
                    [&](index_t at) -> Y const* {
                      index_t const l = routes.locations[at];
                      return l < 0 ? nullptr : y.rows.row(l);
                    },
                    weights, rows,
                    [&](index_t at, auto dot) {
                      dots_here[routes.locations[at]] = static_cast<A>(dot);
                    },
                    [](index_t, bool) {});
            });
    if (!by_chain)
      x().to_experts(ctx, mine, b, c, opens, has_weights ? &y : nullptr, {}, by_message, checks,
                     [&](slot_rows<Y> rows, slot_rows<W> scalars) {
                       auto const routes = b.routes();
                       if constexpr (!has_weights) {
                         auto const next = next_token(routes, d);
                         scatter_tokens(ctx, routes, c.row_bytes(), [&](index_t t, bool streams) {
                           scatter_token<Y>(routes, t, d.row(t), c.columns, unit_weights{}, rows,
                                            streams, next);
                         });
                       } else {
                         put_gradients<Y>(ctx, routes, d, batch.weights(),
                                          x().readable(b, y, y_seats_),
                                          weight_gradients_.template of_slots<A>(), rows, scalars);
                       }
                     });
    if constexpr (has_weights && !transport_class::reaches_peers) {
      if (by_message) bring_dots(ctx, b, y, c, dots_here);
      if (by_chain) bring_dots_home<W>(ctx, b, dots_here, true, [] {});
    }
    if constexpr (has_weights) weight_gradients_.template put<A>(b, d_w);
  }

  /// From the gradients and weights that came with messages to d_y and dots, and those home.
  template <class Y, class W, class A>
  void bring_dots(host_context const& ctx, batch_state& b, cargo<Y, W> const& y,
                  cargo<Y, W> const& c, A* dots_here) {
    bring_dots_home<W>(ctx, b, dots_here, false, [&] {
      x().for_each_foreign_run(
          ctx, b.at, c.row_bytes(), [&](int, index_t, index_t first, index_t rows) {
            for (index_t i = first; i < first + rows; ++i) {
              Y* const row = c.rows.row(i);
              dots_here[i] = dot_rows<Y>(y.rows.row(i), row, c.columns);
              put_scaled<Y>(row, static_cast<A>(widen(c.scalars[i])), row, c.columns, false);
            }
          });
    });
  }
  /// The gradients of weights, which stand by row after make(), to their routes; `own`: those of
  /// this rank's rows as well.
  template <class W, class A, class Make>
  void bring_dots_home(host_context const& ctx, batch_state& b, A* dots_here, bool own, Make make) {
    cargo<A, A> home{side::d_y};
    home.scalar_bytes = sizeof(A), home.scalars = dots_here;
    x().to_tokens(ctx, {step::combine_backward, b.number, id_, x().hop_count()}, b, home, make,
                  [&](slot_rows<A const>, slot_rows<A const> scalars) {
                    auto const routes = b.routes();
                    A* const dots = weight_gradients_.template of_slots<A>();
                    for (index_t i = 0; i < routes.tokens * routes.top_k; ++i)
                      if (routes.locations[i] < 0)
                        dots[i] = 0;
                      else if (own || !b.at.is_own(routes.ids[i]))
                        dots[i] = *scalars(routes.ids[i], routes.locations[i]);
                  });
  }

  // --- rows home -------------------------------------------------------------------------------

  template <class T, class W, class Y, class Out>
  void gather_y(host_context const& ctx, expert_batch<T, W, Y>& batch, cargo<Y, W> c, Out& out) {
    static_assert(element<Y>,
                  "expar: combine sums y, whose element type must be one that can be summed");
    batch_state& b = batch.state_;
    decltype(as_output<2>(ctx, out)) to{};
    c.columns = shape_.hidden_out;
    intention const mine{step::combine, b.number, id_};
    using weights = std::conditional_t<at_decode, matrix_weights<W>, unit_weights>;
    auto const checks = [&] {
      check_dispatched("combine", batch);
      argument_table a("combine");
      c.read_in(a, "y", b, "hidden_out");
      to = as_output<2>(ctx, out);
      a.writes("out", to, {tokens_of_batch(batch), {c.columns, "hidden_out"}});
    };
    bool const adds_on_the_way = sums_per_hop();
    if constexpr (transport_class::has_hops)
      if (adds_on_the_way)
        x().template sum_by_chain<weights>(
            ctx, mine, b, c, false, checks, [&] { return to; },
            [] { return tensor_view<element_of<decltype(to)> const, 2>{}; });
    if (!adds_on_the_way)
      x().to_tokens(ctx, mine, b, c, checks, [&](slot_rows<Y const> rows, slot_rows<W const>) {
        sum_y(ctx, batch, rows, to);
      });
  }

  /// The sum of each token's y.
  template <class T, class W, class Y, class Out>
  static void sum_y(host_context const& ctx, expert_batch<T, W, Y> const& batch,
                    slot_rows<Y const> const& rows, tensor_view<Out, 2> const& to) {
    auto const nothing = [](index_t, bool) {};
    if constexpr (at_decode)
      gather_tokens(ctx, batch.state_.routes(), rows, batch.weights(), to, {}, nothing);
    else
      gather_tokens(ctx, batch.state_.routes(), rows, unit_weights{}, to, {}, nothing);
  }
  /// The sum of each token's d_rows, and the gradients of its weights where they come with these.
  template <class Out, class T, class W, class Y, class S>
  static void sum_gradients(host_context const& ctx, expert_batch<T, W, Y> const& batch,
                            slot_rows<T const> const& rows, slot_rows<S const> const& scalars,
                            tensor_view<T const, 2> const& tokens, tensor_view<Out, 2> const& to,
                            tensor_view<Out const, 2> const& residual, S* d_weights) {
    auto const routes = batch.state_.routes();
    auto const weigh = [&](index_t t, [[maybe_unused]] bool beyond) {
      if constexpr (!at_decode) {
        S* const d = d_weights + t * routes.top_k;
        if constexpr (at_encode)
          for (int j = 0; j < routes.top_k; ++j)
            put_dot<T>(routes, t, j, rows, tokens.row(t), to.extents[1], d, beyond);
        else
          gather_scalars<S>(routes, t, scalars, d);
      }
    };
    if constexpr (at_encode)
      gather_tokens(ctx, routes, rows, batch.weights(), to, residual, weigh);
    else
      gather_tokens(ctx, routes, rows, unit_weights{}, to, residual, weigh);
  }

  /// `what`: tokens, d_row_weights, or nothing.
  template <class T, class W, class Y, class S, class What, class DTokens, class DWeights>
  void gather_d_rows(host_context const& ctx, expert_batch<T, W, Y>& batch, cargo<T, S> c,
                     What const& what, DTokens& d_tokens, DWeights&& d_weights) {
    constexpr bool has_weights = !std::is_same_v<std::remove_cvref_t<DWeights>, none>;
    static_assert(element<T>,
                  "expar: dispatch_backward sums rows, whose element type must be one that can be "
                  "summed");
    static_assert(has_weights || at_decode,
                  "expar: dispatch_backward gives d_weights as well where weights are applied at "
                  "encode (pass tokens) or per row (pass d_row_weights)");
    batch_state& b = batch.state_;
    decltype(gradient_output<2>(ctx, d_tokens)) to{};
    if constexpr (to.adds) check_summed_alike<T, element_of<decltype(to)>>();
    decltype(gradient_or_none(ctx, d_weights)) d_w{};
    c.columns = shape_.hidden, c.scalar_bytes = per_row ? index_t{sizeof(S)} : 0;
    tensor_view<T const, 2> tokens;
    tensor_view<S const, 1> row_weights;
    using out_element = element_of<decltype(to)>;
    intention mine{step::dispatch_backward, b.number, id_};
    bool const adds_on_the_way = sums_per_hop();
    auto const residual = [&]() -> tensor_view<out_element const, 2> {
      return to.adds ? tensor_view<out_element, 2>(to) : tensor_view<out_element, 2>{};
    };
    auto const checks = [&] {
      check_dispatched("dispatch_backward", batch);
      argument_table a("dispatch_backward");
      if constexpr (at_encode)
        tokens = rows_view<T>(ctx, what);
      else if constexpr (!std::is_same_v<What, none>)
        row_weights = bring_row_weights(ctx, what, b, c);
      c.read_in(a, "d_rows", b, "hidden");
      to = gradient_output<2>(ctx, d_tokens);
      name_gradient(a, "d_tokens", to, {tokens_of_batch(batch), columns_of(shape_)});
      if constexpr (has_weights) {
        d_w = gradient_or_none(ctx, d_weights);
        name_weights<S>(a, batch, d_w);
      }
      if constexpr (at_encode)
        a.reads("tokens", tokens, {tokens_of_batch(batch), columns_of(shape_)});
      else if constexpr (!std::is_same_v<What, none>) {
        a.reads("d_row_weights", row_weights, {rows_of_batch(batch)});
        expects(row_weights.strides[0] == 1 || row_weights.extents[0] <= 1,
                "dispatch_backward: d_row_weights has stride ", row_weights.strides[0],
                "; it must be contiguous");
      }
      expects(!(adds_on_the_way && at_encode),
              "dispatch_backward: weights were applied at encode, "
              "and their gradients need every row at home; a chain that sums per hop brings none");
    };
    if constexpr (transport_class::has_hops && !at_encode)
      if (adds_on_the_way) {
        x().template sum_by_chain<unit_weights>(
            ctx, mine, b, c, per_row, checks, [&] { return tensor_view<out_element, 2>(to); },
            residual);
        if constexpr (has_weights) {
          cargo<S, S> home{side::d_rows};
          home.scalar_bytes = sizeof(S), home.scalars = c.scalars;
          mine.phase = x().hop_count();
          x().to_tokens(
              ctx, mine, b, home, [] {},
              [&](slot_rows<S const>, slot_rows<S const> scalars) {
                auto const routes = b.routes();
                for (index_t t = 0; t < routes.tokens; ++t)
                  gather_scalars<S>(routes, t, scalars,
                                    weight_gradients_.template of_slots<S>() + t * routes.top_k);
              });
        }
      }
    if (!adds_on_the_way || at_encode)
      x().to_tokens(
          ctx, mine, b, c, checks, [&](slot_rows<T const> rows, slot_rows<S const> scalars) {
            S* const d_of_slots = has_weights ? weight_gradients_.template of_slots<S>() : nullptr;
            sum_gradients<out_element>(ctx, batch, rows, scalars, tokens, to, residual(),
                                       d_of_slots);
          });
    if constexpr (has_weights) weight_gradients_.template put<S>(b, d_w);
  }

  // --- arguments -------------------------------------------------------------------------------

  template <class T>
  static index_t bytes(index_t n) {
    return size_product(n, sizeof(T));
  }
  static constexpr cargo<std::byte, std::byte>* no_cargo = nullptr;
  static constexpr batch_state const* no_batch = nullptr;

  /// What every operation asks of the batch that it is given.
  template <class T, class W, class Y>
  void check_prepared(char const* what, expert_batch<T, W, Y> const& batch) const {
    batch_state const& b = batch.state_;
    expects(b.prepared, what, ": the batch has no routes; dispatch or prepare it first");
    auto const same = [&](char const* name, index_t theirs, index_t ours) {
      expects(theirs == ours, what, ": the batch was made for ", name, " ", theirs, ", not ", ours);
    };
    same("experts", b.plan.experts(), shape_.experts), same("top_k", b.plan.top_k(), shape_.top_k);
    same("hidden", batch.hidden_, shape_.hidden);
    same("hidden_out", batch.hidden_out_, shape_.hidden_out);
    same("ranks", b.at.place.ranks(), routing_.placement().ranks());
    expects((b.at.rule.capacity >= 0) == has_capacity, what, ": the batch was made for ",
            has_capacity ? "a ragged layout, not for fixed_capacity"
                         : "fixed_capacity, not for a ragged layout");
    expects(batch.weights_site_ == weights_site && b.pool.get() == x_.pool().get(), what,
            ": the batch was prepared by another object");
  }
  template <class T, class W, class Y>
  void check_dispatched(char const* what, expert_batch<T, W, Y> const& batch) const {
    check_prepared(what, batch);
    expects(batch.state_.dispatched, what, ": the batch has no rows; dispatch tokens first");
  }
  /// Gradients of weights, and memory for those of their routes to slots.
  template <class A, class Batch, class D, bool Adds>
  void name_weights(argument_table& a, Batch const& batch,
                    gradient_view<D, 2, Adds> const& d_weights) {
    name_gradient(a, "d_weights", d_weights, {tokens_of_batch(batch), top_k_of(shape_)});
    weight_gradients_.template reserve<A>(batch.state_);
  }

  /// What the caller wants written, or has brought, as a side of the batch: which it may be itself.
  template <class R, class S, class T, class W, class Y, class X>
  static cargo<R, S> callers(host_context const& ctx, side at, expert_batch<T, W, Y> const& batch,
                             X& x) {
    return cargo_of_caller<R, S>(at, batch.state_, batch.template there<R>(at),
                                 [&] { return overwritten_rows(ctx, x); });
  }
  template <class R, class S, class T, class W, class Y, class X>
  static cargo<R, S> brought(host_context const& ctx, side at, expert_batch<T, W, Y> const& batch,
                             X const& x) {
    return cargo_of_caller<R, S>(at, batch.state_, batch.template there<R>(at), [&] {
      auto const v = rows_view<R>(ctx, x);
      return tensor_view<R, 2>{
          const_cast<R*>(v.data), {v.extents[0], v.extents[1]}, {v.strides[0], v.strides[1]}};
    });
  }
  template <class DWeights>
  static auto gradient_or_none(host_context const& ctx, DWeights& d_weights) {
    if constexpr (std::is_same_v<std::remove_cv_t<DWeights>, none>)
      return none{};
    else
      return gradient_output<2>(ctx, d_weights);
  }

  transport x_;
  expert_shape shape_;
  std::pmr::memory_resource* memory_;
  routing<Layout> routing_;
  buffer<seat> y_seats_;
  weight_gradients weight_gradients_;
  buffer<std::byte> scalars_;
  std::uint64_t id_ = 0;  // of the object, on all ranks
  cleared_by_move<bool> usable_ = true;
};

}  // namespace expar::inline v0::detail
