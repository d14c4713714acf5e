// error: expar: a bias that is moved is float or double; in fewer bits, small steps would be lost
// SPDX-License-Identifier: Apache-2.0
#include <expar/router/state/bias_update.hpp>

int main() {
  std::int32_t counts[] = {3, 1};
#ifdef EXPAR_MISTAKE
  expar::bfloat16 bias[2]{};
#else
  float bias[2]{};
#endif
  expar::host_context const ctx;
  expar::update_bias(ctx, expar::make_view(counts, 2), {}, expar::make_view(bias, 2));
}
