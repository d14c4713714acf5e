// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

#include <expar/config.hpp>
#include <expar/detail/arithmetic.hpp>
#include <expar/error.hpp>
#include <expar/router/math.hpp>
#include <expar/router/score.hpp>
#include <expar/tensor.hpp>

EXPAR_IEEE_BEGIN
namespace expar::inline v0 {

/// Divides the weights by their norm of order p >= 1, (sum of |w|^p)^(1/p) (DBRX, MegaBlocks,
/// OLMo-core). A norm of 0 gives weights of 0. Computed relative to the largest weight, so that no
/// power is too large or too small.
struct normalize {
  double p = 1;

  template <class A>
  EXPAR_HD void operator()(std::int32_t const* /*ids*/, A* w, int k) const {
    A const most = largest(w, k);
    if (most == A(0)) return;
    A const n = norm(w, k, most);
    for (int j = 0; j < k; ++j) w[j] = detail::divide(detail::divide(w[j], most), n);
  }
  /// The slope of the norm for w is sign(w) * |w / norm|^(p - 1).
  template <class A>
  EXPAR_HD void vjp(std::int32_t const* ids, A const* in, A const* out, A* d, int k) const {
    A const most = largest(in, k), n = most == A(0) ? A(1) : norm(in, k, most);
    A mean = 0;
    for (int j = 0; j < k; ++j) mean = detail::add(mean, detail::multiply(d[j], out[j]));
    for (int j = 0; j < k; ++j) {
      A const size = power(magnitude(out[j]), p - 1);
      A const rest = detail::add(d[j], -detail::multiply(mean, out[j] < A(0) ? -size : size));
      d[j] = ids[j] < 0 || most == A(0) ? A(0) : detail::divide(detail::divide(rest, most), n);
    }
  }
  void validate(char const* what, int /*experts*/, int /*top_k*/, index_t /*tokens*/) const {
    detail::expects(p >= 1 && p < detail::infinity<double>, what, ": p is ", p,
                    "; it is at least 1 and finite");
  }

 private:
  template <class A>
  EXPAR_HD static A magnitude(A x) {
    return x < A(0) ? -x : x;
  }
  template <class A>
  EXPAR_HD static A largest(A const* w, int k) {
    A most = 0;
    for (int j = 0; j < k; ++j) most = magnitude(w[j]) > most ? magnitude(w[j]) : most;
    return most;
  }
  /// The norm of w / most.
  template <class A>
  EXPAR_HD A norm(A const* w, int k, A most) const {
    A sum = 0;
    for (int j = 0; j < k; ++j)
      sum = detail::add(sum, power(detail::divide(magnitude(w[j]), most), p));
    return power(sum, 1 / p);
  }
  /// x^y for x >= 0 and y >= 0; 0^0 is 1.
  template <class A>
  EXPAR_HD static A power(A x, double y) {
    if (y == 0) return A(1);
    if (y == 1) return x;
    if (y == 2) return detail::multiply(x, x);
    if (y == 0.5) return detail::square_root(x);
    if (!(x >= detail::smallest_normal<A>)) return A(0);
    return detail::exponential(detail::multiply(static_cast<A>(y), detail::logarithm(x)));
  }
};

/// The softmax of the weights among themselves: with logit_score, of the selected logits (gpt-oss,
/// Granite). Sums are made in choice order.
struct softmax_weights {
  template <class A>
  EXPAR_HD void operator()(std::int32_t const* ids, A* w, int k) const {
    A most = -detail::infinity<A>, sum = 0;
    for (int j = 0; j < k; ++j)
      if (ids[j] >= 0 && w[j] > most) most = w[j];
    for (int j = 0; j < k; ++j) {
      w[j] = ids[j] < 0 || detail::masked(w[j]) ? A(0) : detail::shifted_exp(w[j], most);
      sum = detail::add(sum, w[j]);
    }
    A const inverse = detail::inverse_of_sum(sum);
    for (int j = 0; j < k; ++j) w[j] = detail::multiply(w[j], inverse);
  }
  template <class A>
  EXPAR_HD void vjp(std::int32_t const* /*ids*/, A const* /*in*/, A const* out, A* d, int k) const {
    A mean = 0;
    for (int j = 0; j < k; ++j) mean = detail::add(mean, detail::multiply(d[j], out[j]));
    for (int j = 0; j < k; ++j) d[j] = detail::multiply(out[j], detail::add(d[j], -mean));
  }
};

/// 1 / (1 + exp(-w)) of each weight (Llama 4).
struct sigmoid_weights {
  template <class A>
  EXPAR_HD void operator()(std::int32_t const* ids, A* w, int k) const {
    for (int j = 0; j < k; ++j) w[j] = ids[j] < 0 ? A(0) : sigmoid_score{}.term(w[j], A(0));
  }
  template <class A>
  EXPAR_HD void vjp(std::int32_t const* ids, A const* /*in*/, A const* out, A* d, int k) const {
    for (int j = 0; j < k; ++j)
      d[j] = ids[j] < 0 ? A(0) : sigmoid_score{}.slope(out[j], d[j], A(0));
  }
};

}  // namespace expar::inline v0
EXPAR_IEEE_END
