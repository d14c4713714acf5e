// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

#include <expar/comm/thread.hpp>

namespace expar_test {

/// Tier 2 that counts what passes, and checks sizes or not.
template <bool Checks>
struct counting {
  static constexpr expar::communicator_traits traits{.checks_sizes = Checks};
  expar::thread_communicator& to;
  int calls = 0;
  std::vector<expar::index_t> sent =
      std::vector<expar::index_t>(static_cast<std::size_t>(to.size()));

  int rank() const noexcept { return to.rank(); }
  int size() const noexcept { return to.size(); }
  void all_to_all_v(expar::host_context const& on, void const* in, expar::byte_counts counts,
                    expar::byte_counts from, void* out, expar::byte_counts out_counts,
                    expar::byte_counts at) {
    ++calls;
    for (std::size_t p = 0; p < counts.size(); ++p)
      sent[p] += static_cast<expar::index_t>(counts[p]);
    to.all_to_all_v(on, in, counts, from, out, out_counts, at);
  }

  void restart() {
    calls = 0;
    std::fill(sent.begin(), sent.end(), 0);
  }
  expar::index_t sent_to_self() const { return sent[static_cast<std::size_t>(rank())]; }
  expar::index_t sent_to_others() const {
    expar::index_t all = -sent_to_self();
    for (auto const n : sent) all += n;
    return all;
  }
};

}  // namespace expar_test
