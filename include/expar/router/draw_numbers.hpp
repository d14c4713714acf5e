// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <type_traits>

#include <expar/context.hpp>
#include <expar/element.hpp>
#include <expar/router/random.hpp>
#include <expar/tensor.hpp>

namespace expar::inline v0 {
namespace detail {

/// The largest T that is not above x, which is at least 0; narrow() gives the nearest.
template <class T>
T narrow_down(accumulator_t<T> x) {
  T nearest = narrow<T>(x);
  // Of numbers further and further below x, the first that does not become this one again becomes
  // the one before it: they are less than two spacings apart from it.
  for (auto further = widen(nearest) - x; widen(nearest) > x; further *= 2)
    nearest = narrow<T>(further < x ? x - further : accumulator_t<T>(0));
  return nearest;
}

}  // namespace detail

struct draw_numbers_fn {
  template <class Numbers, class Out>
  void operator()(host_context const& ctx, Numbers const& source, Out&& out) const {
    auto const v = detail::as_output<2>(ctx, out);
    using T = detail::element_of<decltype(v)>;
    static_assert(element<T>,
                  "expar: numbers are of an element type; specialize expar::element_traits for it");
    using A = accumulator_t<T>;
    detail::check_output("draw_numbers: out", v);
    index_t const tokens = v.extents[0], columns = v.extents[1];
    source.check("draw_numbers", columns, tokens);
    detail::check_numbers_in_place("draw_numbers: out", v, source);
    ctx.for_each_chunk(tokens, 1024 / (columns + 1) + 1, [&](int, index_t first, index_t last) {
      for (index_t t = first; t < last; ++t) {
        auto const of_token = source.at(t);
        T* const row = v.row(t);
        for (index_t i = 0; i < columns; ++i) {
          A const x = of_token.template of<A>(i);
          row[i] = std::is_same_v<Numbers, uniforms> ? detail::narrow_down<T>(x) : narrow<T>(x);
        }
      }
    });
  }
};
/// Writes numbers of a source, for operations that take them as a tensor (drop orders, second
/// experts, sampled choices): `draw_numbers(ctx, source, out)`, out [T, n] of any element type,
/// out(t, i) = source.at(t).of(i). Drawn in float, or in double for double, and rounded once:
/// uniforms down, so that they stay below 1, other numbers to nearest. The same for any number of
/// threads. A vector [T] is a tensor [T, 1]. `out` may be the tensor of given_numbers.
inline constexpr draw_numbers_fn draw_numbers{};

}  // namespace expar::inline v0
