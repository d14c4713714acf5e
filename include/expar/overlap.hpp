// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/exchange/lane.hpp>
#include <expar/expert_parallel.hpp>

namespace expar::inline v0 {

/// A layer whose rows travel while its experts run: expert_parallel over messages, in chunks.
///
///   expar::overlapped_layer moe(comm, shape, 4);
///   moe.run(ctx, tokens, routes, batch, experts, out);
///   moe.run_backward(ctx, d_out, batch, experts_backward, d_tokens, d_weights);
///
/// Chunk c of a rank is its local slots from c * slots / chunks on, so that some are empty where
/// there are more chunks than slots. experts(batch, slots) is called for each chunk in order, on
/// this thread: it reads rows() of these slots and fills y() of them, at the places that
/// slot_offsets() tells; experts_backward(batch, slots) reads d_y() and fills d_rows(). While it
/// runs on a chunk, the rows of the next chunk are on their way to it and those of the one before
/// on their way home, as far as the communicator carries them meanwhile: see starting_communicator.
/// On one that is none the layer works, and nothing overlaps.
///
/// Every bit is that of expert_parallel, for any number of chunks: rows stand where they stand
/// there, those of a slot come together, and a token's sum runs over its choices in order, in one
/// accumulator, when all have come home. So a gradient of weights that is made slot by slot is the
/// same as well.
///
/// Collective, as expert_parallel is. Where something fails on one rank, an exception of the
/// caller's experts among it, its messages say so, all ranks finish what they have begun, and all
/// throw its sentence; the object works at once. No expert runs on what such a rank has sent.
///
/// Cost: that of expert_parallel over messages, `chunks` messages to a rank instead of each, and
/// one meeting. A direction has message buffers of its own, so that the layer keeps twice as much
/// as `messages`. The communicator outlives the layer, which does not move.
template <class Comm, class Layout = ragged, class Site = weights_at_decode>
class overlapped_layer {
  static_assert(variable_communicator<Comm>,
                "expar: an overlapped_layer needs a communicator with all_to_all_v");
  using steps = detail::engine<messages<Comm>, Layout, Site>;
  using none = typename steps::none;
  static constexpr bool at_decode = steps::at_decode, at_encode = steps::at_encode,
                        per_row = steps::per_row;

 public:
  /// Throws, on all ranks alike, what expert_parallel throws, and if ranks pass different `chunks`,
  /// or less than 1.
  overlapped_layer(Comm& comm, expert_shape shape, int chunks, Layout layout = {}, Site = {},
                   std::pmr::memory_resource* memory = std::pmr::get_default_resource())
      : comm_(&comm),
        memory_(memory),
        x_(comm, memory),
        steps_(x_, shape, layout, memory),
        chunks_(chunks),
        there_(true, memory),
        home_(false, memory) {
    auto const wrong = detail::failure_of([&] { there_.reserve(chunks), home_.reserve(chunks); });
    constexpr char const* what = "overlapped_layer";
    detail::expects_agreement(host_context{}, comm, x_.agreed(), detail::step::construct, what,
                              {{"chunks", static_cast<double>(chunks)}}, wrong);
    detail::expects(chunks >= 1, what, ": chunks is ", chunks, "; at least 1 is needed");
  }
  overlapped_layer(overlapped_layer const&) = delete;
  overlapped_layer& operator=(overlapped_layer const&) = delete;

  expert_shape const& shape() const noexcept { return steps_.shape_; }
  int chunks() const noexcept { return chunks_; }
  expar::placement const& placement() const noexcept { return steps_.routing_.placement(); }
  /// As expert_parallel has it.
  void place(expar::placement const& p) { steps_.place(p); }

  /// A batch for rows of T, weights of W and outputs of Y, with memory of this object's resource.
  template <class T, class W = float, class Y = T>
  expert_batch<T, W, Y> make_batch() const {
    return expert_batch<T, W, Y>(memory_);
  }

