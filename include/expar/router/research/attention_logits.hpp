// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/config.hpp>
#include <expar/detail/arguments.hpp>
#include <expar/detail/arithmetic.hpp>
#include <expar/router/per_token.hpp>
#include <expar/router/score.hpp>

EXPAR_IEEE_BEGIN
namespace expar::inline v0 {
namespace detail {

template <class A>
EXPAR_HD bool is_a_number(A x) {
  return x > -infinity<A> && x < infinity<A>;
}

/// The logit of an expert with q, and p [experts], how much it attends to each: the softmax of
/// q * k. NaN where a product is not finite, which a softmax of logits would take for masked.
template <class A>
EXPAR_HD A attended_logit(A q, A const* k, A const* v, A* p, int experts) {
  bool finite = true;
  for (int j = 0; j < experts; ++j) {
    p[j] = multiply(q, k[j]);
    finite = finite && is_a_number(p[j]);
  }
  if (!finite) return infinity<A> - infinity<A>;
  softmax_score{}(static_cast<A const*>(p), p, experts);
  return interleaved_sum<A>(experts, [p, v](int j) { return multiply(p[j], v[j]); });
}

/// The logits z of one token; p [experts] is scratch.
template <class A>
EXPAR_HD void attend(A const* q, A const* k, A const* v, A* z, A* p, int experts) {
  for (int e = 0; e < experts; ++e) z[e] = attended_logit(q[e], k, v, p, experts);
}
template <class A>
EXPAR_HD void attend_vjp(A const* q, A const* k, A const* v, A const* dz, A* dq, A* dk, A* dv, A* p,
                         int experts) {
  for (int e = 0; e < experts; ++e) dk[e] = dv[e] = A(0);
  for (int e = 0; e < experts; ++e) {
    A const z = attended_logit(q[e], k, v, p, experts);
    A sum = 0;
    for (int j = 0; is_a_number(z) && j < experts; ++j) {
      A const d = multiply(dz[e], p[j]);
      A const ds = multiply(d, add(v[j], -z));
      dv[j] = add(dv[j], d);
      dk[j] = add(dk[j], multiply(ds, q[e]));
      sum = add(sum, multiply(ds, k[j]));
    }
    dq[e] = sum;
  }
}

}  // namespace detail

struct attention_logits_fn {
  template <class Q, class K, class V, class Logits>
  void operator()(host_context const& ctx, Q const& q, K const& k, V const& v,
                  Logits&& logits) const {
    detail::arguments a(ctx, "attention_logits");
    auto const qv = a.read("q", q);
    detail::rule const tokens{qv.extents[0], "the number of tokens in q"},
        experts{qv.extents[1], "the number of experts in q"};
    auto const kv = a.read("k", k, {tokens, experts});
    auto const vv = a.read("v", v, {tokens, experts});
    auto const z = a.written("logits", logits, {tokens, experts});
    int const n = detail::row_size(a, "q", qv.extents[1], "experts");
    using A = accumulator_t<detail::element_of<decltype(qv)>>;
    detail::for_each_token_with<A>(
        ctx, qv.extents[0], index_t{n} * n, 5 * index_t{n}, [&](index_t t, A* row) {
          detail::widen_row(qv.row(t), row, n);
          detail::widen_row(kv.row(t), row + n, n);
          detail::widen_row(vv.row(t), row + 2 * n, n);
          detail::attend<A>(row, row + n, row + 2 * n, row + 3 * n, row + 4 * n, n);
          detail::narrow_row(row + 3 * n, z.row(t), n);
        });
  }
};
/// `attention_logits(ctx, q, k, v, logits)`: the logits of an attention router (Yuan 2.0-M32,
/// ParallelAttention_router): of each token, logit_e = sum over j of softmax_j(q_e * k_j) * v_j,
/// where q, k and v are linear in the token. All are [T, experts] of any element type; logits are
/// overwritten, and apart from the others. A logit is NaN where one of its q_e * k_j is not finite.
/// Computes in the accumulator of q, O(T * experts^2).
inline constexpr attention_logits_fn attention_logits{};

struct attention_logits_backward_fn {
  template <class Q, class K, class V, class DLogits, class DQ, class DK, class DV>
  void operator()(host_context const& ctx, Q const& q, K const& k, V const& v,
                  DLogits const& d_logits, DQ&& dq, DK&& dk, DV&& dv) const {
    using detail::may_be;
    detail::arguments a(ctx, "attention_logits_backward");
    auto const qv = a.read("q", q);
    detail::rule const tokens{qv.extents[0], "the number of tokens in q"},
        experts{qv.extents[1], "the number of experts in q"};
    auto const kv = a.read("k", k, {tokens, experts});
    auto const vv = a.read("v", v, {tokens, experts});
    auto const dz = a.read("d_logits", d_logits, {tokens, experts});
    auto const dqv = a.gradient("dq", dq, {tokens, experts, may_be("q"), may_be("d_logits")});
    auto const dkv = a.gradient("dk", dk, {tokens, experts, may_be("k"), may_be("d_logits")});
    auto const dvv = a.gradient("dv", dv, {tokens, experts, may_be("v"), may_be("d_logits")});
    int const n = detail::row_size(a, "q", qv.extents[1], "experts");
    using A = accumulator_t<detail::element_of<decltype(qv)>>;
    detail::for_each_token_with<A>(
        ctx, qv.extents[0], index_t{n} * n, 8 * index_t{n}, [&](index_t t, A* row) {
          auto const part = [row, n](int i) { return row + index_t{i} * n; };
          detail::widen_row(qv.row(t), part(0), n);
          detail::widen_row(kv.row(t), part(1), n);
          detail::widen_row(vv.row(t), part(2), n);
          detail::widen_row(dz.row(t), part(3), n);
          detail::attend_vjp<A>(part(0), part(1), part(2), part(3), part(4), part(5), part(6),
                                part(7), n);
          dqv.put_row(dqv.row(t), part(4), n);
          dkv.put_row(dkv.row(t), part(5), n);
          dvv.put_row(dvv.row(t), part(6), n);
        });
  }
};
/// `attention_logits_backward(ctx, q, k, v, d_logits, dq, dk, dv)`, the adjoint: the gradients dq,
/// dk and dv for q, k and v, given d_logits; all [T, experts]. dq may be q, dk may be k and dv may
/// be v, and one of them d_logits; they are otherwise apart from what is read, and from each other.
/// A logit that is not finite has no gradient.
inline constexpr attention_logits_backward_fn attention_logits_backward{};

}  // namespace expar::inline v0
EXPAR_IEEE_END
