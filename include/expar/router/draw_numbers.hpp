// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/detail/arguments.hpp>
#include <expar/router/random.hpp>

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
    detail::arguments a(ctx, "draw_numbers");
    auto const v = a.written(
        "out", out, {detail::any_extent, detail::any_extent, detail::may_be("given numbers")});
    using T = detail::element_of<decltype(v)>;
    using A = accumulator_t<T>;
    index_t const tokens = v.extents[0], columns = v.extents[1];
    source.validate(a, columns, tokens);
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
/// `draw_numbers(ctx, source, out)` writes numbers of a source, for operations that take them as a
/// tensor (drop orders, second experts, sampled choices): out [T, n] of any element type,
/// out(t, i) = source.at(t).of(i). Drawn in float, or in double for double, and rounded once:
/// uniforms down, so that they stay below 1, other numbers to nearest. The same for any number of
/// threads. A vector [T] is a tensor [T, 1]. `out` may be the tensor of given_numbers.
inline constexpr draw_numbers_fn draw_numbers{};

}  // namespace expar::inline v0
