// SPDX-License-Identifier: Apache-2.0
#include <expar/exchange/segments.hpp>

#include <vector>

#include "../support/catch.hpp"
#include "../support/random.hpp"

using expar::index_t;

namespace {

index_t signed_of(std::size_t n) {
  return static_cast<index_t>(n);
}

}  // namespace

TEST_CASE("segments hold a word, rows and scalars that never overlap") {
  for (std::uint64_t seed = 0; seed < 100; ++seed) {
    expar_test::random rng(seed);
    int const peers = static_cast<int>(rng.integer(1, 5));
    std::vector<index_t> rows;
    for (int p = 0; p < peers; ++p) rows.push_back(rng.integer(0, 12));
    index_t const row_bytes = rng.integer(0, 70), scalar_bytes = rng.chance(.5) ? 4 : 0;
    int const own = static_cast<int>(rng.integer(-1, peers - 1));
    expar::detail::segments s(std::pmr::get_default_resource());
    s.divide(
        peers, [&](int p) { return rows[static_cast<std::size_t>(p)]; }, row_bytes, scalar_bytes,
        own);
    std::vector<int> owner(static_cast<std::size_t>(s.bytes()), -1);
    auto const take = [&](index_t at, index_t n, int who) {
      for (index_t i = at; i < at + n; ++i) {
        REQUIRE(owner.at(static_cast<std::size_t>(i)) == -1);
        owner[static_cast<std::size_t>(i)] = who;
      }
    };
    for (int p = 0; p < peers; ++p) {
      auto const peer = static_cast<std::size_t>(p);
      index_t const at = signed_of(s.displacements()[peer]), n = signed_of(s.counts()[peer]);
      REQUIRE(at % 64 == 0);
      if (p == own) {
        REQUIRE(n == 0);
        continue;
      }
      take(at, signed_of(sizeof(expar::detail::word)), p);
      take(signed_of(s.displacements()[peer] + s.rows_at), rows[peer] * row_bytes, p);
      take(signed_of(s.displacements()[peer] + s.scalars_at(p)), rows[peer] * scalar_bytes, p);
      REQUIRE(signed_of(s.displacements()[peer] + s.rows_at) > at);
      REQUIRE(signed_of(s.displacements()[peer] + s.scalars_at(p)) + rows[peer] * scalar_bytes <=
              at + n);
    }
  }
}

TEST_CASE("segments say when there are more bytes than an index can count") {
  expar::detail::segments s(std::pmr::get_default_resource());
  CHECK_THROWS_WITH(
      s.divide(
          2, [&](int) { return index_t{1} << 22; }, index_t{1} << 40, 8),
      "expar: exchange: 8388608 rows of 1099511627784 bytes are more than memory can hold");
  CHECK_THROWS_WITH(
      s.divide(
          2, [&](int) { return expar::detail::uncountable; }, 0, 8),
      "expar: exchange: 9223372036854775807 rows of 8 bytes are more than memory can hold");
}
