// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <vector>

#include <expar/expert_parallel.hpp>
#include <expar/gpu/expert_batch.cuh>
#include <expar/gpu/permute/detail/checks.cuh>

namespace expar::inline v0::gpu {

/// The sums of one rank of a batch on the host.
struct expert_sums {
  std::vector<index_t> counts, offsets;  // as expert_batch::expert_counts() and expert_offsets()
  index_t needed_rows = 0;  // what the windows must have for every rank: the same on all
  index_t lost_rows = 0;    // rows for the experts of this rank that found no place

  index_t rows() const { return offsets.empty() ? 0 : offsets.back(); }
};

/// expar::expert_parallel on devices, over memory that peers can write: rows go straight to their
/// final place among the rows of their expert, and combine reads them there. Expert ids, rows,
/// drops, and the bytes of rows, out, d_y and d_tokens are the host's; d_weights is summed in the
/// order of gpu::decode_backward.
///
/// Weights are applied at decode. Functions take one argument per rank that this process drives, in
/// order of the rank: any range with size() and []. They enqueue work on the streams of the group
/// and wait for nothing; every operation ends with a phase boundary, and those that read peers'
/// rows begin with one. A wrong argument throws before anything is enqueued.
///
/// No number of rows comes back to the host. Windows have the size that the caller states: the
/// worst case, or a capacity; a row behind the last of its window is not written, counts as no
/// route in every operation that follows, and read_sync() tells.
///
/// Kernels for each rank: dispatch 4 (plan, publish, seat, scatter), combine 1, combine_backward 1,
/// dispatch_backward 1; with an alignment above 1, one more in dispatch and in combine_backward.
/// No allocation once a batch has been used for its largest number of tokens.
template <rank_group Group, class Layout = ragged>
class expert_parallel {
  static constexpr bool has_capacity = std::is_same_v<Layout, fixed_capacity>;
  static_assert(has_capacity || std::is_same_v<Layout, ragged>,
                "expar: the layout of expert_parallel is ragged or fixed_capacity");

 public:
  /// Throws if top_k is not 1 .. experts, hidden < 1, or if there are fewer experts than ranks.
  /// A fixed_capacity has rows, or a positive factor: then the capacity follows from the most
  /// tokens of a rank: of all ranks where one process drives them all, else all have equally many.
  explicit expert_parallel(Group& group, expert_shape shape, Layout layout = {})
      : group_(&group), shape_(shape), layout_(layout), place_{shape.experts, group.size()} {
    expar::detail::check_shape("expert_parallel", shape, layout);
    expar::detail::expects(shape.experts >= group.size(), "expert_parallel: experts is ",
                           shape.experts, ", fewer than the ", group.size(),
                           " ranks; every rank needs one of its own");
    expar::detail::expects(shape.hidden_out == 0 || shape.hidden_out == shape.hidden,
                           "expert_parallel: hidden_out is ", shape.hidden_out,
                           "; on a device y has the hidden ", shape.hidden, " of the rows");
    if constexpr (has_capacity) detail::check_factor("expert_parallel", layout);
  }

  expert_shape const& shape() const noexcept { return shape_; }
  block_placement const& placement() const noexcept { return place_; }

  /// Rows that always are enough where no rank has more than `tokens` tokens.
  index_t worst_case_rows(index_t tokens) const {
    return expar::detail::worst_case_rows(place_, layout_, shape_.top_k, tokens);
  }

  /// A batch and its windows: collective, and slow on most transports. Make batches once and use
  /// them again.
  template <class T, class W = float>
  auto make_batch(window_size size) const {
    auto const window = expar::detail::shape_of(place_, shape_.hidden * index_t{sizeof(T)}, size);
    using windows = decltype(group_->allocate_window(std::size_t{}));
    return expert_batch<T, W, windows>(*group_, window);
  }