  /// tokens [T, hidden] by their routes to experts, and what these make of them home: dispatch,
  /// experts and combine of expert_parallel, whose arguments these are. out: [T, hidden_out]. The
  /// batch keeps rows() and y(), which run_backward reads where weights are applied at decode.
  template <class Tokens, class Routes, class T, class W, class Y, class Experts, class Out,
            class Quotas = take_turns>
  void run(host_context const& ctx, Tokens const& tokens, Routes const& routes,
           expert_batch<T, W, Y>& batch, Experts&& experts, Out&& out, Quotas const& quotas = {}) {
    using namespace detail;
    batch_state& b = batch.state_;
    tensor_view<T const, 2> from;
    decltype(as_output<2>(ctx, out)) to{};
    cargo<T, W> rows{side::rows};
    cargo<Y, W> y{side::y};
    rows.columns = shape().hidden, rows.scalar_bytes = per_row ? index_t{sizeof(W)} : 0;
    y.columns = shape().hidden_out;
    steps_.take_routes(ctx, routes, batch, quotas, [] {});
    intention const mine{step::run, b.number, steps_.id_};
    begin(ctx, mine, [&] {
      from = rows_view<T>(ctx, tokens);
      to = as_output<2>(ctx, out);
      argument_table a("run");
      a.reads("tokens", from, {tokens_of_batch(batch), columns_of(shape())});
      a.writes("out", to, {tokens_of_batch(batch), {y.columns, "hidden_out"}});
      make_room(b, rows), make_room(b, y);
      there_.divide(b.at, rows.row_bytes(), rows.scalar_bytes);
      home_.divide(b.at, y.row_bytes(), 0);
    });
    b.dispatched = true;
    flow(
        ctx, mine, b,
        [&] {
          there_.take_seats(b.at, rows);
          steps::template put_rows<at_encode, per_row>(ctx, b.routes(), from, batch.weights(),
                                                       there_.template rows<T>(),
                                                       there_.template scalars<W>());
        },
        [&](int c, slot_range slots) {
          there_.unpack(ctx, b.at, rows, c);
          experts(batch, slots);
          home_.pack(ctx, b.at, y, c);
        },
        [&] {
          home_.take_seats(b.at, y);
          steps::sum_y(ctx, batch, home_.template rows<Y const>(), to);
        });
  }

  /// The adjoint of run(): d_out [T, hidden_out] to d_y, experts_backward, and d_rows home, to
  /// d_tokens [T, hidden] and d_weights [T,k], both added to by add_to(). With weights at decode it
  /// reads y() of the batch; with weights per row experts_backward fills d_row_weights() as well.
  template <class DOut, class T, class W, class Y, class Experts, class DTokens, class DWeights>
  void run_backward(host_context const& ctx, DOut const& d_out, expert_batch<T, W, Y>& batch,
                    Experts&& experts_backward, DTokens&& d_tokens, DWeights&& d_weights) {
    static_assert(
        !at_encode,
        "expar: with weights at encode, run_backward needs the tokens: pass them in front "
        "of d_tokens");
    backward(ctx, d_out, batch, experts_backward, none{}, d_tokens, d_weights);
  }
  /// With weights at encode, whose gradients need the tokens.
  template <class DOut, class T, class W, class Y, class Experts, class Tokens, class DTokens,
            class DWeights>
  void run_backward(host_context const& ctx, DOut const& d_out, expert_batch<T, W, Y>& batch,
                    Experts&& experts_backward, Tokens const& tokens, DTokens&& d_tokens,
                    DWeights&& d_weights) {
    static_assert(at_encode, "expar: run_backward reads tokens only with weights at encode");
    backward(ctx, d_out, batch, experts_backward, tokens, d_tokens, d_weights);
  }

