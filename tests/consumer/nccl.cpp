// SPDX-License-Identifier: Apache-2.0
#include <expar/comm/nccl.hpp>

// Compiled and linked, not run: it needs a device.
static_assert(expar::variable_communicator<expar::nccl_communicator, expar::gpu::context>);

int main() {
  int version = 0;
  return ncclGetVersion(&version) == ncclSuccess && version > 0 ? 0 : 1;
}
