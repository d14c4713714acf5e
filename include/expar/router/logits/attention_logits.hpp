// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <type_traits>

#include <expar/config.hpp>
#include <expar/context.hpp>
#include <expar/detail/arithmetic.hpp>
#include <expar/element.hpp>
#include <expar/error.hpp>
#include <expar/router/per_token.hpp>
#include <expar/router/score.hpp>
#include <expar/tensor.hpp>

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

template <class T, class U>
void check_attention(char const* name, tensor_view<T, 2> const& q, tensor_view<U, 2> const& v) {
  static_assert(element<std::remove_cv_t<U>>,
                "expar: logits are of an element type; specialize expar::element_traits for it");
  check_view(name, v);
  check_extent(name, v, 0, q.extents[0], "the number of tokens in q");
  check_extent(name, v, 1, q.extents[1], "the number of experts in q");
}

}  // namespace detail

struct attention_logits_fn {
  template <class Q, class K, class V, class Logits>
  void operator()(host_context const& ctx, Q const& q, K const& k, V const& v,
                  Logits&& logits) const {
    auto const qv = detail::as_view<2>(ctx, q);
    auto const kv = detail::as_view<2>(ctx, k);
    auto const vv = detail::as_view<2>(ctx, v);
    auto const z = detail::as_output<2>(ctx, logits);
    using A = accumulator_t<detail::element_of<decltype(qv)>>;
    detail::check_attention("attention_logits: q", qv, qv);
    detail::check_attention("attention_logits: k", qv, kv);
    detail::check_attention("attention_logits: v", qv, vv);
    detail::check_attention("attention_logits: logits", qv, z);
    detail::check_output("attention_logits: logits", z);
    detail::check_apart("attention_logits: logits", z, "q", qv);
    detail::check_apart("attention_logits: logits", z, "k", kv);
    detail::check_apart("attention_logits: logits", z, "v", vv);
    detail::expects(qv.extents[1] <= INT32_MAX, "attention_logits: q has ", qv.extents[1],
                    " experts; at most ", INT32_MAX, " are possible");
    int const n = static_cast<int>(qv.extents[1]);
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
/// The logits of an attention router (Yuan 2.0-M32, ParallelAttention_router): of each token,
/// logit_e = sum over j of softmax_j(q_e * k_j) * v_j, where q, k and v are linear in the token.
/// `attention_logits(ctx, q, k, v, logits)`, all [T, experts], the last of them overwritten and not
/// the memory of the others. A logit is NaN where one of its q_e * k_j is not finite. Computes in
/// the accumulator of q, O(T * experts^2).
inline constexpr attention_logits_fn attention_logits{};

struct attention_logits_backward_fn {
  template <class Q, class K, class V, class DLogits, class DQ, class DK, class DV>
  void operator()(host_context const& ctx, Q const& q, K const& k, V const& v,
                  DLogits const& d_logits, DQ&& dq, DK&& dk, DV&& dv) const {
    auto const qv = detail::as_view<2>(ctx, q);
    auto const kv = detail::as_view<2>(ctx, k);
    auto const vv = detail::as_view<2>(ctx, v);
    auto const dz = detail::as_view<2>(ctx, d_logits);
    auto const dqv = detail::as_output<2>(ctx, dq);
    auto const dkv = detail::as_output<2>(ctx, dk);
    auto const dvv = detail::as_output<2>(ctx, dv);
    using A = accumulator_t<detail::element_of<decltype(qv)>>;
    detail::check_attention("attention_logits_backward: q", qv, qv);
    detail::check_attention("attention_logits_backward: k", qv, kv);
    detail::check_attention("attention_logits_backward: v", qv, vv);
    detail::check_attention("attention_logits_backward: d_logits", qv, dz);
    detail::check_attention("attention_logits_backward: dq", qv, dqv);
    detail::check_attention("attention_logits_backward: dk", qv, dkv);
    detail::check_attention("attention_logits_backward: dv", qv, dvv);
    detail::check_output("attention_logits_backward: dq", dqv);
    detail::check_output("attention_logits_backward: dk", dkv);
    detail::check_output("attention_logits_backward: dv", dvv);
    detail::check_apart("attention_logits_backward: dk", dkv, "dq", dqv);
    detail::check_apart("attention_logits_backward: dv", dvv, "dq", dqv);
    detail::check_apart("attention_logits_backward: dv", dvv, "dk", dkv);
    detail::expects(qv.extents[1] <= INT32_MAX, "attention_logits_backward: q has ", qv.extents[1],
                    " experts; at most ", INT32_MAX, " are possible");
    int const n = static_cast<int>(qv.extents[1]);
    detail::for_each_token_with<A>(
        ctx, qv.extents[0], index_t{n} * n, 8 * index_t{n}, [&](index_t t, A* row) {
          auto const part = [row, n](int i) { return row + index_t{i} * n; };
          detail::widen_row(qv.row(t), part(0), n);
          detail::widen_row(kv.row(t), part(1), n);
          detail::widen_row(vv.row(t), part(2), n);
          detail::widen_row(dz.row(t), part(3), n);
          detail::attend_vjp<A>(part(0), part(1), part(2), part(3), part(4), part(5), part(6),
                                part(7), n);
          detail::narrow_row(part(4), dqv.row(t), n);
          detail::narrow_row(part(5), dkv.row(t), n);
          detail::narrow_row(part(6), dvv.row(t), n);
        });
  }
};
/// The adjoint of attention_logits(): overwrites dq, dk and dv, the gradients for q, k and v, given
/// d_logits; all [T, experts]. dq, dk and dv do not overlap each other. A logit that is not finite
/// has no gradient.
inline constexpr attention_logits_backward_fn attention_logits_backward{};

}  // namespace expar::inline v0
