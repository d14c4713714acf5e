// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/exchange/counts.hpp>
#include <expar/exchange/detail/arguments.hpp>
#include <expar/exchange/detail/batch_fit.hpp>
#include <expar/exchange/linear.hpp>
#include <expar/expert_batch.hpp>
#include <expar/expert_shape.hpp>
#include <expar/permute/detail/residual.hpp>
#include <expar/permute/detail/rows.hpp>

namespace expar::inline v0 {

/// Sends token rows to the experts of all ranks and brings the results home, forward and backward.
///
/// Collective, like every member function: all ranks call the same functions in the same order.
/// Each returns when it has finished. Before rows travel the ranks ask each other (8 bytes) whether
/// all can go on: a wrong argument, an exception of the caller's executor or a lack of memory on
/// one rank makes the call throw the same sentence on all ranks, and leaves the object usable. What
/// follows from another number of ranks alone changes no bit: rows are copied, and a token's sum
/// runs over its choices in order, in one accumulator.
///
/// Comm: tier 2 for a ragged layout, tier 1 for fixed_capacity. It outlives the object. Experts are
/// placed by block_placement. One operation at a time per object; message buffers are kept from
/// call to call, so that a repeated shape allocates nothing when its batch is reused.
///
/// Cost per rank and direction: ragged, the rows of its kept routes; fixed_capacity, experts *
/// capacity rows. Rows are copied three times (pack, exchange, unpack), on one rank once.
template <class Comm, class Layout = ragged, class Site = weights_at_decode>
class expert_parallel {
  static constexpr bool has_capacity = std::is_same_v<Layout, fixed_capacity>;
  static_assert(has_capacity || std::is_same_v<Layout, ragged>,
                "expar: the layout of expert_parallel is ragged or fixed_capacity");
  static_assert(
      has_capacity ? collective_communicator<Comm> : variable_communicator<Comm>,
      "expar: a ragged layout needs a communicator with all_to_all_v; a fixed_capacity layout "
      "needs one with all_to_all, all_gather and barrier, or with all_to_all_v");
  static constexpr bool at_decode = std::is_same_v<Site, weights_at_decode>;
  static constexpr bool at_encode = std::is_same_v<Site, weights_at_encode>;
  static constexpr bool per_row = std::is_same_v<Site, weights_per_row>;
  using step = detail::step;

 public:
  /// Throws, on all ranks alike, if the ranks disagree, if top_k is not 1 .. experts, hidden < 1,
  /// or if there are fewer experts than ranks. `memory` serves the message buffers and the batches.
  expert_parallel(Comm& comm, expert_shape shape, Layout layout = {}, Site = {},
                  std::pmr::memory_resource* memory = std::pmr::get_default_resource())
      : comm_(&comm),
        shape_(shape),
        layout_(layout),
        place_{shape.experts, comm.size()},
        memory_(memory),
        agreement_(memory),
        counts_(memory),
        exchange_(memory),
        scalars_(memory) {
    auto const wrong = detail::failure_of([&] {
      agreement_.reserve(place_.ranks);
      if (shape.experts >= 1) counts_.reserve(place_);
    });
    detail::check_group(host_context{}, comm, "expert_parallel", shape, layout,
                        at_decode   ? 0
                        : at_encode ? 1
                                    : 2,
                        wrong);
  }

  expert_shape const& shape() const noexcept { return shape_; }
  block_placement const& placement() const noexcept { return place_; }

  /// First part of dispatch: plans the routes of this rank's tokens and tells every rank how many
  /// rows will come. `routes` has tensors `ids` [T,k] (signed integers, -1 = no expert) and
  /// `weights` [T,k]; T may differ from rank to rank and may be 0. The batch keeps a copy of both.
  template <class Routes, class T, class W>
  void prepare(host_context const& ctx, Routes const& routes, expert_batch<T, W>& batch) {
    ++batches_;
    batch.forget();
    agreement_.run(ctx, comm(), {step::prepare, batches_}, [&] {
      detail::arguments a(ctx, "dispatch");
      auto const ids = a.ids("ids", routes.ids, {detail::any_extent, detail::top_k_of(shape_)});
      auto const weights = detail::route_weights_of<W>(a, shape_, routes, ids.extents[0]);
      batch.plan_.place(
          ctx, ids, shape_.experts,
          has_capacity ? route_plan::order::choice_major : route_plan::order::token_major);
      keep_weights(weights, batch.weights_);
      batch.map_.begin(place_, comm().rank());
    });
    lay_out(ctx, batch);
    batch.number_ = batches_;
    batch.prepared_ = true;
  }

