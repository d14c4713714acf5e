// SPDX-License-Identifier: Apache-2.0
#include <expar/exchange/counts.hpp>

#include <vector>

#include <expar/comm/thread.hpp>

#include "../support/catch.hpp"

TEST_CASE("every rank learns what comes from every rank, and the maxima of the group") {
  constexpr int ranks = 3, experts = 7;
  auto const count = [](int rank, int e) { return expar::index_t{rank * 100 + e}; };
  std::vector<std::string> wrong(ranks);
  expar::run_ranks(ranks, [&](expar::thread_communicator& comm) {
    expar::host_context const ctx;
    expar::detail::arrivals map(std::pmr::get_default_resource());
    expar::block_placement const place{experts, ranks};
    map.begin(place, comm.rank());
    std::vector<expar::index_t> counts;
    for (int e = 0; e < experts; ++e) counts.push_back(count(comm.rank(), e));
    expar::detail::count_exchange exchange(std::pmr::get_default_resource());
    expar::detail::fixed_counts table(std::pmr::get_default_resource());
    exchange.reserve(place);
    auto const most = exchange.run(ctx, comm, table, map, counts, 10 - comm.rank(), {4, 4});
    auto& mine = wrong[static_cast<std::size_t>(comm.rank())];
    if (most.tokens != 10 || most.largest_count != 206) mine = "maxima";
    for (int s = 0; s < ranks; ++s)
      for (int l = 0; l < map.locals(); ++l)
        if (map.arrived[s * map.locals() + l] != count(s, map.place.first(comm.rank()) + l))
          mine = "counts";
  });
  REQUIRE(wrong == std::vector<std::string>(ranks));
}
