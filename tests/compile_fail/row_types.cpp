// error: expar: token rows and expert rows must have the same element type here
// SPDX-License-Identifier: Apache-2.0
#include <expar/permute/encode.hpp>

int main() {
  std::int32_t ids[] = {0, 1};
  float tokens[] = {1, 2, 3, 4};
#ifdef EXPAR_MISTAKE
  double rows[4];
#else
  float rows[4];
#endif
  expar::host_context const ctx;
  auto const plan = expar::make_plan(ctx, expar::make_view(ids, 2, 1), 2);
  expar::encode(ctx, plan, expar::make_view(tokens, 2, 2), expar::make_view(rows, 2, 2));
}
