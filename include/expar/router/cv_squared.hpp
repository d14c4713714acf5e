// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/detail/arguments.hpp>

namespace expar::inline v0 {

/// ddof and epsilon must be given. What systems that balance importance and load put in:
///   fastmoe, davidmrau, Tutel   ddof = 1, epsilon = 1e-10
///   Tensor2Tensor               ddof = 0, epsilon = 1e-10
///   V-MoE                       ddof = 0, epsilon = 0
struct cv_squared_options {
  double coefficient = 1;
  int ddof = -1;        ///< the variance divides by n - ddof: 0 population, 1 unbiased
  double epsilon = -1;  ///< added to the square of the mean
};

namespace detail {

struct variation {
  double mean, variance, divisor, count, freedom;
};

template <class View>
auto as_sums(View const& v) {
  static_assert(std::is_same_v<element_of<View>, double>, "expar: these sums are double");
  return v;
}

inline variation variation_of(char const* op, tensor_view<double const, 1> const& sums,
                              cv_squared_options const& o) {
  expects(o.ddof == 0 || o.ddof == 1, op, ": ddof is ", o.ddof,
          "; options.ddof must be given, and is 0 or 1");
  expects(o.epsilon >= 0, op, ": epsilon is ", o.epsilon,
          "; options.epsilon must be given, and is at least 0");
  index_t const n = sums.extents[0];
  variation v{0, 0, 0, static_cast<double>(n), static_cast<double>(n - o.ddof)};
  if (n < 2) return v;
  for (index_t e = 0; e < n; ++e) v.mean += sums(e);
  v.mean /= v.count;
  for (index_t e = 0; e < n; ++e) {
    double const off = sums(e) - v.mean;
    v.variance += off * off;
  }
  v.variance /= v.freedom;
  v.divisor = v.mean * v.mean + o.epsilon;
  return v;
}

/// d cv_squared / d sums[e]
inline double variation_slope(variation const& v, double coefficient, double sum) {
  if (!(v.divisor > 0)) return 0;
  double const of_variance = 2 * (sum - v.mean) / (v.freedom * v.divisor);
  double const of_mean = 2 * v.mean * v.variance / (v.count * v.divisor * v.divisor);
  return coefficient * (of_variance - of_mean);
}

/// The gradient of cv_squared for its sums.
inline void make_variation_slopes(char const* op, tensor_view<double const, 1> const& sums,
                                  cv_squared_options const& o, buffer<double>& slopes) {
  variation const v = variation_of(op, sums, o);
  slopes.resize(sums.extents[0]);
  for (index_t e = 0; e < sums.extents[0]; ++e)
    slopes[e] = variation_slope(v, o.coefficient, sums(e));
}

}  // namespace detail

struct cv_squared_fn {
  template <class Sums>
  double operator()(host_context const& ctx, Sums const& sums,
                    cv_squared_options const& options) const {
    detail::arguments a(ctx, "cv_squared");
    auto const s = detail::as_sums(a.read_any_vector("sums", sums));
    detail::variation const v = detail::variation_of(a, s, options);
    return v.divisor > 0 ? options.coefficient * v.variance / v.divisor : 0;
  }
};
/// `cv_squared(ctx, sums, options)`: the squared coefficient of variation of sums [n] of double,
/// how uneven they are,
///   L = coefficient * variance(sums) / (mean(sums)^2 + epsilon).
/// 0 for fewer than two sums, and where the divisor is 0. It is the loss of importance and of load:
/// sparsely-gated mixture of experts, arXiv:1701.06538. Of sums over ranks, see sum_counts, it is
/// the whole loss on every rank, where other losses give a rank its part; the gradients on each
/// rank are those of its own tokens.
inline constexpr cv_squared_fn cv_squared{};

struct cv_squared_backward_fn {
  template <class Sums, class DSums>
  void operator()(host_context const& ctx, Sums const& sums, cv_squared_options const& options,
                  DSums&& d_sums) const {
    detail::arguments a(ctx, "cv_squared_backward");
    auto const s = detail::as_sums(a.read_any_vector("sums", sums));
    auto const d = detail::as_sums(
        a.gradient_vector("d_sums", d_sums, {{s.extents[0], "the number of sums"}}));
    detail::variation const v = detail::variation_of(a, s, options);
    for (index_t e = 0; e < s.extents[0]; ++e)
      d.put(d(e), detail::variation_slope(v, options.coefficient, s(e)));
  }
};
/// `cv_squared_backward(ctx, sums, options, d_sums)`: the gradient of cv_squared() to d_sums [n] of
/// double, overwritten, or added to by add_to(d_sums).
inline constexpr cv_squared_backward_fn cv_squared_backward{};

}  // namespace expar::inline v0
