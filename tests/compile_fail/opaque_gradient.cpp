// error: expar: combine_backward scales rows of y, whose element type must be one that is scaled
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
  made d_out[4] = {};
  float d_weights[1] = {};
  expar::expert_parallel moe(comm, {2, 1, 4});
  moe.combine_backward(expar::host_context{}, batch, expar::make_view(d_out, 1, 4),
                       expar::make_view(d_weights, 1, 1));
}