  /// First part of dispatch: plans the routes of every rank's tokens, and tells all ranks where
  /// rows go. `routes[i]` has tensors `ids` [T,k] (int32, -1 = no expert; others that are out of
  /// range count as none) and `weights` [T,k]; T may differ and may be 0. The batch keeps a copy of
  /// both.
  template <class Routes, class T, class W, class Windows>
  void prepare(Routes const& routes, expert_batch<T, W, Windows>& batch) const {
    check_group("dispatch", batch);
    check_routes(routes, batch);
    lay_out(routes, batch);
    group_->exchange_phase();
  }
  /// Second part: the rows. tokens[i]: [T,H] of the batch's element type. May be repeated with
  /// other tokens on the same routes.
  template <class Tokens, class T, class W, class Windows>
  void dispatch(Tokens const& tokens, expert_batch<T, W, Windows>& batch) const {
    check_prepared("dispatch", batch);
    check_all("dispatch", tokens, [&](int r, context const& ctx, auto const& x) {
      check_input(ctx, batch, r, expar::detail::rows_view<T>(ctx, x), tokens_of(batch, r));
    });
    group_->exchange_phase();
    place(tokens, batch);
  }
  /// Both parts.
  template <class Tokens, class Routes, class T, class W, class Windows>
  void dispatch(Tokens const& tokens, Routes const& routes,
                expert_batch<T, W, Windows>& batch) const {
    check_group("dispatch", batch);
    check_routes(routes, batch);
    check_all("dispatch", tokens, [&](int r, context const& ctx, auto const& x) {
      auto const ids = expar::detail::as_view<2>(ctx, routes[index(r)].ids);
      check_input(ctx, batch, r, expar::detail::rows_view<T>(ctx, x), ids.extents[0]);
    });
    lay_out(routes, batch);
    place(tokens, batch);
  }

  /// out[i][t] = sum over kept routes, in choice order, of weight * y[row], read from batch.y() of
  /// all ranks. out[i]: [T,H], of any element type, zero for a token without a kept route.
  template <class T, class W, class Windows, class Out>
  void combine(expert_batch<T, W, Windows> const& batch, Out&& out) const {
    pull("combine", "y", "out", batch, 1, out, [&](int r) { return batch.weights(r); });
  }

  /// The adjoint of combine: batch.d_y()[row] = weight * d_out[t] on all ranks, zero in filling
  /// rows; d_weights[i][t,j] = <y[row], d_out[t]>, zero for a route without a row. d_out[i]: [T,H];
  /// d_weights[i]: [T,k].
  template <class T, class W, class Windows, class DOut, class DWeights>
  void combine_backward(expert_batch<T, W, Windows> const& batch, DOut const& d_out,
                        DWeights&& d_weights) const {
    constexpr char const* name = "combine_backward";
    check_dispatched(name, batch);
    check_backward(name, batch);
    check_all(name, d_out, [](int, context const&, auto const&) {});
    check_all(name, d_weights, [&](int r, context const& ctx, auto& d) {
      expar::detail::arguments a(ctx, name);
      expar::detail::rule const tokens{tokens_of(batch, r), "the number of tokens"};
      a.reads("d_out", expar::detail::rows_view<T>(ctx, d_out[index(r)]),
              {tokens, expar::detail::columns_of(shape_)});
      a.reads("y", batch.y(r));
      a.writes("d_y", batch.d_y(r));
      detail::overwritten(a, "d_weights", d, {tokens, expar::detail::top_k_of(shape_)});
    });
    group_->exchange_phase();
    on_all([&](int r, context const& ctx) {
      auto const d = expar::detail::rows_view<T>(ctx, d_out[index(r)]);
      auto const dw = expar::detail::as_output<2>(ctx, d_weights[index(r)]);
      auto const y = batch.y(r), d_y = batch.d_y(r);
      detail::dots<true>(ctx, name, batch.plan(r), batch.template everywhere<T const>(r, 1),
                         detail::read_only(y), d, batch.weights(r),
                         batch.template everywhere<T>(r, 2), d_y, dw, fill::zero);
      clear(ctx, name, batch, r, d_y);
    });
    group_->exchange_phase();
  }

  /// The adjoint of dispatch: d_tokens[i][t] = sum over kept routes, in choice order, of
  /// batch.d_rows()[row] of all ranks. d_tokens[i]: [T,H].
  template <class T, class W, class Windows, class DTokens>
  void dispatch_backward(expert_batch<T, W, Windows> const& batch, DTokens&& d_tokens) const {
    check_backward("dispatch_backward", batch);
    pull("dispatch_backward", "d_rows", "d_tokens", batch, 3, d_tokens,
         [](int) { return detail::unit_weights{}; });
  }

