// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/exchange/engine.hpp>
#include <expar/expert_batch.hpp>

namespace expar::inline v0 {

/// How rows are packed while they travel: bytes(n) for n columns, pack() and unpack() one row. See
/// <expar/exchange/wire.hpp>.
template <class F, class T>
concept wire_format = requires(F const& f, T const* x, T* to, std::byte* bytes, index_t n) {
  { f.bytes(n) } -> std::same_as<index_t>;
  f.pack(x, bytes, n);
  f.unpack(static_cast<std::byte const*>(bytes), to, n);
};

/// Sends token rows to the experts of all ranks and brings the results home, forward and backward.
///
/// Made of a communicator, it takes the best that it gives: windows where it has them (tier 3),
/// else messages (tier 2; tier 1 for fixed_capacity). Made of a transport, `messages` or `windows`,
/// it shares that with other layers.
///
/// Collective, like every member function but accessors: all ranks call the same functions in the
/// same order. Each returns when it has finished. A word in front of every message says what its
/// rank does. A wrong argument, an exception of the caller's executor or tensors, a lack of memory
/// on one rank, or ranks in different calls make the call throw the same sentence on all ranks, and
/// the object works at once; what the call was to write is then unspecified. What fails behind the
/// last message of a call throws on its rank, and on all ranks in the next call. A rank that never
/// comes is for the communicator to tell, by lost_rank: then both stay dead, and survivors make
/// others of a smaller communicator and placement().without(rank).
/// Neither the transport nor the number of ranks nor copies of experts change a bit: rows are
/// copied, and a token's sum runs over its choices in order, in one accumulator.
///
/// Rows of experts stand in the sides of a batch, rows() y() d_y() d_rows(), or in tensors of the
/// caller, who then names them in the call: the side itself, or apart from it. The communicator
/// outlives the object. One operation at a time per transport; a repeated shape allocates nothing
/// when its batch is reused.
///
/// Cost per rank and direction: the rows of its kept routes to other ranks; fixed_capacity over
/// messages, slots * capacity rows. A row to another rank is copied three times over messages
/// (pack, exchange, unpack), and once over windows, as a row to the own rank is.
template <class From, class Layout = ragged, class Site = weights_at_decode>
class expert_parallel : private detail::engine<From, Layout, Site> {
  using steps = detail::engine<From, Layout, Site>;
  using steps::at_decode, steps::at_encode, steps::per_row;
  using none = typename steps::none;
  template <class T, class S>
  using cargo = detail::cargo<T, S>;
  template <class T, class W>
  using row_scalar = detail::row_scalar_t<T, W>;

 public:
  /// Throws, on all ranks alike, if the ranks disagree, if top_k is not 1 .. experts, or hidden
  /// < 1. Experts are placed in blocks until place() says otherwise. `memory` serves what it keeps.
  expert_parallel(From& from, expert_shape shape, Layout layout = {}, Site = {},
                  std::pmr::memory_resource* memory = std::pmr::get_default_resource())
      : steps(from, shape, layout, memory) {}

  expert_shape const& shape() const noexcept { return this->shape_; }
  expar::placement const& placement() const noexcept { return this->routing_.placement(); }

  /// Places experts anew, for what is prepared from now on. Throws, on all ranks alike, if ranks
  /// pass different placements, or one of other experts or ranks. A batch that is alive keeps the
  /// placement by which it was prepared, and the caller the weights that it needs. Routes of an
  /// expert that has no copy, see placement::without(), are dropped.
  void place(expar::placement const& p) { steps::place(p); }

  /// A batch for rows of T, weights of W and outputs of Y, with memory of this object's resource.
  template <class T, class W = float, class Y = T>
  expert_batch<T, W, Y> make_batch() const {
    return expert_batch<T, W, Y>(this->memory_);
  }

  /// First part of dispatch: plans the routes of this rank's tokens and tells every rank how many
  /// rows will come. `routes` has tensors `ids` [T,k] (signed integers, -1 = no expert) and
  /// `weights` [T,k]; T may differ from rank to rank and may be 0. The batch keeps a copy of both.
  /// `quotas` chooses copies; see take_turns. Throws, on all ranks alike, where more rows come than
  /// a budget has that is an error.
  template <class Routes, class T, class W, class Y, class Quotas = take_turns>
  void prepare(host_context const& ctx, Routes const& routes, expert_batch<T, W, Y>& batch,
               Quotas const& quotas = {}) {
    steps::take_routes(ctx, routes, batch, quotas, [] {});
  }

