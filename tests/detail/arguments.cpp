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