  /// Counts, offsets, and whether the windows were large enough, of every rank that this process
  /// drives. Waits for their streams.
  template <class T, class W, class Windows>
  std::vector<expert_sums> read_sync(expert_batch<T, W, Windows> const& batch) const {
    check_prepared("read_sync", batch);
    std::vector<std::vector<index_t>> all;
    on_all([&](int r, context const& ctx) {
      auto& words = all.emplace_back(static_cast<std::size_t>(batch.sums_of(r)));
      detail::check(
          cudaMemcpyAsync(words.data(), batch.seats_of(r).offsets, words.size() * sizeof(index_t),
                          cudaMemcpyDeviceToHost, ctx.stream()),
          "cudaMemcpyAsync", "read_sync");
    });
    on_all([&](int, context const& ctx) {
      detail::check(cudaStreamSynchronize(ctx.stream()), "cudaStreamSynchronize", "read_sync");
    });
    std::vector<expert_sums> sums;
    for (auto const& words : all) {
      auto const locals = static_cast<std::ptrdiff_t>((words.size() - 3) / 2);
      auto const counts = words.begin() + locals + 1, needed = counts + locals;
      sums.push_back({{counts, needed}, {words.begin(), counts}, needed[0], needed[1]});
    }
    return sums;
  }

 private:
  std::size_t index(int rank) const {
    return static_cast<std::size_t>(rank - group_->first_rank());
  }
  template <class F>
  void on_all(F f) const {
    int const first = group_->first_rank();
    for (int r = first; r < first + group_->local_ranks(); ++r)
      group_->on(r, [&](context const& ctx) { f(r, ctx); });
  }

  template <class Routes, class Batch>
  void lay_out(Routes const& routes, Batch& batch) const {
    constexpr char const* name = "dispatch";
    batch.prepared_ = false, batch.dispatched_ = false;
    index_t tokens = 0;
    on_all([&](int r, context const& ctx) {
      index_t const mine = expar::detail::as_view<2>(ctx, routes[index(r)].ids).extents[0];
      tokens = mine > tokens ? mine : tokens;
    });
    detail::window_rule rule{layout_.alignment, -1};
    if constexpr (has_capacity) {
      rule = {1, capacity_of(layout_, tokens, shape_.experts, shape_.top_k, 0)};
      expar::detail::check_rows_of_experts("dispatch", shape_.experts, rule.capacity);
      index_t const needed = rule.capacity * place_.ranks * place_.most();
      expar::detail::expects(needed <= batch.window_rows(), "dispatch: a rank gets ", needed,
                             " rows, but the windows of the batch have ", batch.window_rows());
    }
    on_all([&](int r, context const& ctx) {
      auto const ids = expar::detail::as_view<2>(ctx, routes[index(r)].ids);
      auto const weights =
          detail::read_only(expar::detail::as_view<2>(ctx, routes[index(r)].weights));
      auto& part = batch.part_of(r);
      part.plan.place(ctx, ids, shape_.experts, rule.capacity, 1, has_capacity);
      part.weights.resize(name, weights.size());
      using W = std::remove_pointer_t<decltype(part.weights.data())>;
      index_t const words = place_.ranks * batch.shape_.words();
      index_t const most = words > weights.size() ? words : weights.size();
      index_t const blocks = (most + detail::window_threads - 1) / detail::window_threads;
      auto const window = batch.windows_.view(r);
      detail::launch(ctx, name, detail::publish_counts<std::remove_const_t<decltype(window)>, W>,
                     blocks < 256 ? blocks : 256, detail::window_threads, 0, window, batch.shape_,
                     part.plan.view().counts, part.plan.tokens(), weights, part.weights.data());
    });
    group_->exchange_phase();
    on_all([&](int r, context const& ctx) {
      auto const window = batch.windows_.view(r);
      detail::launch(ctx, name, detail::seat_experts<std::remove_const_t<decltype(window)>>, 1,
                     detail::seat_threads, 0, window, batch.shape_, rule, batch.seats_of(r));
    });
    batch.prepared_ = true;
  }

  template <class Tokens, class T, class W, class Windows>
  void place(Tokens const& tokens, expert_batch<T, W, Windows>& batch) const {
    on_all([&](int r, context const& ctx) {
      auto const x = expar::detail::rows_view<T>(ctx, tokens[index(r)]);
      auto const rows = batch.rows(r);
      detail::scatter<unsigned char>(
          ctx, "dispatch", batch.plan(r), detail::as_bytes(x), detail::unit_weights{},
          batch.template everywhere<unsigned char>(r, 0), detail::as_bytes(rows), fill::zero);
      clear(ctx, "dispatch", batch, r, rows);
    });
    group_->exchange_phase();
    batch.dispatched_ = true;
  }
  template <class T, class W, class Windows, class Out, class Weights>
  void pull(char const* name, char const* from, char const* argument,
            expert_batch<T, W, Windows> const& batch, int buffer, Out& out, Weights weights) const {
    check_dispatched(name, batch);
    check_all(name, out, [&](int r, context const& ctx, auto& o) {
      expar::detail::arguments a(ctx, name);
      a.reads(from, batch.buffer(r, buffer));
      detail::overwritten(
          a, argument, o,
          {{tokens_of(batch, r), "the number of tokens"}, expar::detail::columns_of(shape_)});
    });
    group_->exchange_phase();
    on_all([&](int r, context const& ctx) {
      detail::gather(ctx, name, batch.plan(r), batch.template everywhere<T const>(r, buffer),
                     detail::read_only(batch.buffer(r, buffer)), weights(r),
                     expar::detail::as_output<2>(ctx, out[index(r)]));
    });
    group_->exchange_phase();
  }
  // The unused part of a capacity is cleared by the scatter of its source.
  template <class Batch, class T>
  void clear(context const& ctx, char const* name, Batch const& batch, int r,
             tensor_view<T, 2> rows) const {
    if constexpr (!has_capacity)
      detail::clear_filling_rows(ctx, name, place_.count(r), layout_.alignment, batch.seats_of(r),
                                 detail::as_bytes(rows));
  }