 private:
  template <class DOut, class T, class W, class Y, class Experts, class Tokens, class DTokens,
            class DWeights>
  void backward(host_context const& ctx, DOut const& d_out, expert_batch<T, W, Y>& batch,
                Experts& experts, Tokens const& tokens, DTokens& d_tokens, DWeights& d_weights) {
    using namespace detail;
    static_assert(element<T> && element<Y>,
                  "expar: run_backward sums rows, whose element type must be one that can be "
                  "summed");
    // Beside a row home: the gradient of its weight, made here of y and d_out, or by the caller.
    using S = row_scalar_t<std::conditional_t<at_decode, Y, T>, W>;
    batch_state& b = batch.state_;
    weight_gradients& gradients = steps_.weight_gradients_;
    tensor_view<Y const, 2> d;
    tensor_view<T const, 2> of_tokens;
    decltype(gradient_output<2>(ctx, d_tokens)) to{};
    decltype(gradient_output<2>(ctx, d_weights)) d_w{};
    using out_element = element_of<decltype(to)>;
    if constexpr (to.adds) check_summed_alike<T, out_element>();
    cargo<Y, W> y{side::y}, d_y{side::d_y};
    cargo<T, S> d_rows{side::d_rows};
    y.columns = d_y.columns = shape().hidden_out, d_rows.columns = shape().hidden;
    if constexpr (at_decode) d_y.scalar_bytes = sizeof(W);
    if constexpr (!at_encode) d_rows.scalar_bytes = sizeof(S);
    intention const mine{step::run_backward, b.number, steps_.id_};
    begin(ctx, mine, [&] {
      steps_.check_dispatched("run_backward", batch);
      argument_table a("run_backward");
      d = rows_view<Y>(ctx, d_out);
      a.reads("d_out", d, {tokens_of_batch(batch), {d_y.columns, "hidden_out"}});
      if constexpr (at_encode) {
        of_tokens = rows_view<T>(ctx, tokens);
        a.reads("tokens", of_tokens, {tokens_of_batch(batch), columns_of(shape())});
      }
      if constexpr (at_decode) y.read_in(a, "y", b, "hidden_out"), y.take_from(b);
      to = gradient_output<2>(ctx, d_tokens);
      name_gradient(a, "d_tokens", to, {tokens_of_batch(batch), columns_of(shape())});
      d_w = gradient_output<2>(ctx, d_weights);
      steps_.template name_weights<S>(a, batch, d_w);
      if constexpr (at_decode) {
        index_t const dots = round_up(b.at.rows() * index_t{sizeof(S)}, 64);
        std::byte* const scratch = steps_.scalars_.resize(dots + b.at.rows() * index_t{sizeof(W)});
        d_rows.scalars = reinterpret_cast<S*>(scratch);
        d_y.scalars = reinterpret_cast<W*>(scratch + dots);
      }
      make_room(b, d_y), make_room(b, d_rows);
      there_.divide(b.at, d_y.row_bytes(), d_y.scalar_bytes);
      home_.divide(b.at, d_rows.row_bytes(), d_rows.scalar_bytes);
    });
    flow(
        ctx, mine, b,
        [&] {
          there_.take_seats(b.at, d_y);
          if constexpr (at_decode)
            steps::template put_gradients<Y>(
                ctx, b.routes(), d, batch.weights(), x_.readable(b, y, steps_.y_seats_),
                gradients.of_slots<S>(), there_.template rows<Y>(), there_.template scalars<W>());
          else
            steps::template put_rows<false, false>(ctx, b.routes(), d, batch.weights(),
                                                   there_.template rows<Y>(),
                                                   there_.template scalars<W>());
        },
        [&](int c, slot_range slots) {
          there_.unpack(ctx, b.at, d_y, c);
          if constexpr (at_decode)
            for_each_foreign_run(ctx, b.at, slots.first, slots.last, d_y.row_bytes(),
                                 [&](int, index_t, index_t first, index_t rows) {
                                   for (index_t i = first; i < first + rows; ++i) {
                                     Y* const row = d_y.rows.row(i);
                                     d_rows.scalars[i] =
                                         dot_rows<Y>(y.rows.row(i), row, d_y.columns);
                                     put_scaled<Y>(row, static_cast<S>(widen(d_y.scalars[i])), row,
                                                   d_y.columns, false);
                                   }
                                 });
          experts(batch, slots);
          home_.pack(ctx, b.at, d_rows, c);
        },
        [&] {
          home_.take_seats(b.at, d_rows);
          auto const scalars = home_.template scalars<S const>();
          tensor_view<out_element const, 2> residual{};
          if constexpr (to.adds) residual = tensor_view<out_element, 2>(to);
          steps::template sum_gradients<out_element>(ctx, batch, home_.template rows<T const>(),
                                                     scalars, of_tokens, to, residual,
                                                     gradients.of_slots<S>());
          if constexpr (at_decode) bring_dots(b, scalars, gradients.of_slots<S>());
          gradients.put<S>(b, d_w);
        });
  }
  /// Those of rows on other ranks; those of the own were made where they stand.
  template <class S>
  static void bring_dots(detail::batch_state const& b, detail::slot_rows<S const> const& scalars,
                         S* dots) {
    auto const routes = b.routes();
    for (index_t i = 0; i < routes.tokens * routes.top_k; ++i)
      if (routes.locations[i] >= 0 && !b.at.is_own(routes.ids[i]))
        dots[i] = *scalars(routes.ids[i], routes.locations[i]);
  }

