// error: expar: windows need a communicator with windows (tier 3); messages need none
// SPDX-License-Identifier: Apache-2.0
#include <expar/comm/self.hpp>
#include <expar/expert_parallel.hpp>

int main() {
  expar::self_communicator comm;
#ifdef EXPAR_MISTAKE
  expar::windows x(comm);
#else
  expar::messages x(comm);
#endif
  expar::expert_parallel moe(x, {2, 1, 4});
  return moe.shape().experts == 2 ? 0 : 1;
}
