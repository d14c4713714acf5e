// SPDX-License-Identifier: Apache-2.0
#include <expar/exchange/collectives.hpp>

#include <vector>

#include <expar/comm/thread.hpp>

#include "../support/catch.hpp"

namespace {

struct bare {
  expar::thread_communicator& comm;
  int rank() const noexcept { return comm.rank(); }
  int size() const noexcept { return comm.size(); }
  void all_to_all_v(expar::host_context const& on, void const* in, expar::byte_counts counts,
                    expar::byte_counts from, void* out, expar::byte_counts out_counts,
                    expar::byte_counts to) const {
    comm.all_to_all_v(on, in, counts, from, out, out_counts, to);
  }
};

template <class Comm>
bool collectives_hold(Comm& comm) {
  expar::host_context const ctx;
  auto const n = static_cast<std::size_t>(comm.size());
  std::vector<int> in(2 * n), out(2 * n), gathered(2 * n);
  for (std::size_t i = 0; i < in.size(); ++i) in[i] = comm.rank() * 1000 + static_cast<int>(i);
  expar::all_to_all(ctx, comm, in.data(), out.data(), 2 * sizeof(int));
  expar::all_gather(ctx, comm, in.data(), gathered.data(), 2 * sizeof(int));
  bool good = true;
  for (int s = 0; s < comm.size(); ++s)
    for (int i = 0; i < 2; ++i) {
      auto const at = static_cast<std::size_t>(2 * s + i);
      good = good && out[at] == s * 1000 + 2 * comm.rank() + i && gathered[at] == s * 1000 + i;
    }
  return good;
}

}  // namespace

TEST_CASE("fixed collectives work natively, and on all_to_all_v alone") {
  for (int ranks : {1, 2, 5}) {
    std::vector<int> good(static_cast<std::size_t>(ranks));
    expar::run_ranks(ranks, [&](expar::thread_communicator& comm) {
      bare b{comm};
      good[static_cast<std::size_t>(comm.rank())] = collectives_hold(comm) && collectives_hold(b);
    });
    REQUIRE(good == std::vector<int>(static_cast<std::size_t>(ranks), 1));
  }
}