  /// Second part: the rows. tokens: [T, hidden] of the batch's element type. May be repeated on the
  /// same routes with these tokens, when rows() were released, or others. The second form writes
  /// `rows` [N, hidden] of the caller instead of batch.rows().
  template <class Tokens, class T, class W, class Y>
  void dispatch(host_context const& ctx, Tokens const& tokens, expert_batch<T, W, Y>& batch) {
    steps::send(ctx, tokens, batch, {}, cargo<T, W>{side::rows});
  }
  template <class Tokens, class T, class W, class Y, class Rows>
  requires(!wire_format<std::remove_cvref_t<Rows>, T>) void dispatch(host_context const& ctx,
                                                                     Tokens const& tokens,
                                                                     expert_batch<T, W, Y>& batch,
                                                                     Rows&& rows) {
    steps::send(ctx, tokens, batch, {},
                steps::template callers<T, W>(ctx, side::rows, batch, rows));
  }

  /// The same with rows that are packed while they travel, `format` being wire<bfloat16>{},
  /// wire<float8_e4m3>{} or a wire_format of the caller: batch.rows() are what unpack() makes of
  /// what pack() made of the tokens, on the own rank too, for any number of ranks. Backward goes
  /// straight through. Not with weights at encode. One collective, of format.bytes(hidden) a row.
  template <class Tokens, class T, class W, class Y, wire_format<T> Format>
  void dispatch(host_context const& ctx, Tokens const& tokens, expert_batch<T, W, Y>& batch,
                Format const& format) {
    steps::send_packed(ctx, tokens, batch, format);
  }

  /// What belongs to tokens beside their rows, as ids, positions, or rows that the caller has
  /// quantized: what [T, n] of any trivially copyable type to `to` [N, n] of the same, by the
  /// routes of a prepared batch. All ranks pass rows of as many bytes. Rows of `to` that are
  /// padding become zero bytes. From then on the batch has y(). One collective.
  template <class What, class T, class W, class Y, class To>
  void carry(host_context const& ctx, What const& what, expert_batch<T, W, Y>& batch, To&& to) {
    steps::carry(ctx, what, batch, to);
  }

  /// Both parts: tokens [T, hidden] and their routes to batch.rows(). The second form makes the
  /// batch.
  template <class Tokens, class Routes, class T, class W, class Y, class Quotas = take_turns>
  void dispatch(host_context const& ctx, Tokens const& tokens, Routes const& routes,
                expert_batch<T, W, Y>& batch, Quotas const& quotas = {}) {
    auto const met = steps::take_routes(ctx, routes, batch, quotas, [&] {
      steps::check_tokens(detail::rows_view<T>(ctx, tokens), batch);
    });
    steps::send(ctx, tokens, batch, met, cargo<T, W>{side::rows});
  }
  template <class Tokens, class Routes>
  requires requires(Routes const& r) { r.ids, r.weights; }
  auto dispatch(host_context const& ctx, Tokens const& tokens, Routes const& routes) {
    using T = detail::element_of<decltype(detail::as_view<2>(ctx, tokens))>;
    using W = detail::element_of<decltype(detail::as_view<2>(ctx, routes.weights))>;
    auto batch = make_batch<T, W>();
    dispatch(ctx, tokens, routes, batch);
    return batch;
  }

  /// out[t] = sum over kept routes, in choice order and of each over its shards, of weight * y[row]
  /// (weights at decode) or of y[row]. y: batch.y(), or the caller's [N, hidden_out]; padding is
  /// not read. out: [T, hidden_out], of any element type, zero for a token without a kept route.
  template <class T, class W, class Y, class Out>
  void combine(host_context const& ctx, expert_batch<T, W, Y>& batch, Out&& out) {
    steps::gather_y(ctx, batch, cargo<Y, W>{side::y}, out);
  }
  template <class T, class W, class Y, class Rows, class Out>
  void combine(host_context const& ctx, expert_batch<T, W, Y>& batch, Rows const& y, Out&& out) {
    steps::gather_y(ctx, batch, steps::template brought<Y, W>(ctx, side::y, batch, y), out);
  }

