// error: expar: weights at encode scale rows, whose element type must be one that can be scaled
// SPDX-License-Identifier: Apache-2.0
#include <expar/comm/self.hpp>
#include <expar/expert_parallel.hpp>

#ifdef EXPAR_MISTAKE
using site = expar::weights_at_encode;
#else
using site = expar::weights_per_row;
#endif

int main() {
  expar::self_communicator comm;
  expar::expert_batch<std::byte, float, float> batch;
  std::byte bytes[4] = {};
  expar::expert_parallel moe(comm, {2, 1, 4}, expar::ragged{}, site{});
  moe.dispatch(expar::host_context{}, expar::make_view(bytes, 1, 4), batch);
}
