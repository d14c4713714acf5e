// SPDX-License-Identifier: Apache-2.0
#include <expar/gpu/exchange/window_layout.hpp>

#include <cstdint>
#include <string>
#include <vector>

#include "../support/catch.hpp"
#include "../support/random.hpp"

using expar::index_t;

TEST_CASE("a window holds two tables and its buffers, apart and aligned") {
  expar_test::random rng(1);
  for (int i = 0; i < 100; ++i) {
    int const ranks = static_cast<int>(rng.integer(1, 9));
    auto const shape = expar::detail::shape_of(
        {ranks + static_cast<int>(rng.integer(0, 9)), ranks}, rng.integer(1, 300),
        {static_cast<index_t>(rng.integer(0, 20)), rng.chance(.5)});
    std::size_t end = 0;
    for (unsigned turn = 0; turn < 2; ++turn)
      for (int r = 0; r < ranks; ++r) {
        REQUIRE(shape.said_by(turn, r) == end);
        REQUIRE(shape.said_by(turn + 4, r) == end);
        end += static_cast<std::size_t>(shape.words()) * sizeof(index_t);
      }
    for (int b = 0; b < shape.buffers; ++b) {
      REQUIRE(shape.buffer(b) >= end);
      REQUIRE(shape.buffer(b) % 256 == 0);
      end = shape.buffer(b) + static_cast<std::size_t>(shape.rows * shape.row_bytes);
    }
    REQUIRE(shape.bytes() >= end);
  }
}

TEST_CASE("room_of lays rows out by source rank, in equal parts where a capacity bounds them") {
  expar_test::random rng(2);
  for (int i = 0; i < 200; ++i) {
    int const ranks = static_cast<int>(rng.integer(1, 5));
    int const experts = ranks + static_cast<int>(rng.integer(0, 7));
    auto const shape = expar::detail::shape_of({experts, ranks}, 4, {10});
    bool const fixed = rng.chance(.5);
    expar::detail::window_rule const rule{fixed ? 1 : static_cast<int>(rng.integer(1, 4)),
                                          fixed ? static_cast<index_t>(rng.integer(0, 6)) : -1};
    std::vector<index_t> said(static_cast<std::size_t>(ranks * shape.words()), -7);
    auto const count = [&](int s, int e) -> index_t& {
      return said[static_cast<std::size_t>(s * shape.words() + e)];
    };
    for (int s = 0; s < ranks; ++s)
      for (int e = 0; e < experts; ++e) count(s, e) = static_cast<index_t>(rng.integer(0, 9));
    for (int e = 0; e < experts; ++e) {
      index_t rows = 0, end = 0;
      for (int s = 0; s < ranks; ++s) {
        auto const room = expar::detail::room_of(shape, rule, said.data(), e, s);
        REQUIRE(room.before == end);
        index_t const n = count(s, e);
        rows += fixed && n > rule.capacity ? rule.capacity : n;
        end += fixed ? rule.capacity : n;
      }
      while (end % rule.alignment != 0) ++end;
      for (int s = 0; s < ranks; ++s) {
        auto const room = expar::detail::room_of(shape, rule, said.data(), e, s);
        REQUIRE(room.filled == rows);
        REQUIRE(room.size == end);
      }
    }
  }
}

TEST_CASE("the worst case is enough, whatever the routes") {
  expar_test::random rng(3);
  for (int i = 0; i < 200; ++i) {
    int const ranks = static_cast<int>(rng.integer(1, 4)), k = static_cast<int>(rng.integer(1, 3));
    expar::block_placement const place{ranks + static_cast<int>(rng.integer(0, 3)), ranks};
    auto const tokens = static_cast<index_t>(rng.integer(0, 5));
    expar::ragged const layout{static_cast<int>(rng.integer(1, 4))};
    auto const shape = expar::detail::shape_of(place, 4, {10});
    std::vector<index_t> said(static_cast<std::size_t>(ranks * shape.words()));
    for (int s = 0; s < ranks; ++s)
      for (index_t route = 0; route < tokens * k; ++route)
        ++said[static_cast<std::size_t>(s * shape.words() + rng.integer(0, place.experts - 1))];
    for (int owner = 0; owner < ranks; ++owner) {
      index_t rows = 0;
      for (int e = place.first(owner); e < place.first(owner + 1); ++e)
        rows += expar::detail::room_of(shape, {layout.alignment, -1}, said.data(), e, 0).size;
      REQUIRE(rows <= expar::detail::worst_case_rows(place, layout, k, tokens));
    }
  }
}

TEST_CASE("a worst case that no memory can hold is an error") {
  auto const rows = [](auto layout, index_t tokens) {
    return expar::detail::worst_case_rows({8, 2}, layout, 2, tokens);
  };
  CHECK(rows(expar::ragged{4}, 3) == 3 * 2 * 2 + 4 * 3);
  CHECK(rows(expar::fixed_capacity{0}, 3) == 8 * 6);
  std::string const beyond = "; the rows of so many are more than memory can hold";
  CHECK_THROWS_WITH(rows(expar::ragged{}, -5),
                    "expar: worst_case_rows: tokens is -5; it is at least 0");
  CHECK_THROWS_WITH(rows(expar::ragged{}, PTRDIFF_MAX / 4 + 1),
                    "expar: worst_case_rows: tokens is 2305843009213693952" + beyond);
  CHECK_THROWS_WITH(rows(expar::fixed_capacity{0}, PTRDIFF_MAX / 16 + 1),
                    "expar: worst_case_rows: tokens is 576460752303423488" + beyond);
}

TEST_CASE("the worst case of so many rows per expert has those of every rank") {
  expar::fixed_capacity const layout{.alignment = 4, .rows = 7};
  for (index_t const tokens : {0, 1, 100})
    REQUIRE(expar::detail::worst_case_rows({10, 4}, layout, 2, tokens) == 3 * 4 * 8);
}

TEST_CASE("a window that no memory can hold is an error") {
  REQUIRE_THROWS_WITH(expar::detail::shape_of({4, 2}, 16, {-1}),
                      "expar: make_batch: rows is -1; it lies between 0 and 72057594037927935");
}
