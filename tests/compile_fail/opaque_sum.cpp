// error: expar: dispatch_backward sums rows, whose element type must be one that can be summed
// SPDX-License-Identifier: Apache-2.0
#include <expar/comm/self.hpp>
#include <expar/expert_parallel.hpp>

int main() {
  expar::self_communicator comm;
  expar::host_context const ctx;
  expar::expert_batch<std::byte, float, float> batch;
  std::byte bytes[4] = {};
  float out[4] = {};
  auto const rows = expar::make_view(bytes, 1, 4);
  expar::expert_parallel moe(comm, {2, 1, 4});
#ifdef EXPAR_MISTAKE
  moe.dispatch_backward(ctx, batch, rows);
#else
  moe.dispatch(ctx, rows, batch);
#endif
  moe.combine(ctx, batch, expar::make_view(out, 1, 4));
}
