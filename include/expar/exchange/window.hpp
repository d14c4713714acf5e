// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <utility>

#include <expar/exchange/agreement.hpp>
#include <expar/exchange/detail/arguments.hpp>
#include <expar/exchange/window_batch.hpp>
#include <expar/expert_shape.hpp>
#include <expar/permute/detail/residual.hpp>

namespace expar::inline v0 {

/// expert_parallel over memory that peers can write: a row is copied once, from the token to its
/// final place among the rows of its expert, and combine reads it there. The integers and the bytes
/// of expert_parallel with weights at decode.
///
/// Collective, like every member function. Between phases, in which a rank works alone, ranks meet
/// by exchange_phase(): twice in every operation. A wrong argument on one rank makes the call throw
/// the same sentence on all ranks and leaves the object usable. What experts read and write stands
/// in the windows, which have a fixed size: make_batch() takes the rows, and a batch that needs
/// more is an error on all ranks that names how many. Nothing is allocated once a batch has been
/// used for its largest number of tokens.
///
/// Comm: tier 3, all of whose windows this rank can address. It outlives the object and its
/// batches.
template <class Comm, class Layout = ragged>
class window_parallel {
  static constexpr bool has_capacity = std::is_same_v<Layout, fixed_capacity>;
  static_assert(has_capacity || std::is_same_v<Layout, ragged>,
                "expar: the layout of window_parallel is ragged or fixed_capacity");
  static_assert(window_communicator<Comm>,
                "expar: window_parallel needs a communicator with windows (tier 3); "
                "expert_parallel needs none");

 public:
  /// Throws, on all ranks alike, as the constructor of expert_parallel. `memory` serves the batches
  /// beside their windows.
  explicit window_parallel(Comm& comm, expert_shape shape, Layout layout = {},
                           std::pmr::memory_resource* memory = std::pmr::get_default_resource())
      : comm_(&comm),
        shape_(shape),
        layout_(layout),
        place_{shape.experts, comm.size()},
        memory_(memory),
        agreement_(memory),
        status_(status_of(comm, shape, layout)) {}

  expert_shape const& shape() const noexcept { return shape_; }
  block_placement const& placement() const noexcept { return place_; }

  /// Rows that always are enough where no rank has more than `tokens` tokens.
  index_t worst_case_rows(index_t tokens) const {
    return detail::worst_case_rows(place_, layout_, shape_.top_k, tokens);
  }

  /// A batch and its window. Slow on most transports: make batches once and use them again.
  template <class T, class W = float>
  auto make_batch(window_size size) {
    static_assert(alignof(T) <= 16, "expar: rows in a window are aligned to 16 bytes");
    detail::buffer<detail::destination> to(memory_);
    auto const wrong = detail::failure_of([&] { to.resize(index_t{shape_.experts}); });
    detail::expects_agreement(host_context{}, comm(), "make_batch",
                              {{"rows", static_cast<double>(size.rows)},
                               {"backward", size.backward ? 1.0 : 0.0},
                               {"bytes per element", static_cast<double>(sizeof(T))}},
                              wrong);
    auto const shape = detail::shape_of(place_, shape_.hidden * index_t{sizeof(T)}, size);
    auto window = comm().allocate_window(shape.bytes());
    agreement_.run(host_context{}, comm(), {step::make_batch, 0}, [&] {
      for (int p = 0; p < place_.ranks; ++p)
        detail::expects(window.view().peer(p, 0) != nullptr, "make_batch: the window of rank ", p,
                        " cannot be reached from rank ", comm().rank());
    });
    return window_batch<T, W, decltype(window)>(std::move(window), shape, comm().rank(), mark(),
                                                std::move(to), memory_);
  }

  /// First part of dispatch, as expert_parallel::prepare(). Throws on all ranks if a rank would get
  /// more rows than the window has.
  template <class Routes, class T, class W, class Window>
  void prepare(host_context const& ctx, Routes const& routes, window_batch<T, W, Window>& batch) {
    lay_out(ctx, routes, batch, [] {});
  }
  /// Second part: the rows. tokens: [T,H] of the batch's element type. May be repeated with other
  /// tokens on the same routes.
  template <class Tokens, class T, class W, class Window>
  void dispatch(host_context const& ctx, Tokens const& tokens, window_batch<T, W, Window>& batch) {
    auto const x = detail::rows_view<T>(ctx, tokens);
    meet(ctx, {step::dispatch, batch.number_}, [&] {
      require_prepared("dispatch", batch);
      check_input(batch, x);
    });
    place(ctx, batch, x);
  }
  /// Both parts, with the meetings of one.
  template <class Tokens, class Routes, class T, class W, class Window>
  void dispatch(host_context const& ctx, Tokens const& tokens, Routes const& routes,
                window_batch<T, W, Window>& batch) {
    auto const x = detail::rows_view<T>(ctx, tokens);
    lay_out(ctx, routes, batch, [&] { check_input(batch, x); });
    place(ctx, batch, x);
  }

