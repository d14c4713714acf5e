// SPDX-License-Identifier: Apache-2.0
#include <expar/exchange/lane.hpp>

#include <vector>

#include <expar/comm/thread_ticket.hpp>

#include "../support/thread_ranks.hpp"

TEST_CASE("lane: chunks are ranges of slots, each slot in one, and differ by one slot at most") {
  using lane = expar::detail::lane<expar::thread_ticket_communicator>;
  for (int slots = 0; slots < 9; ++slots)
    for (int chunks = 1; chunks < 12; ++chunks) {
      int next = 0, least = slots, most = 0;
      for (int c = 0; c < chunks; ++c) {
        auto const [first, last] = lane::chunk_of(slots, c, chunks);
        REQUIRE(first == next);
        REQUIRE(last >= first);
        least = std::min(least, last - first), most = std::max(most, last - first);
        next = last;
      }
      REQUIRE(next == slots);
      REQUIRE(most - least <= 1);
    }
}
