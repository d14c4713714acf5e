// SPDX-License-Identifier: Apache-2.0
#include <expar/detail/in_place.hpp>

#include <cstdint>

#include "../router/support.hpp"
#include "../support/catch.hpp"

using expar::make_view;

TEST_CASE("what is written is what is read, or apart from it", "") {
  std::vector<float> data(40);
  float* const at = data.data();
  auto const refused = [](auto const& out, auto const& in) {
    return router_test::sentence_of([&] { expar::detail::check_in_place("f: out", out, "x", in); });
  };
  std::string const apart = "nothing was thrown",
                    overlaps =
                        "expar: f: out overlaps x in memory; it is that very tensor, or apart from "
                        "it";
  auto const x = make_view(at, 3, 4, 6);
  expar::tensor_view<float const, 2> const read{at, {3, 4}, {6, 1}};
  CHECK(refused(x, x) == apart);
  CHECK(refused(x, read) == apart);
  CHECK(refused(make_view(at + 18, 3, 4, 6), x) == apart);
  CHECK(refused(make_view(at + 4, 3, 2, 6), make_view(at, 3, 2, 6)) == apart);
  CHECK(refused(make_view(at + 6, 3, 4, 6), x) == overlaps);
  CHECK(refused(make_view(at + 1, 3, 4, 6), x) == overlaps);
  CHECK(refused(make_view(at, 3, 4, 5), x) == overlaps);
  // Of one row, the distance to the next does not matter.
  CHECK(refused(make_view(at, 1, 4, 5), make_view(at, 1, 4, 9)) == apart);
  CHECK(refused(make_view(at, 0, 4, 5), make_view(at, 0, 4, 9)) == apart);
  // Numbers of another type.
  auto* const bits = reinterpret_cast<std::int32_t*>(at);
  CHECK(refused(make_view(bits, 3, 4, 6), x) == overlaps);
  CHECK(refused(make_view(bits + 18, 3, 4, 6), x) == apart);
}

TEST_CASE("a vector is a matrix of one row", "") {
  std::vector<double> data(5);
  auto const row = expar::detail::as_row(make_view(data.data(), 5));
  CHECK(row.data == data.data());
  CHECK(row.extents[0] == 1);
  CHECK(row.extents[1] == 5);
}