  /// out[t] = sum over kept routes, in choice order, of weight * y[row], read from batch.y() of all
  /// ranks. out: [T,H], of any element type, zero for a token without a kept route.
  template <class T, class W, class Window, class Out>
  void combine(host_context const& ctx, window_batch<T, W, Window>& batch, Out&& out) {
    auto const to = detail::as_output<2>(ctx, out);
    meet(ctx, {step::combine, batch.number_}, [&] {
      require_dispatched("combine", batch);
      detail::argument_table a("combine");
      a.reads("y", batch.y());
      a.writes("out", to, {detail::tokens_of_batch(batch), detail::columns_of(shape_)});
    });
    pull(ctx, batch, 1, batch.weights(), to);
  }

  /// The adjoint of combine: batch.d_y()[row] = weight * d_out[t] on all ranks, zero in filling
  /// rows; d_weights[t,j] = <y[row], d_out[t]>, zero for a route without a row. One pass. d_out:
  /// [T,H]; d_weights: [T,k], added to by add_to().
  template <class T, class W, class Window, class DOut, class DWeights>
  void combine_backward(host_context const& ctx, window_batch<T, W, Window>& batch,
                        DOut const& d_out, DWeights&& d_weights) {
    auto const d = detail::rows_view<T>(ctx, d_out);
    auto const d_w = detail::gradient_output<2>(ctx, d_weights);
    meet(ctx, {step::combine_backward, batch.number_}, [&] {
      require_dispatched("combine_backward", batch);
      require_backward("combine_backward", batch);
      detail::argument_table a("combine_backward");
      a.reads("d_out", d, {detail::tokens_of_batch(batch), detail::columns_of(shape_)});
      a.reads("y", batch.y());
      a.writes("d_y", batch.d_y());
      detail::name_gradient(a, "d_weights", d_w,
                            {detail::tokens_of_batch(batch), detail::top_k_of(shape_)});
    });
    auto const y = batch.template everywhere<T const>(1);
    auto const d_y = batch.template everywhere<T>(2);
    meet(ctx, {step::end, batch.number_}, [&] {
      for_each_token(ctx, batch, [&](index_t t) {
        detail::dot_token<T, d_w.adds>(batch.plan_.view(), t, y, d.row(t), shape_.hidden,
                                       d_w.row(t));
        detail::scatter_token<T>(batch.plan_.view(), t, d.row(t), shape_.hidden, batch.weights(),
                                 d_y);
      });
      clear_gaps(batch, batch.d_y());
    });
  }

  /// The adjoint of dispatch: d_tokens[t] = sum over kept routes, in choice order, of
  /// batch.d_rows()[row] of all ranks. d_tokens: [T,H], added to by add_to().
  template <class T, class W, class Window, class DTokens>
  void dispatch_backward(host_context const& ctx, window_batch<T, W, Window>& batch,
                         DTokens&& d_tokens) {
    auto const to = detail::gradient_output<2>(ctx, d_tokens);
    if constexpr (to.adds) detail::check_summed_alike<T, detail::element_of<decltype(to)>>();
    meet(ctx, {step::dispatch_backward, batch.number_}, [&] {
      require_dispatched("dispatch_backward", batch);
      require_backward("dispatch_backward", batch);
      detail::argument_table a("dispatch_backward");
      a.reads("d_rows", batch.d_rows());
      detail::name_gradient(a, "d_tokens", to,
                            {detail::tokens_of_batch(batch), detail::columns_of(shape_)});
    });
    pull<to.adds>(ctx, batch, 3, detail::unit_weights{}, to);
  }

 private:
  using status_window = decltype(std::declval<Comm&>().allocate_window(std::size_t{}));

  using step = detail::step;

