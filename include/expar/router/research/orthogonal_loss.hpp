// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>

#include <expar/detail/arguments.hpp>
#include <expar/router/math.hpp>
#include <expar/router/per_token.hpp>

EXPAR_IEEE_BEGIN
namespace expar::inline v0 {
namespace detail {

/// Rows of router weights divided by max(their norm, epsilon).
struct unit_rows {
  index_t rows, width;
  buffer<double> data, norms;

  template <class T>
  unit_rows(host_context const& ctx, tensor_view<T, 2> weights, double epsilon)
      : rows(weights.extents[0]),
        width(weights.extents[1]),
        data(ctx.memory()),
        norms(ctx.memory()) {
    data.resize(rows * width);
    norms.resize(rows);
    ctx.for_each_chunk(rows, 1, [&](int, index_t first, index_t last) {
      for (index_t r = first; r < last; ++r) {
        double* const to = row(r);
        widen_row(weights.row(r), to, width);
        norms[r] = detail::square_root(dot(to, to));
        double const divisor = norms[r] > epsilon ? norms[r] : epsilon;
        for (index_t i = 0; i < width; ++i) to[i] /= divisor;
      }
    });
  }
  double* row(index_t r) { return data.data() + r * width; }
  double const* row(index_t r) const { return data.data() + r * width; }
  double dot(double const* a, double const* b) const {
    double sum = 0;
    for (index_t i = 0; i < width; ++i) sum += a[i] * b[i];
    return sum;
  }
  /// How far two rows are from being orthogonal, and one from having length 1.
  double off(index_t r, index_t s) const { return dot(row(r), row(s)) - (r == s ? 1 : 0); }

  /// The gradient g for a unit row becomes that for the row itself.
  void through_norm(index_t r, double epsilon, double* g) const {
    double const along = norms[r] > epsilon ? dot(g, row(r)) : 0;
    double const divisor = norms[r] > epsilon ? norms[r] : epsilon;
    for (index_t i = 0; i < width; ++i) g[i] = (g[i] - along * row(r)[i]) / divisor;
  }
};

/// Writes to each row of d_weights what f(row, g) adds to g [width].
template <class Gradient, class F>
void write_rows(host_context const& ctx, Gradient const& d_weights, F&& f) {
  index_t const width = d_weights.extents[1];
  for_each_token_with<double>(ctx, d_weights.extents[0], width, width, [&](index_t r, double* g) {
    for (index_t i = 0; i < width; ++i) g[i] = 0;
    f(r, g);
    d_weights.put_row(d_weights.row(r), g, width);
  });
}

template <class Weights, class DWeights>
auto gradient_of_rows(arguments<host_context>& a, Weights const& w, DWeights& d_weights) {
  return a.gradient(
      "d_weights", d_weights,
      {{w.extents[0], "the number of experts"}, {w.extents[1], "the width of a row"}});
}

}  // namespace detail

struct orthogonal_loss_options {
  double coefficient = 1;
  double epsilon = 1e-12;  ///< the least norm that a row is divided by
  /// Rows are compared within this many equal runs of experts alone (ERNIE's expert groups).
  int groups = 1;
};

namespace detail {

inline void check_orthogonal(char const* op, index_t experts, orthogonal_loss_options const& o) {
  expects(o.epsilon > 0, op, ": epsilon is ", o.epsilon, "; it is greater than 0");
  expects(o.groups >= 1 && experts % o.groups == 0, op, ": groups is ", o.groups,
          "; it is at least 1 and divides the ", experts, " experts");
}

}  // namespace detail

struct orthogonal_loss_fn {
  template <class Weights>
  double operator()(host_context const& ctx, Weights const& weights,
                    orthogonal_loss_options const& options) const {
    detail::arguments a(ctx, "orthogonal_loss");
    auto const w = a.read("weights", weights);
    detail::check_orthogonal(a, w.extents[0], options);
    index_t const experts = w.extents[0];
    if (experts == 0) return 0;
    detail::unit_rows const u(ctx, w, options.epsilon);
    index_t const size = experts / options.groups;
    detail::buffer<double> sums(ctx.memory());
    sums.assign(static_cast<std::size_t>(experts), 0);
    ctx.for_each_chunk(experts, 1, [&](int, index_t first, index_t last) {
      for (index_t r = first; r < last; ++r)
        for (index_t s = r / size * size; s < (r / size + 1) * size; ++s)
          sums[r] += u.off(r, s) * u.off(r, s);
    });
    double sum = 0;
    for (double const x : sums) sum += x;
    return options.coefficient * sum / static_cast<double>(experts * size);
  }
};
/// `orthogonal_loss(ctx, weights, options)`: how far the router's rows are from being orthogonal
/// (the training gate of ERNIE 4.5, Paddle, _cal_orthogonal_loss),
///   L = coefficient * mean over groups and pairs r, s of a group of (u[r] . u[s] - [r = s])^2,
/// where u[r] is row r divided by max(its norm, epsilon).
///   weights: [experts, hidden], any element type; the logits are x . weights[e]
/// Cost: experts^2 / groups products of rows.
inline constexpr orthogonal_loss_fn orthogonal_loss{};

struct orthogonal_loss_backward_fn {
  template <class Weights, class DWeights>
  void operator()(host_context const& ctx, Weights const& weights,
                  orthogonal_loss_options const& options, DWeights&& d_weights) const {
    detail::arguments a(ctx, "orthogonal_loss_backward");
    auto const w = a.read("weights", weights);
    auto const dw = detail::gradient_of_rows(a, w, d_weights);
    detail::check_orthogonal(a, w.extents[0], options);
    if (w.size() == 0) return;
    detail::unit_rows const u(ctx, w, options.epsilon);
    index_t const size = w.extents[0] / options.groups;
    double const unit = 4 * options.coefficient / static_cast<double>(w.extents[0] * size);
    detail::write_rows(ctx, dw, [&](index_t r, double* g) {
      for (index_t s = r / size * size; s < (r / size + 1) * size; ++s) {
        double const factor = unit * u.off(r, s);
        for (index_t i = 0; i < u.width; ++i) g[i] += factor * u.row(s)[i];
      }
      u.through_norm(r, options.epsilon, g);
    });
  }
};
/// `orthogonal_loss_backward(ctx, weights, options, d_weights)`: the gradient of orthogonal_loss()
/// to d_weights [experts, hidden], any element type, overwritten, or added to by add_to(d_weights).
inline constexpr orthogonal_loss_backward_fn orthogonal_loss_backward{};

}  // namespace expar::inline v0
EXPAR_IEEE_END