  template <class T, class S>
  static void make_room(detail::batch_state& b, detail::cargo<T, S>& c) {
    c.make_room(b), c.take_from(b), c.clear_gaps(b.at);
    b.open[static_cast<int>(c.at)] = true;
  }

  /// Collective. Returns once `local` has passed on all ranks.
  template <class Local>
  void begin(host_context const& ctx, detail::intention const& mine, Local local) {
    x_.agreed().run(ctx, *comm_, mine, local);
  }

  /// Collective: scatter() fills the messages to experts, work(chunk, its slots) is called when
  /// those of a chunk have come and fills those that go home, and gather() when all have come home.
  /// From the first message on, sizes are agreed and every rank sends all: one that cannot go on
  /// says so in its words, and the last message, which is behind everything, tells all ranks.
  template <class Scatter, class Work, class Gather>
  void flow(host_context const& ctx, detail::intention const& mine, detail::batch_state const& b,
            Scatter scatter, Work work, Gather gather) {
    using namespace detail;
    int const last = chunks_ - 1, ranks = comm_->size();
    auto const slots = [&](int c) { return there_.local_chunk(b.at, c); };
    if (ranks == 1) {
      scatter();
      for (int c = 0; c < chunks_; ++c) work(c, slots(c));
      return x_.agreed().behind_message(gather);
    }
    failure wrong = failure_of(scatter);
    word w = agreement::word_of(mine, wrong);
    bool all = !wrong;  // go on, as far as this rank knows
    keep_if_lost(
        [&] {
          // What is on its way comes before what is started next, as on a network that carries
          // one after another: where it shares its bandwidth, all would come as late as the last.
          there_.start(ctx, *comm_, 0, w);
          for (int c = 0; c < chunks_; ++c) {
            there_.finish(c);
            if (c >= 2) home_.finish(c - 2);
            for (int r = 0; r < ranks; ++r)
              all = all && (r == comm_->rank() || word_at(there_.word_of(c, r)).matches(w));
            if (c < last) there_.start(ctx, *comm_, c + 1, w);
            if (c >= 1) home_.start(ctx, *comm_, c - 1, w);
            if (!all) continue;
            wrong = failure_of([&] { work(c, slots(c)); });
            if (wrong) w = agreement::word_of(mine, wrong), all = false;
          }
          if (last >= 1) home_.finish(last - 1);
          home_.start(ctx, *comm_, last, w);
          x_.agreed().hear(
              ctx, *comm_, w, wrong, [&] { home_.finish(last); },
              [&](int r) { return home_.word_of(last, r); });
        },
        there_.out, there_.in, home_.out, home_.in);
    x_.agreed().behind_message(gather);
  }

  Comm* comm_;
  std::pmr::memory_resource* memory_;
  messages<Comm> x_;
  steps steps_;
  int chunks_;
  detail::lane<Comm> there_, home_;
};

template <class Comm, class Layout = ragged, class Site = weights_at_decode>
overlapped_layer(Comm&, expert_shape, int, Layout = {}, Site = {},
                 std::pmr::memory_resource* = std::pmr::get_default_resource())
    -> overlapped_layer<Comm, Layout, Site>;

}  // namespace expar::inline v0
