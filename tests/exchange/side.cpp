// SPDX-License-Identifier: Apache-2.0
#include <expar/exchange/side.hpp>

#include <utility>
#include <vector>

#include "support/catch.hpp"

using expar::index_t;
using expar::detail::local_sides;
using expar::detail::piece_for;
using expar::detail::shared;
using expar::detail::side_memory;
using expar::detail::side_pool;

TEST_CASE("sides: the smallest free piece that fits, else the largest, else none") {
  std::vector<index_t> const bytes{100, 10, 50, 200};
  std::vector<bool> free{true, true, true, true};
  auto const pick = [&](index_t wanted) {
    return piece_for(
        wanted, 4, [&](int i) { return free[static_cast<std::size_t>(i)]; },
        [&](int i) { return bytes[static_cast<std::size_t>(i)]; });
  };
  CHECK(pick(1) == 1);
  CHECK(pick(11) == 2);
  CHECK(pick(100) == 0);
  CHECK(pick(201) == 3);
  free[3] = false;
  CHECK(pick(201) == 0);
  free = {false, false, false, false};
  CHECK(pick(0) == -1);
}

TEST_CASE("sides: a piece that is given back serves again, and grows by a quarter at least") {
  shared<side_pool> const pool(new local_sides(std::pmr::get_default_resource()));
  side_memory a, b;
  pool->take(a, 1000, 0);
  pool->take(b, 100, 40);
  CHECK(a.held());
  CHECK(a.scalars() == nullptr);
  CHECK(b.scalars() == b.rows() + 128);
  CHECK(a.piece() != b.piece());
  std::byte* const at = a.rows();
  side_memory moved = std::move(a);
  CHECK_FALSE(a.held());
  CHECK(moved.rows() == at);
  moved.release();
  moved.release();
  pool->take(a, 900, 0);
  CHECK(a.rows() == at);
  // What is assigned gives back what it had.
  int const first = a.piece();
  a = std::move(b);
  side_memory c;
  pool->take(c, 1001, 0);
  CHECK(c.piece() == first);
  c.release();
  pool->take(c, 1250, 0);
  CHECK(c.piece() == first);
}

TEST_CASE("sides: a pool lives as long as a piece of it") {
  side_memory last;
  {
    shared<side_pool> const pool(new local_sides(std::pmr::get_default_resource()));
    pool->take(last, 64, 0);
  }
  last.rows()[63] = std::byte{1};
  CHECK(last.rows()[63] == std::byte{1});
}