  /// Second part: the rows. tokens: [T,H] of the batch's element type, not in memory of the batch.
  /// May be repeated with other tokens on the same routes.
  template <class Tokens, class T, class W>
  void dispatch(host_context const& ctx, Tokens const& tokens, expert_batch<T, W>& batch) {
    auto const x = detail::rows_view<T>(ctx, tokens);
    tensor_view<T, 2> to;
    column<W> scalars;
    auto const checks = [&] {
      fit().prepared("dispatch", batch);
      detail::argument_table a("dispatch");
      a.reads("tokens", x, {detail::tokens_of_batch(batch), detail::columns_of(shape_)});
      a.writes("rows", make_view(batch.rows_.data(), static_cast<index_t>(batch.rows_.capacity())));
      batch.make_room();
      to = make_view(batch.rows_.data(), batch.row_count(), shape_.hidden);
      if constexpr (per_row) scalars = {batch.row_weights_.resize(batch.row_count()), true};
    };
    if constexpr (at_encode)
      to_experts(ctx, step::dispatch, batch, checks, x, weights_of(batch), to, scalars);
    else
      to_experts(ctx, step::dispatch, batch, checks, x, detail::unit_weights{}, to, scalars);
    batch.dispatched_ = true;
  }

  /// Both parts: tokens [T,H] and their routes to rows at the experts. The second form makes the
  /// batch.
  template <class Tokens, class Routes, class T, class W>
  void dispatch(host_context const& ctx, Tokens const& tokens, Routes const& routes,
                expert_batch<T, W>& batch) {
    prepare(ctx, routes, batch);
    dispatch(ctx, tokens, batch);
  }
  template <class Tokens, class Routes>
  requires requires(Routes const& r) { r.ids, r.weights; }
  auto dispatch(host_context const& ctx, Tokens const& tokens, Routes const& routes) {
    using T = detail::element_of<decltype(detail::as_view<2>(ctx, tokens))>;
    using W = detail::element_of<decltype(detail::as_view<2>(ctx, routes.weights))>;
    expert_batch<T, W> batch(memory_);
    dispatch(ctx, tokens, routes, batch);
    return batch;
  }

  /// out[t] = sum over kept routes, in choice order, of weight * y[row] (weights at decode) or of
  /// y[row]. y: [N,H], what the experts made of batch.rows(), filling rows not read; out: [T,H], of
  /// any element type, zero for a token without a kept route.
  template <class T, class W, class Y, class Out>
  void combine(host_context const& ctx, expert_batch<T, W> const& batch, Y const& y, Out&& out) {
    auto const from = detail::rows_view<T>(ctx, y);
    auto const to = detail::as_output<2>(ctx, out);
    auto const checks = [&] {
      fit().dispatched("combine", batch);
      detail::argument_table a("combine");
      a.reads("y", from, {detail::rows_of_batch(batch), detail::columns_of(shape_)});
      a.writes("out", to, {detail::tokens_of_batch(batch), detail::columns_of(shape_)});
    };
    using A = accumulator_t<T>;
    auto const home = to_sources(ctx, step::combine, batch, checks, &from, column<A const>{});
    if constexpr (at_decode)
      gather(ctx, batch, home.rows, weights_of(batch), to);
    else
      gather(ctx, batch, home.rows, detail::unit_weights{}, to);
  }

