// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/config.hpp>
#include <expar/detail/arguments.hpp>
#include <expar/detail/arithmetic.hpp>
#include <expar/router/exp.hpp>
#include <expar/router/score.hpp>  // masked

EXPAR_IEEE_BEGIN
namespace expar::inline v0 {

/// A transform of routers whose logits are cosines (Tutel, gates/cosine_top.py; SwinV2-MoE): z
/// times exp(min(temperature, ln 100)), where the temperature is learned; NaN stays NaN. Cosines
/// are the products of rows that normalize_rows() made of unit length.
struct cosine_scale {
  static constexpr double largest = 4.605170185988092;  // ln 100

  double factor;

  EXPAR_HD explicit cosine_scale(double temperature)
      : factor(temperature != temperature
                   ? temperature
                   : detail::exponential(temperature < largest ? temperature : largest)) {}

  template <class A>
  EXPAR_HD A of(A z, int /*expert*/) const {
    return detail::multiply(z, static_cast<A>(factor));
  }
  template <class A>
  EXPAR_HD A slope(A /*z*/, int /*expert*/) const {
    return static_cast<A>(factor);
  }
};

struct cosine_scale_backward_fn {
  template <class Logits, class DLogits>
  double operator()(host_context const& ctx, double temperature, Logits const& logits,
                    DLogits const& d_logits) const {
    detail::arguments a(ctx, "cosine_scale_backward");
    auto const z = a.read("logits", logits);
    index_t const tokens = z.extents[0], experts = z.extents[1];
    auto const dz = a.read("d_logits", d_logits,
                           {{tokens, "the number of tokens"}, {experts, "the number of experts"}});
    if (temperature > cosine_scale::largest) return 0;
    constexpr index_t block = 64;  // so that the number of threads does not show
    index_t const blocks = (tokens + block - 1) / block;
    detail::buffer<double> sums(ctx.memory());
    sums.resize(blocks);
    ctx.for_each_chunk(blocks, 1, [&](int, index_t first, index_t last) {
      for (index_t b = first; b < last; ++b) {
        double sum = 0;
        for (index_t t = b * block; t < (b + 1) * block && t < tokens; ++t)
          for (index_t e = 0; e < experts; ++e)
            if (auto const x = widen(z.row(t)[e]); !detail::masked(x))
              sum += static_cast<double>(x) * static_cast<double>(widen(dz.row(t)[e]));
        sums[b] = sum;
      }
    });
    double total = 0;
    for (double const sum : sums) total += sum;
    return total;
  }
};
/// `cosine_scale_backward(ctx, temperature, logits, d_logits)`: the gradient for the temperature,
/// which is the sum of logits times their gradient, in double, or 0 where the temperature is above
/// ln 100. Logits [T, experts] and d_logits [T, experts] are both of the cosines, or both of what
/// cosine_scale made of them: the result is the same. Masked logits take no part.
inline constexpr cosine_scale_backward_fn cosine_scale_backward{};

}  // namespace expar::inline v0
EXPAR_IEEE_END
