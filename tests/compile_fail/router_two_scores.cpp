// error: expar: a router has one score, and at most one key and one selection
// SPDX-License-Identifier: Apache-2.0
#include <expar/router/router.hpp>

int main() {
#ifdef EXPAR_MISTAKE
  expar::router const r({4, 2}, expar::softmax_score{}, expar::sigmoid_score{});
#else
  expar::router const r({4, 2}, expar::softmax_score{}, expar::score_key{});
#endif
  return r.top_k - 2;
}