  /// The adjoint of combine with weights at decode: d_y[row] = weight * d_out[t], zero in filling
  /// rows; d_weights[t,j] = <y[row], d_out[t]>, zero for a route without a row. d_out: [T,H]; y,
  /// d_y: [N,H]; d_weights: [T,k], added to by add_to().
  template <class T, class W, class DOut, class Y, class DY, class DWeights>
  void combine_backward(host_context const& ctx, expert_batch<T, W> const& batch, DOut const& d_out,
                        Y const& y, DY&& d_y, DWeights&& d_weights) {
    static_assert(
        at_decode,
        "expar: weights have a gradient in combine_backward only where they are applied at "
        "decode; leave y and d_weights out");
    auto const d = detail::rows_view<T>(ctx, d_out);
    auto const y_rows = detail::rows_view<T>(ctx, y);
    auto const to = detail::overwritten_rows(ctx, d_y);
    auto const d_w = detail::gradient_output<2>(ctx, d_weights);
    auto const checks = [&] {
      fit().dispatched("combine_backward", batch);
      detail::argument_table a("combine_backward");
      auto const columns = detail::columns_of(shape_);
      a.reads("d_out", d, {detail::tokens_of_batch(batch), columns});
      a.reads("y", y_rows, {detail::rows_of_batch(batch), columns});
      a.writes("d_y", to, {detail::rows_of_batch(batch), columns});
      detail::name_gradient(a, "d_weights", d_w,
                            {detail::tokens_of_batch(batch), detail::top_k_of(shape_)});
    };
    if (alone()) {
      checks();
      auto const table = detail::rows_of(to, batch.map_.offsets.data());
      auto const y_table = detail::rows_of(y_rows, batch.map_.offsets.data());
      for_each_token(ctx, batch, [&](index_t t) {
        detail::dot_token<T, d_w.adds>(batch.plan_.view(), t, y_table, d.row(t), shape_.hidden,
                                       d_w.row(t));
        detail::scatter_token<T>(batch.plan_.view(), t, d.row(t), shape_.hidden, weights_of(batch),
                                 table);
      });
      detail::zero_padding(batch.plan_, table, shape_.hidden);
      return;
    }
    // The weights travel with the gradients, so that the expert's rank, which has y, can make both.
    using A = accumulator_t<T>;
    column<A> dot;
    column<W> w;
    auto const with_room = [&] {
      checks();
      index_t const w_at = round_up(batch.row_count() * static_cast<index_t>(sizeof(A)), 64);
      scalars_.resize(w_at + batch.row_count() * static_cast<index_t>(sizeof(W)));
      dot = {reinterpret_cast<A*>(scalars_.data()), true};
      w = {reinterpret_cast<W*>(scalars_.data() + w_at), true};
    };
    to_experts(ctx, step::combine_backward, batch, with_room, d, detail::unit_weights{}, to, w);
    auto const at_experts = [&] {
      ctx.for_each_chunk(batch.row_count(), 16, [&](int, index_t first, index_t last) {
        for (index_t i = first; i < last; ++i) {
          dot.data[i] = detail::dot_rows<T>(y_rows.row(i), to.row(i), shape_.hidden);
          detail::scale_row<T>(to.row(i), static_cast<A>(widen(w.data[i])), to.row(i),
                               shape_.hidden);
        }
      });
      batch.map_.for_each_gap([&](index_t first, index_t last) {
        for (index_t i = first; i < last; ++i) detail::clear_row(to.row(i), shape_.hidden);
      });
    };
    auto const home = to_sources<T>(ctx, step::gradients_of_weights, batch, at_experts, nullptr,
                                    column<A const>{dot.data, true});
    gather_scalars(ctx, batch, home.scalars, d_w);
  }
  /// The same where combine applies no weights: d_y[row] = d_out[t].
  template <class T, class W, class DOut, class DY>
  void combine_backward(host_context const& ctx, expert_batch<T, W> const& batch, DOut const& d_out,
                        DY&& d_y) {
    static_assert(!at_decode,
                  "expar: with weights at decode, combine_backward takes y and d_weights as well");
    auto const d = detail::rows_view<T>(ctx, d_out);
    auto const to = detail::overwritten_rows(ctx, d_y);
    auto const checks = [&] {
      fit().dispatched("combine_backward", batch);
      detail::argument_table a("combine_backward");
      a.reads("d_out", d, {detail::tokens_of_batch(batch), detail::columns_of(shape_)});
      a.writes("d_y", to, {detail::rows_of_batch(batch), detail::columns_of(shape_)});
    };
    to_experts(ctx, step::combine_backward, batch, checks, d, detail::unit_weights{}, to,
               column<W>{});
  }

