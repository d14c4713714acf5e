// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <chrono>
#include <string>
#include <thread>
#include <vector>

#include <expar/comm/thread.hpp>

#include "support/catch.hpp"
#include "support/engine_run.hpp"

namespace expar_test {

/// Runs f(comm) on every rank, collects what each returns, and gives the first that is not empty.
template <class F>
std::string on_ranks(int ranks, F f) {
  std::vector<std::string> said(static_cast<std::size_t>(ranks));
  expar::run_ranks(ranks, [&](expar::thread_communicator& comm) {
    said[static_cast<std::size_t>(comm.rank())] = f(comm);
  });
  for (auto const& s : said)
    if (!s.empty()) return s;
  return "";
}

/// Tier 2 and nothing else: what a caller has to bring.
class bare_communicator {
 public:
  explicit bare_communicator(expar::thread_communicator& comm) : comm_(comm) {}
  int rank() const noexcept { return comm_.rank(); }
  int size() const noexcept { return comm_.size(); }
  void all_to_all_v(expar::host_context const& on, void const* in, expar::byte_counts counts,
                    expar::byte_counts from, void* out, expar::byte_counts out_counts,
                    expar::byte_counts to) const {
    comm_.all_to_all_v(on, in, counts, from, out, out_counts, to);
  }

 private:
  expar::thread_communicator& comm_;
};

/// Draws problems for every number of ranks, and checks them on the transport that
/// with_transport(comm, f) gives to f. Every pair of placement, layout, site and ranks is among
/// them.
template <class Table, class WithTransport>
void check_drawn_problems(std::vector<int> const& ranks, std::vector<std::uint64_t> const& seeds,
                          WithTransport with_transport) {
  covered_pairs covered;
  for (int const r : ranks)
    for (auto const seed : seeds) {
      auto const all = draw_problems(r, seed);
      for (auto const& d : all) covered.count(d->what);
      INFO("seed " << seed);
      REQUIRE(on_ranks(r, [&](expar::thread_communicator& comm) {
                std::string wrong;
                with_transport(comm, [&](auto& transport) {
                  wrong = check_in_turn<Table>(transport, all, comm.rank(), [] {});
                });
                return wrong;
              }) == "");
    }
  REQUIRE(covered.missing(ranks) == std::vector<std::string>());
}

/// Several batches of each of the nine engines, alive at once.
template <class Table, class WithTransport>
void check_batches_alive(WithTransport with_transport) {
  for (std::uint64_t seed = 0; seed < 2 * layouts * sites; ++seed) {
    auto const group = draw_group(2 + static_cast<int>(seed % 2), seed);
    INFO("seed " << seed);
    REQUIRE(on_ranks(group[0]->made.ranks, [&](expar::thread_communicator& comm) {
              std::string wrong;
              with_transport(comm, [&](auto& transport) {
                wrong = check_alive<Table>(transport, group, comm.rank());
              });
              return wrong;
            }) == "");
  }
}

/// Exchanges back to back, with ranks that come late at random.
template <class Table, class WithTransport>
void check_late_ranks(WithTransport with_transport) {
  auto const all = draw_problems(4, 10);
  REQUIRE(on_ranks(4, [&](expar::thread_communicator& comm) {
            expar_test::random late(static_cast<std::uint64_t>(comm.rank()));
            std::string wrong;
            with_transport(comm, [&](auto& transport) {
              wrong = check_in_turn<Table>(transport, all, comm.rank(), [&] {
                if (late.chance(.2))
                  std::this_thread::sleep_for(std::chrono::microseconds(late.integer(0, 300)));
              });
            });
            return wrong;
          }) == "");
}

}  // namespace expar_test
