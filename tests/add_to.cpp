// SPDX-License-Identifier: Apache-2.0
#include <expar/add_to.hpp>

#include <vector>

#include <expar/detail/arguments.hpp>

#include "support/catch.hpp"

using expar::make_view;
using expar::detail::arguments;

namespace {

expar::host_context const ctx;

}  // namespace

TEST_CASE("a gradient overwrites, or adds in the accumulator where add_to() says so") {
  expar::bfloat16 held[2] = {expar::narrow<expar::bfloat16>(256),
                             expar::narrow<expar::bfloat16>(1)};
  arguments a(ctx, "f");
  auto const d = a.gradient("d", make_view(held, 1, 2));
  float const g[] = {.5f, .25f};
  d.put_row(d.row(0), g, 2);
  CHECK(expar::widen(held[0]) == .5f);
  d.put_zeros(d.row(0), 1);
  CHECK(expar::widen(held[0]) == 0);
  held[0] = expar::narrow<expar::bfloat16>(256);

  arguments b(ctx, "f");
  auto const sum = b.gradient("d", expar::add_to(make_view(held, 1, 2)));
  sum.put_row(sum.row(0), g, 2);
  CHECK(expar::widen(held[0]) == 256);  // 256.5 rounded once
  CHECK(expar::widen(held[1]) == .5f);
  sum.put_zeros(sum.row(0), 2);
  CHECK(expar::widen(held[1]) == .5f);

  std::vector<double> owner(3, 1.0);
  arguments c(ctx, "f");
  auto const v = c.gradient_vector("v", expar::add_to(owner));
  v.put(v(1), 2);
  CHECK(owner == std::vector<double>{1, 3, 1});
}

TEST_CASE("arguments: only() and add_to() outlive the views that they were made of") {
  float x[2] = {1, 2};
  std::uint8_t const marks[] = {0, 1};
  auto const some = expar::only(make_view(marks, 2), make_view(x, 2, 1));
  auto const sum = expar::add_to(make_view(x, 2, 1));
  static_assert(!std::is_reference_v<decltype(some.valid)>);
  static_assert(!std::is_reference_v<decltype(some.tensor)>);
  static_assert(!std::is_reference_v<decltype(sum.tensor)>);
  static_assert(!std::is_reference_v<decltype(expar::only(make_view(marks, 2), 2).tensor)>);
  arguments a(ctx, "f");
  auto const z = a.masked("z", some);
  CHECK((!z.valid(0) && z.valid(1) && z(1, 0) == 2));
  arguments b(ctx, "f");
  auto const d = b.gradient("d", sum);
  d.put(d(1, 0), 3);
  CHECK(x[1] == 5);
}