  template <class Batch>
  static index_t tokens_of(Batch const& batch, int r) {
    return batch.plan(r).tokens();
  }

  /// f(rank, context, argument) for the argument of every rank; what it finds wrong names the rank.
  template <class Arguments, class F>
  void check_all(char const* name, Arguments& arguments, F f) const {
    auto const given = static_cast<index_t>(arguments.size());
    expar::detail::expects(given == group_->local_ranks(), name, ": there are ", given,
                           " arguments; this process drives ", group_->local_ranks(), " ranks");
    on_all([&](int r, context const& ctx) {
      auto const failure = expar::detail::failure_of([&] { f(r, ctx, arguments[index(r)]); });
      if (failure) throw error(expar::detail::sentence{failure.text, " (rank ", r, ")"});
    });
  }
  template <class Routes, class T, class W, class Windows>
  void check_routes(Routes const& routes, expert_batch<T, W, Windows> const&) const {
    check_all("dispatch", routes, [&](int, context const& ctx, auto const& mine) {
      expar::detail::arguments a(ctx, "dispatch");
      auto const ids =
          a.ids("ids", mine.ids, {expar::detail::any_extent, expar::detail::top_k_of(shape_)});
      expar::detail::route_weights_of<W>(a, shape_, mine, ids.extents[0]);
    });
  }
  template <class Batch, class X>
  void check_input(context const& ctx, Batch const& batch, int r, tensor_view<X, 2> const& x,
                   index_t tokens) const {
    expar::detail::arguments a(ctx, "dispatch");
    a.reads("tokens", x, {{tokens, "the number of tokens"}, expar::detail::columns_of(shape_)});
    a.writes("rows", batch.rows(r));
  }
  template <class Batch>
  void check_group(char const* what, Batch const& batch) const {
    block_placement const& theirs = batch.shape_.place;
    expar::detail::expects(theirs.experts == shape_.experts && theirs.ranks == place_.ranks &&
                               batch.hidden() == shape_.hidden,
                           what, ": the batch was made for ", theirs.experts, " experts, rows of ",
                           batch.hidden(), " and ", theirs.ranks, " ranks, not for ",
                           shape_.experts, ", ", shape_.hidden, " and ", place_.ranks);
  }
  template <class Batch>
  void check_prepared(char const* what, Batch const& batch) const {
    check_group(what, batch);
    expar::detail::expects(batch.prepared_, what,
                           ": the batch has no routes; dispatch or prepare it first");
    auto const& plan = batch.plan(group_->first_rank());
    expar::detail::expects(plan.top_k() == shape_.top_k, what,
                           ": the batch was prepared for top_k ", plan.top_k(), ", not for ",
                           shape_.top_k);
    expar::detail::expects((plan.capacity() >= 0) == has_capacity, what,
                           ": the batch was prepared for another layout (ragged or "
                           "fixed_capacity)");
  }
  template <class Batch>
  void check_dispatched(char const* what, Batch const& batch) const {
    check_prepared(what, batch);
    expar::detail::expects(batch.dispatched_, what,
                           ": the batch has no rows; dispatch tokens first");
  }
  template <class Batch>
  static void check_backward(char const* what, Batch const& batch) {
    expar::detail::expects(batch.shape_.buffers == 4, what,
                           ": the batch was made for the forward pass alone");
  }

  Group* group_;
  expert_shape shape_;
  Layout layout_;
  block_placement place_;
};

template <class Group, class Layout = ragged>
expert_parallel(Group&, expert_shape, Layout = {}) -> expert_parallel<Group, Layout>;

}  // namespace expar::inline v0::gpu
