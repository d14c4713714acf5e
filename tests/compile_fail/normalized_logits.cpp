// error: expar: logits can be negative; a score that is normalized is at least 0
// SPDX-License-Identifier: Apache-2.0
#include <expar/router/normalized_score.hpp>

int main() {
#ifdef EXPAR_MISTAKE
  expar::normalized_score const score{expar::logit_score{}, 0};
#else
  expar::normalized_score const score{expar::relu_score{}, 0};
#endif
  float const z[] = {1, 2};
  float q[2];
  score(z, q, 2);
}
