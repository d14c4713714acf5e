// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <expar/add_to.hpp>

#include "support/catch.hpp"
#include "support/grid.hpp"

namespace expar_test {

/// Law: write(add_to(d)) adds to d what write(d) overwrites it with. T: float or double, in which
/// the gradient is computed, so that the sum is exact.
template <class T, class Write>
void require_adds(expar::index_t rows, expar::index_t columns, Write write) {
  grid<T> gradient(rows, columns, 1), sum(rows, columns, 2);
  auto const before = [](expar::index_t r, expar::index_t c) {
    return static_cast<T>((5 * r + c) % 7 - 3) / 4;
  };
  for (expar::index_t r = 0; r < rows; ++r)
    for (expar::index_t c = 0; c < columns; ++c)
      sum.view()(r, c) = before(r, c), gradient.view()(r, c) = 99;
  write(gradient.view());
  write(expar::add_to(sum.view()));
  for (expar::index_t r = 0; r < rows; ++r)
    for (expar::index_t c = 0; c < columns; ++c) {
      CAPTURE(r, c);
      REQUIRE(sum.view()(r, c) == before(r, c) + gradient.view()(r, c));
    }
  REQUIRE((sum.gaps_intact() && gradient.gaps_intact()));
}

}  // namespace expar_test
