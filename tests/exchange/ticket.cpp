// SPDX-License-Identifier: Apache-2.0
#include <expar/exchange/ticket.hpp>

#include <vector>

#include <expar/comm/self.hpp>
#include <expar/comm/thread_ticket.hpp>

#include "../support/thread_ranks.hpp"

namespace {

struct ticket {
  void wait() {}
};
template <class Ticket>
struct with_tickets : expar::self_communicator {
  Ticket start_all_to_all_v(expar::host_context const&, void const*, expar::byte_counts,
                            expar::byte_counts, void*, expar::byte_counts, expar::byte_counts) {
    return {};
  }
};

template <class Comm>
bool ticket_holds(Comm& comm) {
  auto const n = static_cast<std::size_t>(comm.size());
  std::vector<std::size_t> const bytes(n, sizeof(int));
  std::vector<std::size_t> places;
  for (std::size_t p = 0; p < n; ++p) places.push_back(p * sizeof(int));
  std::vector<int> const in(n, comm.rank());
  std::vector<int> out(n, -1);
  auto ticket = expar::start_all_to_all_v(expar::host_context{}, comm, in.data(), bytes, places,
                                          out.data(), bytes, places);
  ticket.wait();
  for (std::size_t p = 0; p < n; ++p)
    if (out[p] != static_cast<int>(p)) return false;
  return true;
}

}  // namespace

TEST_CASE("starting_communicator: who brings tickets") {
  STATIC_REQUIRE(expar::starting_communicator<with_tickets<ticket>>);
  STATIC_REQUIRE_FALSE(expar::starting_communicator<with_tickets<int>>);
  STATIC_REQUIRE_FALSE(expar::starting_communicator<expar::self_communicator>);
  STATIC_REQUIRE_FALSE(expar::starting_communicator<expar::thread_communicator>);
  STATIC_REQUIRE(expar::starting_communicator<expar::thread_ticket_communicator const>);
}

TEST_CASE("start_all_to_all_v: natively, and on a communicator without tickets") {
  for (int const ranks : {1, 3}) {
    std::vector<int> good(static_cast<std::size_t>(ranks));
    expar::run_ranks(ranks, [&](expar::thread_communicator& comm) {
      expar::thread_ticket_communicator with(comm);
      expar_test::bare_communicator without(comm);
      good[static_cast<std::size_t>(comm.rank())] = ticket_holds(with) && ticket_holds(without);
    });
    REQUIRE(good == std::vector<int>(static_cast<std::size_t>(ranks), 1));
  }
}
