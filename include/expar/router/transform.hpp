// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <type_traits>

#include <expar/config.hpp>
#include <expar/detail/argument_table.hpp>
#include <expar/detail/arithmetic.hpp>
#include <expar/element.hpp>
#include <expar/error.hpp>
#include <expar/router/math.hpp>
#include <expar/tensor.hpp>

EXPAR_IEEE_BEGIN
namespace expar::inline v0 {

/// What happens to logits before they are scored, expert by expert:
///   t.of(z, e)     what becomes of the logit z of expert e; not called for a masked one, which
///                  stays masked. -inf: the expert is masked from here on
///   t.slope(z, e)  the derivative of that for z
/// What depends on the token has at(token), which gives the transform of that token.
template <class T>
concept transform_policy = requires(T const t, float z, int e) {
  t.of(z, e);
  t.slope(z, e);
};

/// cap * tanh(z / cap), so that no logit is larger than cap; with a cap of 0, z itself. Grok-2 (cap
/// 30), Gemma-2. Logits that are far beyond the cap all become the cap, and tie.
struct soft_cap {
  double cap;

  template <class A>
  EXPAR_HD A of(A z, int /*expert*/) const {
    if (!(cap > 0)) return z;
    A const c = static_cast<A>(cap);
    return detail::multiply(c, detail::hyperbolic_tangent(detail::divide(z, c)));
  }
  template <class A>
  EXPAR_HD A slope(A z, int /*expert*/) const {
    if (!(cap > 0)) return A(1);
    A const t = detail::hyperbolic_tangent(detail::divide(z, static_cast<A>(cap)));
    return detail::multiply(detail::add(A(1), -t), detail::add(A(1), t));
  }
  void validate(char const* what, int /*experts*/, int /*top_k*/, index_t /*tokens*/) const {
    detail::expects(cap >= 0 && cap < detail::infinity<double>, what, ": cap is ", cap,
                    "; it is at least 0 (no cap) and finite");
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
  void validate(char const* what, int /*experts*/, int /*top_k*/, index_t /*tokens*/) const {
    detail::expects(value > 0 && value < detail::infinity<double>, what, ": temperature is ", value,
                    "; it is above 0 and finite");
  }
};

/// Experts [first, last) alone; the others are masked.
struct expert_range {
  int first, last;

  template <class A>
  EXPAR_HD A of(A z, int expert) const {
    return expert >= first && expert < last ? z : -detail::infinity<A>;
  }
  template <class A>
  EXPAR_HD A slope(A /*z*/, int /*expert*/) const {
    return A(1);
  }
  void validate(char const* what, int experts, int /*top_k*/, index_t /*tokens*/) const {
    detail::expects(first >= 0 && first <= last && last <= experts, what, ": experts ", first,
                    " to ", last, " are no range of the ", experts, " experts");
  }
};

/// The experts of the token's class alone, so that scores are those among them: experts bounds[c]
/// to bounds[c + 1] - 1 for a token of class c = classes[token], all experts where that is -1.
/// ERNIE-4.5-VL, whose text and vision experts have gates of their own, side by side in the logits.
struct experts_of_class {
  tensor_view<std::int32_t const, 1> classes;  // [T]
  tensor_view<std::int32_t const, 1> bounds;   // [classes + 1], ascending

  EXPAR_HD constexpr expert_range at(index_t token) const {
    std::int32_t const of = classes(token);
    if (of < 0) return {0, INT32_MAX};
    return {bounds(of), bounds(of + 1)};
  }
  void validate(detail::argument_table& a, int /*experts*/, int /*top_k*/, index_t tokens) const {
    a.reads("classes", classes, {{tokens, "the number of tokens"}});
    a.reads("bounds of classes", bounds);
  }
  void validate_entries(char const* what, int experts, int /*top_k*/, index_t tokens) const {
    index_t const count = bounds.extents[0] - 1;
    for (index_t c = 0; c <= count; ++c)
      detail::expects(bounds(c) >= (c == 0 ? 0 : bounds(c - 1)) && bounds(c) <= experts, what,
                      ": bounds(", c, ") of classes is ", bounds(c), "; bounds ascend from 0 to ",
                      experts);
    for (index_t t = 0; t < tokens; ++t)
      detail::expects(classes(t) >= -1 && classes(t) < count, what, ": classes(", t, ") is ",
                      classes(t), "; a class is -1 (all experts) or 0 to ", count - 1);
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
/// layer before (MoE++). A single row counts for every token: a bias of each expert that scores
/// see. They get no gradient here: theirs is that of the logits, or its sum over the tokens.
template <class T>
struct add_rows {
  tensor_view<T const, 2> addend;

  EXPAR_HD constexpr detail::row_addend<T> at(index_t token) const {
    return {addend.row(addend.extents[0] == 1 ? 0 : token)};
  }
  void validate(detail::argument_table& a, int experts, int /*top_k*/, index_t tokens) const {
    a.reads("addend", addend,
            {{addend.extents[0] == 1 ? 1 : tokens, "the number of tokens"},
             {experts, "the number of experts"}});
  }
};
template <class T>
add_rows(tensor_view<T, 2>) -> add_rows<std::remove_const_t<T>>;

}  // namespace expar::inline v0
EXPAR_IEEE_END