  status_window status_of(Comm& comm, expert_shape shape, Layout layout) {
    auto const wrong = detail::failure_of([&] { agreement_.reserve(place_.ranks); });
    detail::check_group(host_context{}, comm, "window_parallel", shape, layout, 0, wrong);
    return comm.allocate_window(2 * static_cast<std::size_t>(comm.size()) * sizeof(std::uint64_t));
  }
  Comm& comm() const {
    Comm* const p = comm_;
    detail::expects(p != nullptr, "window_parallel: the object was moved from");
    return *p;
  }

  // A phase: what a rank does alone, and a meeting in which ranks say whether they could, and all
  // throw if one could not. An operation has two. After the first no rank works on the buffers any
  // more; after the second all rows are there, and no rank reads them any more. Two words of each
  // rank are used in turns, so that no rank overwrites what another still reads.
  template <class Local>
  void meet(host_context const& ctx, detail::intention mine, Local local) {
    Comm& ranks = comm();
    ++turn_;
    detail::failure const wrong = detail::failure_of(local);
    auto const window = status_.view();
    auto const word = [&](int rank) {
      return static_cast<std::size_t>(turn_ % 2 * index_t{place_.ranks} + rank) *
             sizeof(std::uint64_t);
    };
    for (int p = 0; p < place_.ranks; ++p)
      *static_cast<std::uint64_t*>(window.peer(p, word(ranks.rank()))) = wrong ? 0 : mine.word();
    ranks.exchange_phase(ctx);
    agreement_.settle(ctx, ranks,
                      static_cast<std::uint64_t const*>(window.peer(ranks.rank(), word(0))), wrong);
  }

  template <class Routes, class T, class W, class Window, class Checks>
  void lay_out(host_context const& ctx, Routes const& routes, window_batch<T, W, Window>& batch,
               Checks checks) {
    ++batches_;
    meet(ctx, {step::prepare, batches_}, [&] {
      require_own("dispatch", batch);
      batch.prepared_ = false, batch.dispatched_ = false;
      detail::arguments a(ctx, "dispatch");
      auto const ids = a.ids("ids", routes.ids, {detail::any_extent, detail::top_k_of(shape_)});
      auto const weights = detail::route_weights_of<W>(a, shape_, routes, ids.extents[0]);
      batch.plan_.place(
          ctx, ids, shape_.experts,
          has_capacity ? route_plan::order::choice_major : route_plan::order::token_major);
      checks();
      W* const kept = batch.weights_.resize(weights.size());
      for (index_t t = 0; t < weights.extents[0]; ++t)
        detail::copy_row<W>(weights.row(t), kept + t * shape_.top_k, shape_.top_k);
      batch.map_.begin(place_, comm().rank());
      detail::publish(batch.window_.view(), batch.shape_, turn_, batch.plan_.counts().data(),
                      batch.plan_.tokens(), detail::team{});
    });
    seat(batch);
    batch.number_ = batches_;
    batch.prepared_ = true;
  }

  /// From what the ranks said to where rows stand, here and everywhere.
  template <class Batch>
  void seat(Batch& batch) {
    detail::window_shape const& shape = batch.shape_;
    index_t const* const said = batch.said(turn_);
    detail::window_rule rule{layout_.alignment, -1};
    if constexpr (has_capacity) {
      index_t tokens = 0, most = 0;
      for (int s = 0; s < place_.ranks; ++s) {
        index_t const* const words = said + s * shape.words();
        if (words[shape.tokens_word()] > tokens) tokens = words[shape.tokens_word()];
        for (int e = 0; e < shape_.experts; ++e) most = words[e] > most ? words[e] : most;
      }
      rule = {1, capacity_of(layout_, tokens, shape_.experts, shape_.top_k, most)};
      // On this thread alone: nothing may fail here, since the others do not ask any more.
      batch.plan_.lay_out(host_context{}, rule.capacity);
    } else {
      batch.plan_.lay_out(layout_);
    }

    auto const window = batch.window_.view();
    index_t needed = 0;
    int fullest = 0;
    for (int owner = 0; owner < place_.ranks; ++owner) {
      index_t start = 0;
      for (int e = place_.first(owner); e < place_.first(owner + 1); ++e) {
        auto const room = detail::room_of(shape, rule, said, e, comm().rank());
        batch.to_[e] = {static_cast<std::byte*>(window.peer(owner, 0)), start + room.before};
        start += room.size;
      }
      if (start > needed) needed = start, fullest = owner;
    }
    detail::expects(needed <= shape.rows, "dispatch: rank ", fullest, " would get ", needed,
                    " rows, but the windows of the batch have ", shape.rows);

    detail::arrivals& map = batch.map_;
    map.capacity = rule.capacity;
    for (int s = 0; s < place_.ranks; ++s)
      for (int l = 0; l < map.locals(); ++l) {
        index_t const count = said[s * shape.words() + batch.first_expert() + l];
        map.arrived[s * map.locals() + l] =
            has_capacity && count > rule.capacity ? rule.capacity : count;
      }
    map.lay_out(rule.alignment);
  }

