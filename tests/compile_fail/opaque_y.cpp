// error: expar: combine sums y, whose element type must be one that can be summed
// SPDX-License-Identifier: Apache-2.0
#include <expar/comm/self.hpp>
#include <expar/expert_parallel.hpp>

#ifdef EXPAR_MISTAKE
using made = std::byte;
#else
using made = float;
#endif

int main() {
  expar::self_communicator comm;
  expar::expert_batch<std::byte, float, made> batch;
  float out[4] = {};
  expar::expert_parallel moe(comm, {2, 1, 4});
  moe.combine(expar::host_context{}, batch, expar::make_view(out, 1, 4));
}
