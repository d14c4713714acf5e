// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/config.hpp>
#include <expar/detail/arguments.hpp>
#include <expar/detail/arithmetic.hpp>
#include <expar/router/math.hpp>
#include <expar/router/per_token.hpp>
#include <expar/router/score.hpp>  // interleaved_sum

EXPAR_IEEE_BEGIN
namespace expar::inline v0 {
namespace detail {

template <class A>
EXPAR_HD A dot(A const* x, A const* y, int n) {
  return interleaved_sum<A>(n, [x, y](int i) { return multiply(x[i], y[i]); });
}

}  // namespace detail

/// How a row of numbers is normalized, before the product that makes logits of it or after:
///   m(x, y, n)            writes y [n] from x [n]; they are not the same
///   m.vjp(x, y, d, dx, n)  overwrites dx with the gradient for x, given y and the gradient d for
///                          it; dx may be d
/// It may have validate(what, n), which throws where its values do not fit.
template <class M>
concept row_normalization = requires(M const m, float const* in, float* out, int n) {
  m(in, out, n);
  m.vjp(in, in, in, out, n);
};

/// x / max(|x|, epsilon), |x| the square root of the sum of squares: cosine gates (Tutel,
/// gates/cosine_top.py; PyTorch's F.normalize).
struct unit_length {
  double epsilon = 1e-12;

  template <class A>
  EXPAR_HD void operator()(A const* x, A* y, int n) const {
    A const length = length_of(x, n);
    for (int i = 0; i < n; ++i) y[i] = detail::divide(x[i], at_least_epsilon(length));
  }
  template <class A>
  EXPAR_HD void vjp(A const* x, A const* y, A const* d, A* dx, int n) const {
    A const length = length_of(x, n), divisor = at_least_epsilon(length);
    A const along = length < static_cast<A>(epsilon) ? A(0) : detail::dot(d, y, n);
    for (int i = 0; i < n; ++i)
      dx[i] = detail::divide(detail::add(d[i], -detail::multiply(along, y[i])), divisor);
  }
  void validate(char const* what, int /*n*/) const {
    detail::expects(epsilon > 0, what, ": epsilon is ", epsilon, "; it is above 0");
  }

 private:
  template <class A>
  EXPAR_HD static A length_of(A const* x, int n) {
    return detail::square_root(detail::dot(x, x, n));
  }
  template <class A>
  EXPAR_HD A at_least_epsilon(A length) const {
    return length < static_cast<A>(epsilon) ? static_cast<A>(epsilon) : length;
  }
};

/// x / sqrt(mean of x^2 + epsilon), without a learned scale: the router of Gemma 4 (Hugging Face
/// transformers, gemma4). What Soft MoE normalizes by, x / sqrt(sum of x^2 + 1e-6) (V-MoE,
/// projects/soft_moe/router.py), is that with an epsilon of 1e-6 / n, divided by the root of n.
struct unit_rms {
  double epsilon = 1e-6;

  template <class A>
  EXPAR_HD void operator()(A const* x, A* y, int n) const {
    A const divisor = rms_of(x, n);
    for (int i = 0; i < n; ++i) y[i] = divisor == A(0) ? A(0) : detail::divide(x[i], divisor);
  }
  template <class A>
  EXPAR_HD void vjp(A const* x, A const* y, A const* d, A* dx, int n) const {
    A const divisor = rms_of(x, n);
    A const along = detail::divide(detail::dot(d, y, n), static_cast<A>(n));
    for (int i = 0; i < n; ++i)
      dx[i] = divisor == A(0)
                  ? A(0)
                  : detail::divide(detail::add(d[i], -detail::multiply(along, y[i])), divisor);
  }
  void validate(char const* what, int /*n*/) const {
    detail::expects(epsilon >= 0, what, ": epsilon is ", epsilon, "; it is at least 0");
  }

 private:
  template <class A>
  EXPAR_HD A rms_of(A const* x, int n) const {
    return detail::square_root(detail::add(detail::divide(detail::dot(x, x, n), static_cast<A>(n)),
                                           static_cast<A>(epsilon)));
  }
};

/// x / s, or (x - mean) / s where `centered`; s^2 is the sum of (x - mean)^2 divided by n - 1 where
/// `unbiased`, else by n. Where s is 0, the row becomes 0 and has no gradient. MoE++ divides logits
/// by the unbiased s and does not center them (moe_plus_plus_layer.py, gating); Skywork-MoE centers
/// (arXiv:2406.06563). A softmax sees no difference. The deviation that they aim at is a
/// temperature of the router.
struct unit_deviation {
  bool centered;
  bool unbiased;

