// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/detail/arguments.hpp>
#include <expar/router/per_token.hpp>
#include <expar/router/score.hpp>

EXPAR_IEEE_BEGIN
namespace expar::inline v0 {
namespace detail {

/// out [columns]: term(row, column) of all rows, joined. By blocks of rows of a fixed size, so that
/// the number of threads does not show.
template <class A, class Term, class Join>
void fold_columns(host_context const& ctx, index_t rows, index_t columns, A first, Term term,
                  Join join, buffer<A>& out) {
  constexpr index_t block = 64;
  index_t const blocks = (rows + block - 1) / block;
  buffer<A> parts(ctx.memory());
  parts.assign(static_cast<std::size_t>(blocks * columns), first);
  ctx.for_each_chunk(blocks, 1, [&](int, index_t from, index_t to) {
    for (index_t b = from; b < to; ++b) {
      A* const part = parts.data() + b * columns;
      for (index_t r = b * block; r < (b + 1) * block && r < rows; ++r)
        for (index_t c = 0; c < columns; ++c) part[c] = join(part[c], term(r, c));
    }
  });
  out.assign(static_cast<std::size_t>(columns), first);
  for (index_t b = 0; b < blocks; ++b)
    for (index_t c = 0; c < columns; ++c) out[c] = join(out[c], parts[b * columns + c]);
}

/// The softmax of each column of logits.
template <class A, class T>
struct column_softmax {
  tensor_view<T, 2> logits;
  buffer<A> most, sum;

  column_softmax(host_context const& ctx, tensor_view<T, 2> z)
      : logits(z), most(ctx.memory()), sum(ctx.memory()) {
    index_t const rows = z.extents[0], columns = z.extents[1];
    fold_columns(
        ctx, rows, columns, -infinity<A>, [&](index_t r, index_t c) { return logit(r, c); },
        [](A a, A b) { return b > a ? b : a; }, most);
    fold_columns(
        ctx, rows, columns, A(0), [&](index_t r, index_t c) { return term(r, c); },
        [](A a, A b) { return a + b; }, sum);
  }

  A logit(index_t r, index_t c) const { return static_cast<A>(widen(logits.row(r)[c])); }
  A term(index_t r, index_t c) const {
    A const x = logit(r, c);
    return masked(x) ? A(0) : shifted_exp(x, most[c]);
  }
  A operator()(index_t r, index_t c) const {
    A const x = term(r, c);
    return x == A(0) ? A(0) : x / sum[c];
  }
};

}  // namespace detail

struct soft_moe_weights_fn {
  template <class Logits, class Dispatch, class Combine>
  void operator()(host_context const& ctx, Logits const& logits, Dispatch&& dispatch,
                  Combine&& combine) const {
    detail::arguments a(ctx, "soft_moe_weights");
    auto const z = a.read("logits", logits);
    detail::rule const each_token{z.extents[0], "the number of tokens"},
        each_slot{z.extents[1], "the number of slots"};
    auto const d = a.written("dispatch", dispatch, {each_token, each_slot});
    auto const c = a.written("combine", combine, {each_token, each_slot});
    int const columns = detail::row_size(a, "logits", z.extents[1], "slots");
    using A = accumulator_t<detail::element_of<decltype(z)>>;
    using D = detail::element_of<decltype(d)>;
    detail::column_softmax<A, std::remove_pointer_t<decltype(z.data)>> const of_slot(ctx, z);
    detail::for_each_token_with<A>(ctx, z.extents[0], columns, columns, [&](index_t t, A* row) {
      for (int s = 0; s < columns; ++s)
        d.row(t)[s] = narrow<D>(static_cast<accumulator_t<D>>(of_slot(t, s)));
      detail::widen_row(z.row(t), row, columns);
      softmax_score{}(static_cast<A const*>(row), row, columns);
      detail::narrow_row(row, c.row(t), columns);
    });
  }
};
/// `soft_moe_weights(ctx, logits, dispatch, combine)`: the weights by which Soft MoE mixes tokens
/// into slots and slots into tokens (arXiv:2308.00951; V-MoE, projects/soft_moe/router.py).
///   logits: [T, slots], any element type; the slots of an expert follow one another. What is NaN
///           or -inf has weight 0: so leave out padding
///   dispatch: [T, slots], overwritten; the softmax of each slot over the tokens
///   combine: [T, slots], overwritten; the softmax of each token over the slots
/// Nothing is selected, so there are no routes. The products are the caller's: slot inputs =
/// dispatch^T * tokens, token outputs = combine * slot outputs. Computes in float, or in double for
/// logits of double. O(T * slots). dispatch, combine and logits are apart in memory.
inline constexpr soft_moe_weights_fn soft_moe_weights{};

struct soft_moe_weights_backward_fn {
  template <class Logits, class DDispatch, class DCombine, class DLogits>
  void operator()(host_context const& ctx, Logits const& logits, DDispatch const& d_dispatch,
                  DCombine const& d_combine, DLogits&& d_logits) const {
    using detail::may_be;
    detail::arguments a(ctx, "soft_moe_weights_backward");
    auto const z = a.read("logits", logits);
    detail::rule const each_token{z.extents[0], "the number of tokens"},
        each_slot{z.extents[1], "the number of slots"};
    auto const dd = a.read("d_dispatch", d_dispatch, {each_token, each_slot});
    auto const dc = a.read("d_combine", d_combine, {each_token, each_slot});
    auto const dz = a.gradient(
        "d_logits", d_logits,
        {each_token, each_slot, may_be("logits"), may_be("d_dispatch"), may_be("d_combine")});
    int const columns = detail::row_size(a, "logits", z.extents[1], "slots");
    using A = accumulator_t<detail::element_of<decltype(z)>>;
    detail::column_softmax<A, std::remove_pointer_t<decltype(z.data)>> const of_slot(ctx, z);
    auto const d_of = [&](index_t t, index_t s) { return static_cast<A>(widen(dd.row(t)[s])); };
    detail::buffer<A> mean(ctx.memory());
    detail::fold_columns(
        ctx, z.extents[0], z.extents[1], A(0),
        [&](index_t t, index_t s) { return d_of(t, s) * of_slot(t, s); },
        [](A x, A y) { return x + y; }, mean);
    detail::for_each_token_with<A>(
        ctx, z.extents[0], columns, 2 * index_t{columns}, [&](index_t t, A* row) {
          A* const g = row + columns;
          detail::widen_row(z.row(t), row, columns);
          detail::widen_row(dc.row(t), g, columns);
          softmax_score{}(static_cast<A const*>(row), row, columns);
          softmax_score{}.vjp(static_cast<A const*>(nullptr), static_cast<A const*>(row),
                              static_cast<A const*>(g), g, columns);
          for (int s = 0; s < columns; ++s) g[s] += of_slot(t, s) * (d_of(t, s) - mean[s]);
          dz.put_row(dz.row(t), g, columns);
        });
  }
};
/// `soft_moe_weights_backward(ctx, logits, d_dispatch, d_combine, d_logits)`, the adjoint: the
/// gradient d_logits [T, slots], given d_dispatch and d_combine, those for what soft_moe_weights()
/// wrote; 0 where the logits are masked. d_logits may be one of the others, and is otherwise apart
/// from them.
inline constexpr soft_moe_weights_backward_fn soft_moe_weights_backward{};

}  // namespace expar::inline v0
EXPAR_IEEE_END
