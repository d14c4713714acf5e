// SPDX-License-Identifier: Apache-2.0
#include <expar/exchange/segments.hpp>

#include <vector>

#include "../support/catch.hpp"
#include "../support/random.hpp"

TEST_CASE("segments hold rows and scalars that never overlap") {
  for (std::uint64_t seed = 0; seed < 100; ++seed) {
    expar_test::random rng(seed);
    int const peers = static_cast<int>(rng.integer(1, 5));
    std::vector<int> first{0};
    for (int p = 0; p < peers; ++p)
      first.push_back(first.back() + static_cast<int>(rng.integer(0, 3)));
    std::vector<expar::index_t> rows;
    for (int b = 0; b < first.back(); ++b) rows.push_back(rng.integer(0, 4));
    expar::index_t const row_bytes = rng.integer(0, 70), scalar_bytes = rng.chance(.5) ? 4 : 0;
    bool const equal = rng.chance(.5);
    expar::detail::segments s(std::pmr::get_default_resource());
    s.divide(
        peers, [&](int b) { return rows[static_cast<std::size_t>(b)]; },
        [&](int p) { return first[static_cast<std::size_t>(p)]; }, row_bytes, scalar_bytes,
        equal ? 12 : -1);
    std::vector<int> owner(static_cast<std::size_t>(s.bytes()), -1);
    auto const take = [&](expar::index_t at, expar::index_t n, int who) {
      for (expar::index_t i = at; i < at + n; ++i) {
        REQUIRE(owner.at(static_cast<std::size_t>(i)) == -1);
        owner[static_cast<std::size_t>(i)] = who;
      }
    };
    for (int p = 0; p < peers; ++p) {
      auto const at = static_cast<expar::index_t>(s.displacements()[static_cast<std::size_t>(p)]);
      auto const n = static_cast<expar::index_t>(s.counts()[static_cast<std::size_t>(p)]);
      REQUIRE(at % 64 == 0);
      if (equal) REQUIRE(s.counts()[static_cast<std::size_t>(p)] == s.counts()[0]);
      for (int b = first[static_cast<std::size_t>(p)]; b < first[static_cast<std::size_t>(p) + 1];
           ++b) {
        take(s.row_start()[b], rows[static_cast<std::size_t>(b)] * row_bytes, p);
        take(s.scalar_start()[b], rows[static_cast<std::size_t>(b)] * scalar_bytes, p);
        REQUIRE(s.row_start()[b] >= at);
        REQUIRE(s.scalar_start()[b] + rows[static_cast<std::size_t>(b)] * scalar_bytes <= at + n);
      }
    }
  }
}

TEST_CASE("segments say when there are more bytes than an index can count") {
  expar::detail::segments s(std::pmr::get_default_resource());
  auto const divide = [&](expar::index_t rows, expar::index_t equal) {
    s.divide(
        2, [&](int) { return rows; }, [](int p) { return p; }, expar::index_t{1} << 40, 8, equal);
  };
  CHECK_THROWS_WITH(divide(expar::index_t{1} << 22, -1),
                    "expar: exchange: 8388608 rows of 1099511627784 bytes are more than memory can "
                    "hold");
  CHECK_THROWS_WITH(divide(0, expar::index_t{1} << 30),
                    "expar: exchange: 2147483648 rows of 1099511627784 bytes are more than memory "
                    "can hold");
}
