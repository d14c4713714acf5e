// error: expar: with weights at decode, combine_backward gives d_weights as well
// SPDX-License-Identifier: Apache-2.0
#include <expar/comm/self.hpp>
#include <expar/expert_parallel.hpp>

int main() {
  expar::self_communicator comm;
  expar::host_context const ctx;
  expar::expert_batch<float> batch;
  float rows[4] = {}, weights[1] = {};
  auto const v = expar::make_view(rows, 1, 4), w = expar::make_view(weights, 1, 1);
  expar::expert_parallel moe(comm, {2, 1, 4});
#ifdef EXPAR_MISTAKE
  moe.combine_backward(ctx, batch, v);
#else
  moe.combine_backward(ctx, batch, v, v, v, w);
#endif
}
