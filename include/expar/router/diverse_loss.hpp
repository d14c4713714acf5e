// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/context.hpp>
#include <expar/detail/buffer.hpp>
#include <expar/router/math.hpp>
#include <expar/router/orthogonal_loss.hpp>
#include <expar/router/token_loss.hpp>
#include <expar/tensor.hpp>

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

template <class T>
void check_diverse(char const* op, tensor_view<T, 2> const& w, diverse_loss_options const& o) {
  check_orthogonal(op, w, {1, o.epsilon, 1});
}

}  // namespace detail

struct diverse_loss_fn {
  template <class Weights, class There>
  double operator()(host_context const& ctx, Weights const& weights, There const& there,
                    diverse_loss_options const& options) const {
    auto const w = detail::as_view<2>(ctx, weights);
    detail::check_diverse("diverse_loss", w, options);
    auto const marks =
        detail::marks_of("diverse_loss: there", ctx, there, w.extents[0], "the number of experts");
    if (w.extents[0] == 0) return 0;
    detail::unit_rows const u(ctx, w, options.epsilon);
    double norms = 0;
    for (double const x : u.norms) norms += x;
    return options.diverse * detail::off_norm(ctx, u, marks) +
           options.simple * norms / static_cast<double>(u.rows);
  }
};
/// DynMoE's loss of the gate's matrix (arXiv:2405.14297; moe/loss.py,
/// diverse_and_simple_gate_loss): that experts differ and that their rows stay small,
///   L = diverse * sqrt(sum over pairs r, s of experts that are there of (u[r] . u[s] - [r = s])^2)
///     + simple * mean over all rows of their norm,
/// where u[r] is row r divided by max(its norm, epsilon), as diverse_loss(ctx, weights, there,
/// options):
///   weights: [experts, hidden], any element type: one row for each expert there is room for
///   there: [experts] of bool or std::uint8_t; 0: the expert is not there
inline constexpr diverse_loss_fn diverse_loss{};

struct diverse_loss_backward_fn {
  template <class Weights, class There, class DWeights>
  void operator()(host_context const& ctx, Weights const& weights, There const& there,
                  diverse_loss_options const& options, DWeights&& d_weights) const {
    auto const w = detail::as_view<2>(ctx, weights);
    auto const dw = detail::as_output<2>(ctx, d_weights);
    detail::check_diverse("diverse_loss_backward", w, options);
    auto const marks = detail::marks_of("diverse_loss_backward: there", ctx, there, w.extents[0],
                                        "the number of experts");
    detail::check_weight_gradient("diverse_loss_backward: d_weights", w, dw);
    if (w.size() == 0) return;
    detail::unit_rows const u(ctx, w, options.epsilon);
    double const norm = detail::off_norm(ctx, u, marks);
    double const unit = norm > 0 ? 2 * options.diverse / norm : 0;
    detail::add_to_rows(ctx, dw, [&](index_t r, double* g) {
      for (index_t s = 0; marks(r) && s < u.rows; ++s) {
        if (!marks(s)) continue;
        double const factor = unit * u.off(r, s);
        for (index_t i = 0; i < u.width; ++i) g[i] += factor * u.row(s)[i];
      }
      u.through_norm(r, options.epsilon, g);
      double const small = u.norms[r] > 0 ? options.simple / static_cast<double>(u.rows) : 0;
      double const length = u.norms[r] > options.epsilon ? 1 : u.norms[r] / options.epsilon;
      for (index_t i = 0; small != 0 && i < u.width; ++i) g[i] += small * u.row(r)[i] / length;
    });
  }
};
/// ADDS the gradient of diverse_loss() to d_weights [experts, hidden]; the last argument, after
/// those of the loss. Where a norm is 0, it has no gradient.
inline constexpr diverse_loss_backward_fn diverse_loss_backward{};

}  // namespace expar::inline v0
