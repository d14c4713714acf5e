// SPDX-License-Identifier: Apache-2.0
#include <expar/detail/arguments.hpp>

#include <array>
#include <cstdint>
#include <limits>
#include <type_traits>
#include <vector>

#include "../support/catch.hpp"

using expar::make_strided_view;
using expar::make_view;
using expar::detail::arguments;

namespace {

expar::host_context const ctx;

}  // namespace

TEST_CASE("arguments: ids of any signed integer type are 32-bit numbers inside") {
  std::int8_t const small[] = {0, -1, 5, 127};
  std::int64_t const wide[] = {0, -1, 5, std::numeric_limits<std::int32_t>::max()};
  std::int32_t const own[] = {0, -1, 5, 127};
  arguments a(ctx, "f");
  auto const s = a.ids("small", make_view(small, 2, 2));
  auto const w = a.ids_vector("wide", make_strided_view(wide, 2, 3));
  auto const o = a.ids("own", make_view(own, 2, 2));
  CHECK(s.row(1)[1] == 127);
  CHECK(s(0, 1) == -1);
  CHECK(w(1) == std::numeric_limits<std::int32_t>::max());
  CHECK(o.data == own);
  STATIC_REQUIRE(std::is_same_v<std::remove_cvref_t<decltype(s(0, 0))>, std::int32_t>);

  std::int64_t const beyond[] = {0, (std::int64_t{1} << 32) + 1};
  REQUIRE_THROWS_WITH(a.ids("ids", make_view(beyond, 1, 2)),
                      "expar: f: ids(0, 1) is 4294967297; an expert id is -1 (no expert) or 0 to "
                      "2147483646");
}

TEST_CASE("arguments: pitched ids reach the caller when they are stored") {
  std::int64_t to[6] = {9, 9, 9, 9, 9, 9};
  arguments a(ctx, "f");
  auto const ids = a.written_ids("ids", make_view(to, 2, 2, 3), 8);
  for (int t = 0; t < 2; ++t)
    for (int j = 0; j < 2; ++j) ids.row(t)[j] = 2 * t + j - 1;
  CHECK(to[0] == 9);
  ids.store();
  CHECK(std::vector<std::int64_t>(to, to + 6) == std::vector<std::int64_t>{-1, 0, 9, 1, 2, 9});

  std::int8_t small[2];
  REQUIRE_NOTHROW(a.written_ids("small", make_view(small, 1, 2), 128));
  arguments b(ctx, "f");
  REQUIRE_THROWS_WITH(b.written_ids("small", make_view(small, 1, 2), 129),
                      "expar: f: small of 8 bits cannot name 129 experts");
}

TEST_CASE("arguments: only() leaves tokens out, by marks of either type") {
  std::vector<float> const logits(6);
  std::array<bool, 3> const valid{true, false, true};
  std::uint8_t const marks[] = {1, 9, 0, 9, 7, 9};
  auto const z = make_view(logits.data(), 3, 2);
  arguments a(ctx, "f");
  auto const all = a.masked("z", z);
  auto const some = a.masked("z", expar::only(valid, z));
  auto const strided = a.masked("z", expar::only(make_strided_view(marks, 3, 2), z));
  CHECK((all.valid(0) && all.valid(1) && all.valid(2)));
  CHECK((some.valid(0) && !some.valid(1) && some.valid(2)));
  CHECK((strided.valid(0) && !strided.valid(1) && strided.valid(2)));
  CHECK(some.data == logits.data());
  REQUIRE_THROWS_WITH(a.masked("z", expar::only(make_view(marks, 2), z)),
                      "expar: f: valid has extent 2 in dimension 0, but the number of tokens is 3");
}

TEST_CASE("arguments: a gradient overwrites, or adds in the accumulator where add_to() says so") {
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
