// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>

#include <expar/detail/arguments.hpp>
#include <expar/router/math.hpp>
#include <expar/router/research/orthogonal_loss.hpp>

EXPAR_IEEE_BEGIN
namespace expar::inline v0 {

struct diverse_loss_options {
  double diverse = 1;      ///< coefficient of the first part
  double simple = 1;       ///< coefficient of the second
  double epsilon = 1e-12;  ///< the least norm that a row is divided by
};

namespace detail {

/// The norm of what is off among experts that are there.
template <class There>
double off_norm(host_context const& ctx, unit_rows const& u, There there) {
  buffer<double> sums(ctx.memory());
  sums.assign(static_cast<std::size_t>(u.rows), 0);
  ctx.for_each_chunk(u.rows, 1, [&](int, index_t first, index_t last) {
    for (index_t r = first; r < last; ++r)
      for (index_t s = 0; there(r) && s < u.rows; ++s)
        if (there(s)) sums[r] += u.off(r, s) * u.off(r, s);
  });
  double sum = 0;
  for (double const x : sums) sum += x;
  return detail::square_root(sum);
}

/// Which experts are there.
template <class There>
auto read_there(arguments<host_context>& a, There const& there, index_t experts) {
  return as_marks(a.read_any_vector("there", there, {{experts, "the number of experts"}}));
}

}  // namespace detail

struct diverse_loss_fn {
  template <class Weights, class There>
  double operator()(host_context const& ctx, Weights const& weights, There const& there,
                    diverse_loss_options const& options) const {
    detail::arguments a(ctx, "diverse_loss");
    auto const w = a.read("weights", weights);
    auto const marks = detail::read_there(a, there, w.extents[0]);
    detail::check_orthogonal(a, w.extents[0], {1, options.epsilon, 1});
    if (w.extents[0] == 0) return 0;
    detail::unit_rows const u(ctx, w, options.epsilon);
    double norms = 0;
    for (double const x : u.norms) norms += x;
    return options.diverse * detail::off_norm(ctx, u, marks) +
           options.simple * norms / static_cast<double>(u.rows);
  }
};
/// `diverse_loss(ctx, weights, there, options)`: DynMoE's loss of the gate's matrix
/// (arXiv:2405.14297; moe/loss.py, diverse_and_simple_gate_loss), that experts differ and that
/// their rows stay small,
///   L = diverse * sqrt(sum over pairs r, s of experts that are there of (u[r] . u[s] - [r = s])^2)
///     + simple * mean over all rows of their norm,
/// where u[r] is row r divided by max(its norm, epsilon).
///   weights: [experts, hidden], any element type: one row for each expert there is room for
///   there: [experts] of bool or std::uint8_t; 0: the expert is not there
inline constexpr diverse_loss_fn diverse_loss{};

struct diverse_loss_backward_fn {
  template <class Weights, class There, class DWeights>
  void operator()(host_context const& ctx, Weights const& weights, There const& there,
                  diverse_loss_options const& options, DWeights&& d_weights) const {
    detail::arguments a(ctx, "diverse_loss_backward");
    auto const w = a.read("weights", weights);
    auto const marks = detail::read_there(a, there, w.extents[0]);
    auto const dw = detail::gradient_of_rows(a, w, d_weights);
    detail::check_orthogonal(a, w.extents[0], {1, options.epsilon, 1});
    if (w.size() == 0) return;
    detail::unit_rows const u(ctx, w, options.epsilon);
    double const norm = detail::off_norm(ctx, u, marks);
    double const unit = norm > 0 ? 2 * options.diverse / norm : 0;
    detail::write_rows(ctx, dw, [&](index_t r, double* g) {
      for (index_t s = 0; marks(r) && s < u.rows; ++s) {
        if (!marks(s)) continue;
        double const factor = unit * u.off(r, s);
        for (index_t i = 0; i < u.width; ++i) g[i] += factor * u.row(s)[i];
      }
      u.through_norm(r, options.epsilon, g);
      double const pull = u.norms[r] > 0 ? options.simple / static_cast<double>(u.rows) : 0;
      double const length = u.norms[r] > options.epsilon ? 1 : u.norms[r] / options.epsilon;
      for (index_t i = 0; pull != 0 && i < u.width; ++i) g[i] += pull * u.row(r)[i] / length;
    });
  }
};
/// `diverse_loss_backward(ctx, weights, there, options, d_weights)`: the gradient of diverse_loss()
/// to d_weights [experts, hidden], any element type, overwritten, or added to by add_to(d_weights).
/// Where a norm is 0, it has no gradient.
inline constexpr diverse_loss_backward_fn diverse_loss_backward{};

}  // namespace expar::inline v0
EXPAR_IEEE_END