  /// The adjoint of combine with weights at decode: d_y[row] = weight * d_out[t], zero in padding;
  /// d_weights[t,j] = <y[row], d_out[t]>, summed over shards, zero for a route without a row. y is
  /// read from the batch and d_y written there, or both are the caller's [N, hidden_out]. d_out:
  /// [T, hidden_out] of y's element type; d_weights: [T,k], added to by add_to().
  template <class T, class W, class Y, class DOut, class Last>
  void combine_backward(host_context const& ctx, expert_batch<T, W, Y>& batch, DOut const& d_out,
                        Last&& d_weights) {
    if constexpr (at_decode)
      steps::scatter_d_y(ctx, batch, d_out, cargo<Y, W>{side::y}, cargo<Y, W>{side::d_y},
                         d_weights);
    else  // it is the caller's d_y
      steps::scatter_d_y(ctx, batch, d_out, cargo<Y, W>{side::y},
                         steps::template callers<Y, W>(ctx, side::d_y, batch, d_weights), none{});
  }
  template <class T, class W, class Y, class DOut, class Rows, class DY, class DWeights>
  void combine_backward(host_context const& ctx, expert_batch<T, W, Y>& batch, DOut const& d_out,
                        Rows const& y, DY&& d_y, DWeights&& d_weights) {
    steps::scatter_d_y(ctx, batch, d_out, steps::template brought<Y, W>(ctx, side::y, batch, y),
                       steps::template callers<Y, W>(ctx, side::d_y, batch, d_y), d_weights);
  }
  /// Where combine applies no weights: d_y[row] = d_out[t]; the caller's d_y may follow d_out.
  template <class T, class W, class Y, class DOut>
  void combine_backward(host_context const& ctx, expert_batch<T, W, Y>& batch, DOut const& d_out) {
    steps::scatter_d_y(ctx, batch, d_out, cargo<Y, W>{side::y}, cargo<Y, W>{side::d_y}, none{});
  }

  /// The adjoint of dispatch with weights at decode: d_tokens[t] = sum over kept routes, in choice
  /// order, of d_rows[row], from the batch, or the caller's [N, hidden]; padding is not read.
  /// d_tokens: [T, hidden], added to by add_to().
  template <class T, class W, class Y, class DTokens>
  void dispatch_backward(host_context const& ctx, expert_batch<T, W, Y>& batch,
                         DTokens&& d_tokens) {
    steps::gather_d_rows(ctx, batch, cargo<T, row_scalar<T, W>>{side::d_rows}, none{}, d_tokens,
                         none{});
  }
  /// With weights per row, d_tokens and d_weights from batch.d_rows() and batch.d_row_weights():
  /// d_weights[t,j] = d_row_weights[row], summed over shards; added to by add_to().
  template <class T, class W, class Y, class First, class Second>
  void dispatch_backward(host_context const& ctx, expert_batch<T, W, Y>& batch, First&& first,
                         Second&& second) {
    if constexpr (per_row)
      steps::gather_d_rows(ctx, batch, cargo<T, row_scalar<T, W>>{side::d_rows}, none{}, first,
                           second);
    else
      steps::gather_d_rows(
          ctx, batch, steps::template brought<T, row_scalar<T, W>>(ctx, side::d_rows, batch, first),
          none{}, second, none{});
  }
  /// With weights at encode, from batch.d_rows(): d_tokens[t] = sum of weight * d_rows[row], and
  /// d_weights[t,j] = <d_rows[row], tokens[t]>.
  template <class T, class W, class Y, class Tokens, class DTokens, class DWeights>
  void dispatch_backward(host_context const& ctx, expert_batch<T, W, Y>& batch,
                         Tokens const& tokens, DTokens&& d_tokens, DWeights&& d_weights) {
    static_assert(at_encode,
                  "expar: with weights at decode, d_weights comes from combine_backward; give "
                  "dispatch_backward d_rows and d_tokens");
    steps::gather_d_rows(ctx, batch, cargo<T, row_scalar<T, W>>{side::d_rows}, tokens, d_tokens,
                         d_weights);
  }
  /// Both from the caller's d_rows [N, hidden]; `what` is tokens (weights at encode) or
  /// d_row_weights [N] of the accumulator type (weights per row).
  template <class T, class W, class Y, class DRows, class What, class DTokens, class DWeights>
  void dispatch_backward(host_context const& ctx, expert_batch<T, W, Y>& batch, DRows const& d_rows,
                         What const& what, DTokens&& d_tokens, DWeights&& d_weights) {
    static_assert(!at_decode,
                  "expar: with weights at decode, d_weights comes from combine_backward; give "
                  "dispatch_backward d_rows and d_tokens");
    steps::gather_d_rows(
        ctx, batch, steps::template brought<T, row_scalar<T, W>>(ctx, side::d_rows, batch, d_rows),
        what, d_tokens, d_weights);
  }
};

template <class From, class Layout = ragged, class Site = weights_at_decode>
expert_parallel(From&, expert_shape, Layout = {}, Site = {},
                std::pmr::memory_resource* = std::pmr::get_default_resource())
    -> expert_parallel<From, Layout, Site>;

}  // namespace expar::inline v0