  template <class A>
  EXPAR_HD void operator()(A const* x, A* y, int n) const {
    A const mean = mean_of(x, n), s = deviation_of(x, mean, n), shift = centered ? mean : A(0);
    for (int i = 0; i < n; ++i)
      y[i] = s == A(0) ? A(0) : detail::divide(detail::add(x[i], -shift), s);
  }
  template <class A>
  EXPAR_HD void vjp(A const* x, A const* y, A const* d, A* dx, int n) const {
    A const mean = mean_of(x, n), s = deviation_of(x, mean, n);
    A const along = detail::divide(detail::dot(d, y, n), freedom<A>(n));
    A const shift = centered ? mean_of(d, n) : A(0);
    for (int i = 0; i < n; ++i) {
      A const away = detail::divide(detail::add(x[i], -mean), s);
      A const g = detail::add(detail::add(d[i], -shift), -detail::multiply(along, away));
      dx[i] = s == A(0) ? A(0) : detail::divide(g, s);
    }
  }
  void validate(char const* what, int n) const {
    detail::expects(!unbiased || n >= 2, what, ": a row has ", n,
                    " numbers; an unbiased deviation needs 2");
  }

 private:
  template <class A>
  EXPAR_HD A freedom(int n) const {
    return static_cast<A>(unbiased ? n - 1 : n);
  }
  template <class A>
  EXPAR_HD static A mean_of(A const* x, int n) {
    return detail::divide(detail::interleaved_sum<A>(n, [x](int i) { return x[i]; }),
                          static_cast<A>(n));
  }
  template <class A>
  EXPAR_HD A deviation_of(A const* x, A mean, int n) const {
    A const squares = detail::interleaved_sum<A>(n, [x, mean](int i) {
      A const away = detail::add(x[i], -mean);
      return detail::multiply(away, away);
    });
    return detail::square_root(detail::divide(squares, freedom<A>(n)));
  }
};

namespace detail {

template <class Context, class M, class X>
auto read_rows(arguments<Context>& a, M const& m, X const& x) {
  static_assert(row_normalization<M>,
                "expar: the second argument says how rows are normalized: unit_length, unit_rms, "
                "unit_deviation");
  auto const v = a.read("x", x);
  int const n = row_size(a, "x", v.extents[1], "columns");
  if constexpr (requires { m.validate(a, n); })
    if (v.size() != 0) m.validate(a, n);
  return v;
}

}  // namespace detail

struct normalize_rows_fn {
  template <class M, class X, class Y>
  void operator()(host_context const& ctx, M const& m, X const& x, Y&& y) const {
    detail::arguments a(ctx, "normalize_rows");
    auto const from = detail::read_rows(a, m, x);
    auto const to = a.written("y", y,
                              {{from.extents[0], "the number of rows"},
                               {from.extents[1], "the number of columns"},
                               detail::may_be("x")});
    using A = accumulator_t<detail::element_of<decltype(from)>>;
    int const n = static_cast<int>(from.extents[1]);
    detail::for_each_token_with<A>(ctx, from.extents[0], n, 2 * index_t{n}, [&](index_t r, A* row) {
      detail::widen_row(from.row(r), row, n);
      m(static_cast<A const*>(row), row + n, n);
      detail::narrow_row(row + n, to.row(r), n);
    });
  }
};
/// `normalize_rows(ctx, normalization, x, y)` normalizes each row of x [rows, columns] into y, of
/// the same shape, which may be x and is otherwise apart from it. Any element types; computes in
/// float, or in double for x of double. NaN and infinities spread over their row.
inline constexpr normalize_rows_fn normalize_rows{};

struct normalize_rows_backward_fn {
  template <class M, class X, class D, class DX>
  void operator()(host_context const& ctx, M const& m, X const& x, D const& d, DX&& dx) const {
    detail::arguments a(ctx, "normalize_rows_backward");
    auto const from = detail::read_rows(a, m, x);
    detail::rule const rows{from.extents[0], "the number of rows"},
        columns{from.extents[1], "the number of columns"};
    auto const dy = a.read("d", d, {rows, columns});
    auto const to = a.gradient("dx", dx, {rows, columns, detail::may_be("x"), detail::may_be("d")});
    using A = accumulator_t<detail::element_of<decltype(from)>>;
    int const n = static_cast<int>(from.extents[1]);
    detail::for_each_token_with<A>(ctx, from.extents[0], n, 3 * index_t{n}, [&](index_t r, A* row) {
      A *const out = row + n, *const g = out + n;
      detail::widen_row(from.row(r), row, n);
      detail::widen_row(dy.row(r), g, n);
      m(static_cast<A const*>(row), out, n);
      m.vjp(static_cast<A const*>(row), static_cast<A const*>(out), static_cast<A const*>(g), g, n);
      to.put_row(to.row(r), g, n);
    });
  }
};
/// `normalize_rows_backward(ctx, normalization, x, d, dx)`, the adjoint: the gradient dx for x,
/// given d, that for y. dx may be x or d, and is otherwise apart from them.
inline constexpr normalize_rows_backward_fn normalize_rows_backward{};

}  // namespace expar::inline v0
EXPAR_IEEE_END
