// error: expar: the policies of a router stand in the order in which they run: transforms, score, key, limits, selection, weights
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
