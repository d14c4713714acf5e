// error: expar: this argument must be a tensor of the rank that the operation states
// SPDX-License-Identifier: Apache-2.0
#include <expar/permute/encode.hpp>

int main() {
  expar::route_plan const plan;
  float x[2] = {}, rows[2] = {};
  auto const tokens = expar::make_view(x, 0, 2), out = expar::make_view(rows, 0, 2);
#ifdef EXPAR_MISTAKE
  bool valid[1] = {};
  expar::encode(expar::host_context{}, plan, expar::only(expar::make_view(valid, 1), tokens), out);
#else
  expar::encode(expar::host_context{}, plan, tokens, out);
#endif
}
