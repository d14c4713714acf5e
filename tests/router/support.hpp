// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include <expar/element.hpp>
#include <expar/error.hpp>
#include <expar/tensor.hpp>

#include "../support/random.hpp"

namespace router_test {

using expar_test::random;

inline constexpr double inf = std::numeric_limits<double>::infinity();
inline constexpr double qnan = std::numeric_limits<double>::quiet_NaN();

using row_type = std::vector<double>;

/// A matrix whose rows stand `gap` elements further apart than they are wide.
template <class T>
struct matrix {
  expar::index_t rows, columns, pitch;
  std::vector<T> data;

  matrix(expar::index_t r, expar::index_t c, expar::index_t gap = 0)
      : rows(r), columns(c), pitch(c + gap), data(static_cast<std::size_t>(r * (c + gap))) {}
  explicit matrix(std::vector<row_type> const& from, expar::index_t gap = 0)
      : matrix(static_cast<expar::index_t>(from.size()),
               static_cast<expar::index_t>(from[0].size()), gap) {
    for (expar::index_t r = 0; r < rows; ++r)
      for (expar::index_t c = 0; c < columns; ++c)
        set(r, c, from[static_cast<std::size_t>(r)][static_cast<std::size_t>(c)]);
  }

  expar::tensor_view<T, 2> view() { return expar::make_view(data.data(), rows, columns, pitch); }
  T& at(expar::index_t r, expar::index_t c) {
    return data[static_cast<std::size_t>(r * pitch + c)];
  }
  void set(expar::index_t r, expar::index_t c, double x) {
    at(r, c) = expar::narrow<T>(static_cast<expar::accumulator_t<T>>(x));
  }
  double get(expar::index_t r, expar::index_t c) {
    return static_cast<double>(expar::widen(at(r, c)));
  }
  row_type row(expar::index_t r) {
    row_type out;
    for (expar::index_t c = 0; c < columns; ++c) out.push_back(get(r, c));
    return out;
  }
};

/// Routes with ids of 64 bits, whose rows do not follow one another.
struct wide_routes {
  matrix<std::int64_t> id_matrix;
  matrix<float> weight_matrix;
  expar::tensor_view<std::int64_t, 2> ids = id_matrix.view();
  expar::tensor_view<float, 2> weights = weight_matrix.view();

  wide_routes(expar::index_t rows, expar::index_t columns)
      : id_matrix(rows, columns, 1), weight_matrix(rows, columns, 2) {}
  wide_routes(wide_routes const&) = delete;

  template <class Routes>
  bool same_as(Routes const& r) const {
    for (expar::index_t t = 0; t < ids.extents[0]; ++t)
      for (expar::index_t j = 0; j < ids.extents[1]; ++j)
        if (ids(t, j) != r.ids(t, j) || weights(t, j) != r.weights(t, j)) return false;
    return true;
  }
};

/// Routers by definition, in float64, for one token.
struct reference_router {
  bool sigmoid = false, biased = false;
  enum { none, add, at_least } norm = none;
  double epsilon = 0, factor = 1;

  static bool masked(double z) { return std::isnan(z) || z == -inf; }

  row_type scores(row_type const& z) const {
    row_type s(z.size(), 0);
    if (sigmoid) {
      for (std::size_t e = 0; e < z.size(); ++e)
        if (!masked(z[e])) s[e] = 1 / (1 + std::exp(-z[e]));
      return s;
    }
    double most = -inf, sum = 0;
    for (double x : z)
      if (!masked(x)) most = std::max(most, x);
    for (std::size_t e = 0; e < z.size(); ++e)
      if (!masked(z[e])) sum += s[e] = most == inf ? z[e] == inf : std::exp(z[e] - most);
    for (double& x : s) x = sum > 0 ? x / sum : 0;
    return s;
  }
  /// Without a bias, both scores order experts as their logits do.
  row_type keys(row_type const& z, row_type const& bias) const {
    row_type s = biased ? scores(z) : z;
    for (std::size_t e = 0; e < s.size(); ++e) {
      if (biased) s[e] += bias[e];
      if (masked(z[e]) || masked(s[e])) s[e] = -inf;
    }
    return s;
  }
  std::vector<std::int32_t> ids(row_type const& z, row_type const& bias, int k) const {
    row_type const key = keys(z, bias);
    std::vector<std::int32_t> order(z.size());
    std::iota(order.begin(), order.end(), 0);
    auto const at = [&](std::int32_t e) { return key[static_cast<std::size_t>(e)]; };
    std::stable_sort(order.begin(), order.end(), [&](auto a, auto b) { return at(a) > at(b); });
    order.resize(static_cast<std::size_t>(k));
    for (auto& e : order)
      if (at(e) == -inf) e = -1;
    return order;
  }
  row_type weights(row_type const& z, std::vector<std::int32_t> const& ids) const {
    row_type const s = scores(z);
    row_type w;
    for (auto e : ids) w.push_back(e < 0 ? 0 : s[static_cast<std::size_t>(e)]);
    double sum = 0;
    for (double x : w) sum += x;
    double const divisor = norm == none ? 1 : norm == add ? sum + epsilon : std::max(sum, epsilon);
    for (double& x : w) x = divisor == 0 ? 0 : x / divisor * factor;
    return w;
  }
};

/// A row of logits, some of them special. Multiples of 1/8 so that ties are common, and so that
/// every element type holds them.
inline row_type random_row(random& rng, int experts) {
  bool const specials = rng.chance(.3), all_masked = rng.chance(.05), flat = rng.chance(.1);
  row_type z;
  for (int e = 0; e < experts; ++e) {
    double x = flat ? (rng.chance(.5) ? 0. : -0.) : static_cast<double>(rng.integer(-32, 32)) / 8;
    if (specials && rng.chance(.3)) x = rng.chance(.4) ? -inf : rng.chance(.7) ? qnan : inf;
    if (all_masked) x = rng.chance(.5) ? -inf : qnan;
    z.push_back(x);
  }
  return z;
}

/// A type of the user's own: fixed point, with NaN and infinities as marks. Multiples of 1/1024 up
/// to almost 32.
struct fixed16 {
  std::int16_t ticks;
};

/// The sentence that f throws.
template <class F>
std::string sentence_of(F&& f) {
  try {
    f();
  } catch (expar::error const& e) {
    return e.what();
  }
  return "nothing was thrown";
}

}  // namespace router_test

template <>
struct expar::element_traits<router_test::fixed16> {
  using accumulator = float;
  static float widen(router_test::fixed16 x) {
    if (x.ticks == 32767) return std::numeric_limits<float>::infinity();
    if (x.ticks == -32767) return -std::numeric_limits<float>::infinity();
    if (x.ticks == -32768) return std::numeric_limits<float>::quiet_NaN();
    return static_cast<float>(x.ticks) / 1024;
  }
  static router_test::fixed16 narrow(float x) {
    if (std::isnan(x)) return {-32768};
    if (x > 31) return {32767};
    if (x < -31) return {-32767};
    return {static_cast<std::int16_t>(std::lrintf(x * 1024))};
  }
};
