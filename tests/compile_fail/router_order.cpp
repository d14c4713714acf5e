// error: expar: policies stand in the order in which they run, as expar::router lists
// SPDX-License-Identifier: Apache-2.0
#include <expar/router/router.hpp>

int main() {
#ifdef EXPAR_MISTAKE
  expar::router const r({4, 2}, expar::renormalize{}, expar::softmax_score{});
#else
  expar::router const r({4, 2}, expar::softmax_score{}, expar::renormalize{});
#endif
  return r.top_k - 2;
}
