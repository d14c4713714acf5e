// error: expar: the layout of expert_parallel is ragged, row_budget or fixed_capacity
// SPDX-License-Identifier: Apache-2.0
#include <expar/comm/self.hpp>
#include <expar/expert_parallel.hpp>

int main() {
  expar::self_communicator comm;
#ifdef EXPAR_MISTAKE
  int const layout = 8;
#else
  expar::row_budget const layout{.rows = 8};
#endif
  expar::expert_parallel moe(comm, {2, 1, 4}, layout);
  return moe.shape().experts == 2 ? 0 : 1;
}