  /// The adjoint of dispatch with weights at decode: d_tokens[t] = sum over kept routes, in choice
  /// order, of d_rows[row]. d_rows: [N,H], filling rows not read; d_tokens: [T,H], added to by
  /// add_to().
  template <class T, class W, class DRows, class DTokens>
  void dispatch_backward(host_context const& ctx, expert_batch<T, W> const& batch,
                         DRows const& d_rows, DTokens&& d_tokens) {
    static_assert(
        at_decode,
        "expar: dispatch_backward gives d_weights as well where weights are applied at encode "
        "(pass tokens) or per row (pass d_row_weights)");
    auto const from = detail::rows_view<T>(ctx, d_rows);
    auto const to = detail::gradient_output<2>(ctx, d_tokens);
    auto const checks = [&] {
      fit().dispatched("dispatch_backward", batch);
      detail::argument_table a("dispatch_backward");
      a.reads("d_rows", from, {detail::rows_of_batch(batch), detail::columns_of(shape_)});
      detail::name_gradient(a, "d_tokens", to,
                            {detail::tokens_of_batch(batch), detail::columns_of(shape_)});
    };
    using A = accumulator_t<T>;
    auto const home =
        to_sources(ctx, step::dispatch_backward, batch, checks, &from, column<A const>{});
    gather(ctx, batch, home.rows, detail::unit_weights{}, to);
  }
  /// With weights at encode, `what` is tokens [T,H]: d_tokens[t] = sum of weight * d_rows[row] and
  /// d_weights[t,j] = <d_rows[row], tokens[t]>. With weights per row, `what` is d_row_weights [N],
  /// of the accumulator type: d_tokens[t] = sum of d_rows[row] and d_weights[t,j] =
  /// d_row_weights[row].
  template <class T, class W, class DRows, class What, class DTokens, class DWeights>
  void dispatch_backward(host_context const& ctx, expert_batch<T, W> const& batch,
                         DRows const& d_rows, What const& what, DTokens&& d_tokens,
                         DWeights&& d_weights) {
    static_assert(!at_decode,
                  "expar: with weights at decode, d_weights comes from combine_backward; give "
                  "dispatch_backward d_rows and d_tokens");
    using A = accumulator_t<T>;
    auto const from = detail::rows_view<T>(ctx, d_rows);
    auto const to = detail::gradient_output<2>(ctx, d_tokens);
    auto const d_w = detail::gradient_output<2>(ctx, d_weights);
    auto const checks = [&](detail::argument_table& a) {
      fit().dispatched("dispatch_backward", batch);
      a.reads("d_rows", from, {detail::rows_of_batch(batch), detail::columns_of(shape_)});
      detail::name_gradient(a, "d_tokens", to,
                            {detail::tokens_of_batch(batch), detail::columns_of(shape_)});
      detail::name_gradient(a, "d_weights", d_w,
                            {detail::tokens_of_batch(batch), detail::top_k_of(shape_)});
    };
    if constexpr (at_encode) {
      auto const x = detail::rows_view<T>(ctx, what);
      auto const all_checks = [&] {
        detail::argument_table a("dispatch_backward");
        checks(a);
        a.reads("tokens", x, {detail::tokens_of_batch(batch), detail::columns_of(shape_)});
      };
      auto const home =
          to_sources(ctx, step::dispatch_backward, batch, all_checks, &from, column<A const>{});
      for_each_token(ctx, batch, [&](index_t t) {
        detail::dot_token<T, d_w.adds>(batch.plan_.view(), t, home.rows, x.row(t), shape_.hidden,
                                       d_w.row(t));
      });
      gather(ctx, batch, home.rows, weights_of(batch), to);
    } else {
      auto const d_row_w = detail::as_view<1>(ctx, what);
      static_assert(std::is_same_v<detail::element_of<decltype(d_row_w)>, A>,
                    "expar: d_row_weights has the accumulator type of the rows");
      auto const all_checks = [&] {
        detail::argument_table a("dispatch_backward");
        checks(a);
        a.reads("d_row_weights", d_row_w, {detail::rows_of_batch(batch)});
        detail::expects(d_row_w.strides[0] == 1 || d_row_w.extents[0] <= 1,
                        "dispatch_backward: d_row_weights has stride ", d_row_w.strides[0],
                        "; it must be contiguous");
      };
      auto const home = to_sources(ctx, step::dispatch_backward, batch, all_checks, &from,
                                   column<A const>{d_row_w.data, true});
      gather_scalars(ctx, batch, home.scalars, d_w);
      gather(ctx, batch, home.rows, detail::unit_weights{}, to);
    }
  }