  template <class T, class W, class Window>
  void place(host_context const& ctx, window_batch<T, W, Window>& batch,
             tensor_view<T const, 2> x) {
    auto const rows = batch.template everywhere<T>(0);
    meet(ctx, {step::end, batch.number_}, [&] {
      for_each_token(ctx, batch, [&](index_t t) {
        detail::scatter_token<T>(batch.plan_.view(), t, x.row(t), shape_.hidden,
                                 detail::unit_weights{}, rows);
      });
      clear_gaps(batch, batch.rows());
    });
    batch.dispatched_ = true;
  }
  template <bool Adds = false, class T, class W, class Window, class Weights, class Out>
  void pull(host_context const& ctx, window_batch<T, W, Window>& batch, int buffer, Weights weights,
            tensor_view<Out, 2> out) {
    auto const rows = batch.template everywhere<T const>(buffer);
    meet(ctx, {step::end, batch.number_}, [&] {
      for_each_token(ctx, batch, [&](index_t t) {
        detail::gather_token(batch.plan_.view(), t, rows, weights, out.row(t), shape_.hidden,
                             Adds ? out.row(t) : nullptr);
      });
    });
  }
  template <class Batch, class F>
  static void for_each_token(host_context const& ctx, Batch const& batch, F f) {
    detail::for_each_token(ctx, batch.plan_, batch.shape_.row_bytes, f);
  }
  template <class Batch, class T>
  static void clear_gaps(Batch const& batch, tensor_view<T, 2> rows) {
    batch.map_.for_each_gap([&](index_t first, index_t last) {
      for (index_t i = first; i < last; ++i) detail::clear_row(rows.row(i), rows.extents[1]);
    });
  }

  /// Ranks count operations by object, so a batch belongs to the object that made it.
  void const* mark() const { return status_.view().peer(comm().rank(), 0); }
  template <class Batch>
  void require_own(char const* what, Batch const& batch) const {
    detail::window_shape const& theirs = batch.shape_;
    bool const fits = theirs.place.experts == shape_.experts &&
                      theirs.place.ranks == place_.ranks && batch.hidden() == shape_.hidden;
    detail::expects(fits && batch.maker_ == mark(), what, ": the batch was made by another object");
  }
  template <class Batch>
  void require_prepared(char const* what, Batch const& batch) const {
    require_own(what, batch);
    detail::expects(batch.prepared_, what,
                    ": the batch has no routes; dispatch or prepare it first");
  }
  template <class Batch>
  void require_dispatched(char const* what, Batch const& batch) const {
    require_prepared(what, batch);
    detail::expects(batch.dispatched_, what, ": the batch has no rows; dispatch tokens first");
  }
  template <class Batch>
  static void require_backward(char const* what, Batch const& batch) {
    detail::expects(batch.shape_.buffers == 4, what,
                    ": the batch was made for the forward pass alone");
  }
  template <class Batch, class T>
  void check_input(Batch const& batch, tensor_view<T const, 2> const& x) const {
    detail::argument_table a("dispatch");
    a.reads("tokens", x, {detail::tokens_of_batch(batch), detail::columns_of(shape_)});
    a.writes("rows", batch.buffer(0, batch.window_rows()));
  }

  detail::cleared_by_move<Comm*> comm_;
  expert_shape shape_;
  Layout layout_;
  block_placement place_;
  std::pmr::memory_resource* memory_;
  detail::agreement agreement_;
  status_window status_;
  unsigned turn_ = 0;          // meetings so far
  std::uint64_t batches_ = 0;  // prepared so far
};

template <class Comm, class Layout = ragged>
window_parallel(Comm&, expert_shape, Layout = {},
                std::pmr::memory_resource* = std::pmr::get_default_resource())
    -> window_parallel<Comm, Layout>;

}  // namespace expar::inline v0
