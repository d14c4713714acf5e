// SPDX-License-Identifier: Apache-2.0
#include <expar/exchange/agreement.hpp>

#include <vector>

#include <expar/comm/thread.hpp>

#include "../support/catch.hpp"

namespace {

template <class F>
std::vector<std::string> what_ranks_throw(int ranks, F f) {
  std::vector<std::string> said(static_cast<std::size_t>(ranks));
  expar::run_ranks(ranks, [&](expar::thread_communicator& comm) {
    said[static_cast<std::size_t>(comm.rank())] = expar::detail::failure_of([&] { f(comm); });
  });
  return said;
}

}  // namespace

TEST_CASE("the lowest rank that failed speaks for all") {
  expar::host_context const ctx;
  auto const said = what_ranks_throw(4, [&](expar::thread_communicator& comm) {
    std::string const mine = comm.rank() == 0   ? ""
                             : comm.rank() == 2 ? "second"
                                                : "first " + std::string(500, 'x');
    expar::detail::throw_failure(ctx, comm, mine);
  });
  for (auto const& s : said) CHECK(s == "first " + std::string(249, 'x') + " (rank 1)");
}

TEST_CASE("values that differ are named with both values") {
  expar::host_context const ctx;
  auto const said = what_ranks_throw(3, [&](expar::thread_communicator& comm) {
    expar::detail::expects_agreement(ctx, comm, "op",
                                     {{"same", 7}, {"odd", comm.rank() == 1 ? 0.25 : 1048577}});
  });
  for (auto const& s : said)
    CHECK(s ==
          "expar: op: odd is 1048577 on rank 0 but 0.25 on rank 1; all ranks must pass the same");
  CHECK(what_ranks_throw(3, [&](auto& comm) {
          expar::detail::expects_agreement(ctx, comm, "op", {{"same", 7}});
        }) == std::vector<std::string>(3));
}