 private:
  template <class S>
  using column = detail::linear_exchange::column<S>;

  bool alone() const { return place_.ranks == 1; }
  Comm& comm() const {
    Comm* const p = comm_;
    detail::expects(p != nullptr, "expert_parallel: the object was moved from");
    return *p;
  }

  template <class X, class W>
  static void keep_weights(tensor_view<X, 2> from, detail::buffer<W>& to) {
    index_t const k = from.extents[1];
    W* const out = to.resize(from.size());
    for (index_t t = 0; t < from.extents[0]; ++t) detail::copy_row<W>(from.row(t), out + t * k, k);
  }

  // Says what comes, learns what arrives, and lays both out.
  template <class T, class W>
  void lay_out(host_context const& ctx, expert_batch<T, W>& batch) {
    detail::arrivals& map = batch.map_;
    auto const group = counts_.run(ctx, comm(), agreement_.counts(), map, batch.plan_.counts(),
                                   batch.plan_.tokens(), {index_t{sizeof(T)}, index_t{sizeof(W)}});
    if constexpr (has_capacity) {
      map.capacity =
          capacity_of(layout_, group.tokens, shape_.experts, shape_.top_k, group.largest_count);
      // On this thread alone: nothing may fail here, since the others do not ask any more.
      batch.plan_.lay_out(host_context{}, map.capacity);
      for (index_t& count : map.arrived) count = count < map.capacity ? count : map.capacity;
    } else {
      batch.plan_.lay_out(layout_);
    }
    for (int e = 0; e < shape_.experts; ++e) map.sent[e] = batch.plan_.kept(e);
    map.lay_out(has_capacity ? 1 : layout_.alignment);
    batch.hidden_ = shape_.hidden;
  }

  /// Once `checks` pass on every rank: token rows, and route weights where `scalars` travel, to the
  /// rows of the experts. The checks may still set `rows` and `scalars`.
  template <class T, class W, class Checks, class Weights>
  void to_experts(host_context const& ctx, step what, expert_batch<T, W> const& batch,
                  Checks checks, tensor_view<T const, 2> x, Weights weights,
                  tensor_view<T, 2> const& rows, column<W> const& scalars) {
    index_t const n = shape_.hidden;
    auto const fill = [&](detail::expert_rows<T> to, detail::expert_rows<W> scalars_to) {
      for_each_token(ctx, batch, [&](index_t t) {
        detail::scatter_token<T>(batch.plan_.view(), t, x.row(t), n, weights, to);
        if (scalars.travels)
          detail::scatter_scalars<W>(batch.plan_.view(), t,
                                     batch.weights_.data() + t * shape_.top_k, scalars_to);
      });
    };
    if (alone()) {
      checks();
      index_t const* const offsets = batch.map_.offsets.data();
      auto const to = detail::rows_of(rows, offsets);
      auto const scalars_to =
          detail::rows_of(make_view(scalars.data, batch.row_count(), index_t{1}), offsets);
      fill(to, scalars_to);
      detail::zero_padding(batch.plan_, to, n);
      if (scalars.travels) detail::zero_padding(batch.plan_, scalars_to, 1);
      return;
    }
    agreement_.run(ctx, comm(), {what, batch.number_}, [&] {
      checks();
      index_t const row_bytes = n * static_cast<index_t>(sizeof(T));
      exchange_.pack_for_experts(batch.map_, row_bytes, scalars.bytes(), [&](auto message) {
        fill({message.bytes, message.row_start, 1, row_bytes},
             {message.bytes, message.scalar_start, 1, sizeof(W)});
      });
    });
    exchange_.template run<has_capacity>(ctx, comm());
    exchange_.unpack_at_experts(ctx, batch.map_, rows, scalars);
  }

