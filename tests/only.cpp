// SPDX-License-Identifier: Apache-2.0
#include <expar/only.hpp>

#include <array>
#include <cstdint>
#include <vector>

#include <expar/detail/arguments.hpp>

#include "support/catch.hpp"

using expar::make_view;
using expar::detail::arguments;

namespace {

expar::host_context const ctx;

}  // namespace

TEST_CASE("only() leaves tokens out, by marks of either type") {
  std::vector<float> const logits(6);
  std::array<bool, 3> const valid{true, false, true};
  std::uint8_t const marks[] = {1, 9, 0, 9, 7, 9};
  auto const z = make_view(logits.data(), 3, 2);
  arguments a(ctx, "f");
  auto const all = a.masked("z", z);
  auto const some = a.masked("z", expar::only(valid, z));
  auto const strided = a.masked("z", expar::only(expar::make_strided_view(marks, 3, 2), z));
  CHECK((all.valid(0) && all.valid(1) && all.valid(2)));
  CHECK((some.valid(0) && !some.valid(1) && some.valid(2)));
  CHECK((strided.valid(0) && !strided.valid(1) && strided.valid(2)));
  CHECK(some.data == logits.data());
  REQUIRE_THROWS_WITH(a.masked("z", expar::only(make_view(marks, 2), z)),
                      "expar: f: valid has extent 2 in dimension 0, but the number of tokens is 3");
}
