// error: expar: a ragged layout needs a communicator with all_to_all_v
// SPDX-License-Identifier: Apache-2.0
#include <cstring>

#include <expar/expert_parallel.hpp>

// One rank with collectives of fixed size alone.
struct fixed_size_communicator {
  int rank() const noexcept { return 0; }
  int size() const noexcept { return 1; }
  void all_to_all(expar::host_context const&, void const* in, void* out, std::size_t n) const {
    std::memcpy(out, in, n);
  }
  void all_gather(expar::host_context const&, void const* in, void* out, std::size_t n) const {
    std::memcpy(out, in, n);
  }
  void barrier(expar::host_context const&) const {}
};

int main() {
  fixed_size_communicator comm;
#ifdef EXPAR_MISTAKE
  expar::expert_parallel moe(comm, {4, 2, 8}, expar::ragged{});
#else
  expar::expert_parallel moe(comm, {4, 2, 8}, expar::fixed_capacity{});
#endif
  return moe.placement().first(0);
}