  template <class T, class S>
  struct home_rows {
    detail::expert_rows<T const> rows;
    detail::expert_rows<S const> scalars;
  };
  /// Once `checks` pass on every rank: expert rows and scalars (either may be left out) to where
  /// the tokens' ranks can read them by route.
  template <class T, class W, class Checks, class S>
  home_rows<T, S> to_sources(host_context const& ctx, step what, expert_batch<T, W> const& batch,
                             Checks checks, tensor_view<T const, 2> const* rows,
                             column<S const> scalars) {
    if (alone()) {
      checks();
      index_t const* const offsets = batch.map_.offsets.data();
      return {rows ? detail::rows_of(*rows, offsets) : detail::expert_rows<T const>{},
              detail::rows_of(make_view(scalars.data, batch.row_count(), index_t{1}), offsets)};
    }
    agreement_.run(ctx, comm(), {what, batch.number_}, [&] {
      checks();
      exchange_.pack_for_sources(ctx, batch.map_, rows, scalars);
    });
    exchange_.template run<has_capacity>(ctx, comm());
    auto const message = exchange_.at_sources();
    return {{message.bytes, message.row_start, 1, shape_.hidden * static_cast<index_t>(sizeof(T))},
            {message.bytes, message.scalar_start, 1, sizeof(S)}};
  }

  template <class T, class W, class F>
  void for_each_token(host_context const& ctx, expert_batch<T, W> const& batch, F f) const {
    detail::for_each_token(ctx, batch.plan_, shape_.hidden * static_cast<index_t>(sizeof(T)), f);
  }
  template <class T, class W, class Weights, class Out>
  void gather(host_context const& ctx, expert_batch<T, W> const& batch,
              detail::expert_rows<T const> const& rows, Weights weights, tensor_view<Out, 2> out,
              bool adds = false) const {
    for_each_token(ctx, batch, [&](index_t t) {
      detail::gather_token(batch.plan_.view(), t, rows, weights, out.row(t), shape_.hidden,
                           adds ? out.row(t) : nullptr);
    });
  }
  template <class T, class W, class Weights, class Out, bool Adds>
  void gather(host_context const& ctx, expert_batch<T, W> const& batch,
              detail::expert_rows<T const> const& rows, Weights weights,
              detail::gradient_view<Out, 2, Adds> const& out) const {
    if constexpr (Adds) detail::check_summed_alike<T, Out>();
    gather(ctx, batch, rows, weights, tensor_view<Out, 2>(out), Adds);
  }
  template <class T, class W, class S, class D, bool Adds>
  void gather_scalars(host_context const& ctx, expert_batch<T, W> const& batch,
                      detail::expert_rows<S const> const& scalars,
                      detail::gradient_view<D, 2, Adds> const& out) const {
    detail::for_each_token(ctx, batch.plan_, sizeof(S), [&](index_t t) {
      detail::gather_scalars<S, Adds>(batch.plan_.view(), t, scalars, out.row(t));
    });
  }
  template <class T, class W>
  static detail::matrix_weights<W> weights_of(expert_batch<T, W> const& batch) {
    return {make_view(batch.weights_.data(), batch.plan_.tokens(), index_t{batch.plan_.top_k()})};
  }

  /// What every operation asks of the batch that it is given.
  detail::batch_fit fit() const {
    (void)comm();  // throws where the object was moved from
    return {shape_, place_.ranks, has_capacity};
  }

  detail::cleared_by_move<Comm*> comm_;
  expert_shape shape_;
  Layout layout_;
  block_placement place_;
  std::pmr::memory_resource* memory_;
  detail::agreement agreement_;
  detail::count_exchange counts_;
  detail::linear_exchange exchange_;
  detail::buffer<std::byte> scalars_;
  std::uint64_t batches_ = 0;  // prepared so far
};

template <class Comm, class Layout = ragged, class Site = weights_at_decode>
expert_parallel(Comm&, expert_shape, Layout = {}, Site = {},
                std::pmr::memory_resource* = std::pmr::get_default_resource())
    -> expert_parallel<Comm, Layout, Site>;

}  // namespace expar::inline v0
