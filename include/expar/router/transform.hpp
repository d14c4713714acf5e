// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <type_traits>

#include <expar/config.hpp>
#include <expar/detail/arithmetic.hpp>
#include <expar/element.hpp>
#include <expar/error.hpp>
#include <expar/router/math.hpp>
#include <expar/tensor.hpp>

namespace expar {
inline namespace v0 {

/// What happens to logits before they are scored, expert by expert:
///   t.of(z, e)     what becomes of the logit z of expert e; not called for a masked one, which
///                  stays masked
///   t.slope(z, e)  the derivative of that for z
/// What depends on the token has at(token), which gives the transform of that token.
template <class T>
concept transform_policy = requires(T const t, float z, int e) {
  t.of(z, e);
  t.slope(z, e);
};

/// cap * tanh(z / cap), so that no logit is larger than cap. Grok-2 (cap 30), Gemma-2. Logits that
/// are far beyond the cap all become the cap, and tie.
struct soft_cap {
  double cap;

  template <class A>
  EXPAR_HD A of(A z, int /*expert*/) const {
    A const c = static_cast<A>(cap);
    return detail::multiply(c, detail::hyperbolic_tangent(detail::divide(z, c)));
  }
  template <class A>
  EXPAR_HD A slope(A z, int /*expert*/) const {
    A const t = detail::hyperbolic_tangent(detail::divide(z, static_cast<A>(cap)));
    return detail::multiply(detail::add(A(1), -t), detail::add(A(1), t));
  }
};

/// z / value: a value below 1 sharpens, one above flattens.
struct temperature {
  double value;

  template <class A>
  EXPAR_HD A of(A z, int /*expert*/) const {
    return detail::divide(z, static_cast<A>(value));
  }
  template <class A>
  EXPAR_HD A slope(A /*z*/, int /*expert*/) const {
    return detail::divide(A(1), static_cast<A>(value));
  }
};

namespace detail {

template <class T>
struct row_addend {
  T const* row;

  template <class A>
  EXPAR_HD A of(A z, int e) const {
    return add(z, static_cast<A>(widen(row[e])));
  }
  template <class A>
  EXPAR_HD A slope(A /*z*/, int /*expert*/) const {
    return A(1);
  }
};

}  // namespace detail

/// z + addend[token, expert], numbers of the caller: noise drawn elsewhere, or the logits of the
/// layer before (MoE++). They get no gradient here: theirs is that of the logits.
template <class T>
struct add_rows {
  tensor_view<T const, 2> addend;

  EXPAR_HD constexpr detail::row_addend<T> at(index_t token) const { return {addend.row(token)}; }
  void check(char const* what, int experts, int /*top_k*/, index_t tokens) const {
    detail::expects(addend.extents[0] == tokens && addend.extents[1] == experts, what,
                    ": addend is ", addend.extents[0], " x ", addend.extents[1],
                    ", but the logits are ", tokens, " x ", experts);
  }
};
template <class T>
add_rows(tensor_view<T, 2>) -> add_rows<std::remove_const_t<T>>;

}  // namespace v0
}  // namespace expar
