// SPDX-License-Identifier: Apache-2.0
#include <expar/balance/quotas.hpp>

#include <vector>

#include "support/catch.hpp"
#include "support/random.hpp"

using expar::index_t;
using expar::make_view;
using expar::placement;

TEST_CASE("even_quotas: copies differ by one route, and the routes of rank 0 come first") {
  expar_test::random rng(11);
  for (int problem = 0; problem < 200; ++problem) {
    int const experts = static_cast<int>(rng.integer(1, 4)),
              n = static_cast<int>(rng.integer(1, 5)), copies = static_cast<int>(rng.integer(1, 4));
    auto const p = placement::replicated(experts, n, copies);
    std::vector<index_t> counts(static_cast<std::size_t>(n * experts));
    for (auto& c : counts) c = rng.chance(0.3) ? 0 : rng.integer(0, 20);
    std::vector<index_t> out(static_cast<std::size_t>(n * p.slot_count()), -7);
    expar::even_quotas(
        make_view(static_cast<index_t const*>(counts.data()), index_t{n}, index_t{experts}), p,
        make_view(out.data(), index_t{n}, index_t{p.slot_count()}));
    auto const quota = [&](int r, int e, int c) {
      return out[static_cast<std::size_t>(r * p.slot_count() + p.slot(e, c))];
    };
    for (int e = 0; e < experts; ++e) {
      index_t least = PTRDIFF_MAX, most = 0;
      int last = 0;
      for (int c = 0; c < copies; ++c) {
        index_t sum = 0;
        for (int r = 0; r < n; ++r) sum += quota(r, e, c);
        least = sum < least ? sum : least, most = sum > most ? sum : most;
      }
      REQUIRE(most - least <= 1);
      for (int r = 0; r < n; ++r) {
        index_t sum = 0;
        for (int c = 0; c < copies; ++c) {
          REQUIRE(quota(r, e, c) >= 0);
          sum += quota(r, e, c);
          if (quota(r, e, c) > 0) {
            REQUIRE(c >= last);
            last = c;
          }
        }
        REQUIRE(sum == counts[static_cast<std::size_t>(r * experts + e)]);
      }
    }
  }
}

TEST_CASE("split_by: an expert without a copy asks for no quota") {
  auto const p = placement::table(2, {{0, 0}, {1}}).without(1);
  index_t kept[] = {5, 7}, split[2];
  expar::detail::split_by(expar::even_quotas, p, make_view(kept, 1, 2), make_view(split, 1, 2));
  CHECK(split[0] + split[1] == 5);
}

TEST_CASE("split_by: quotas that do not add up are said, and shards get what the first gets") {
  auto const p = placement::table(2, {{0, 1}, {0, 1}, {0, 0}}, 2);
  index_t kept[3 * 2] = {5, 1, 0, 2, 3, 0}, split[3 * 6] = {};
  auto const run = [&](auto quotas) {
    expar::detail::split_by(quotas, p, make_view(kept, 3, 2), make_view(split, 3, 6));
  };
  run(expar::even_quotas);
  for (int r = 0; r < 3; ++r)
    for (int e = 0; e < 2; ++e)
      for (int c = 0; c < p.copies(e); ++c)
        CHECK(split[r * 6 + p.slot(e, c, 0)] == split[r * 6 + p.slot(e, c, 1)]);
  CHECK_THROWS_WITH(
      run([](auto, auto const&, auto) {}),
      "expar: prepare: the quotas leave out 5 of the 5 routes of rank 0 for expert 0");
  CHECK_THROWS_WITH(
      run([](auto, auto const&, auto out) { out.row(0)[0] = 6; }),
      "expar: prepare: the quotas give 6 routes of rank 0 to copy 0 of expert 0; there "
      "are 5 left");
  CHECK_THROWS_WITH(run([](auto, auto const&, auto out) { out.row(0)[0] = -1; }),
                    "expar: prepare: the quotas give -1 routes of rank 0 to copy 0 of expert 0; "
                    "there are 5 left");
}
