// SPDX-License-Identifier: Apache-2.0
#include <expar/router/detail/transpose.hpp>

#include <cstdint>
#include <vector>

#include "../../support/catch.hpp"

namespace {

template <class A>
void require_transposed() {
  constexpr int lanes = expar::detail::vector_bytes / static_cast<int>(sizeof(A));
  for (int columns = 0; columns <= 21; ++columns) {
    int const pitch = columns + 3;
    std::vector<A> from(static_cast<std::size_t>(lanes * pitch)),
        to(static_cast<std::size_t>(lanes * columns + 1), A(-1));
    for (std::size_t i = 0; i < from.size(); ++i) from[i] = static_cast<A>(i);
    expar::detail::transpose(static_cast<A const*>(from.data()), pitch, columns, to.data());
    for (int c = 0; c < columns; ++c)
      for (int l = 0; l < lanes; ++l)
        REQUIRE(to[static_cast<std::size_t>(c * lanes + l)] == static_cast<A>(l * pitch + c));
    REQUIRE(to.back() == A(-1));
  }
}

}  // namespace

TEST_CASE("rows become columns", "[router]") {
  require_transposed<float>();
  require_transposed<double>();
  require_transposed<std::int32_t>();
}

TEST_CASE("rows of 8 become columns", "[router]") {
  constexpr int lanes = expar::detail::vector_bytes / 4;
  float from[8 * lanes], to[8 * lanes];
  for (int i = 0; i < 8 * lanes; ++i) from[i] = static_cast<float>(i);
  expar::detail::transpose_eights(from, to);
  for (int c = 0; c < 8; ++c)
    for (int l = 0; l < lanes; ++l) REQUIRE(to[c * lanes + l] == from[l * 8 + c]);
}
