// error: expar: this argument is written, so its elements cannot be const
// SPDX-License-Identifier: Apache-2.0
#include <expar/permute/encode.hpp>

int main() {
  std::int32_t ids[] = {0, 1};
  float tokens[] = {1, 2, 3, 4}, rows[4];
  expar::host_context const ctx;
  auto const plan = expar::make_plan(ctx, expar::make_view(ids, 2, 1), 2);
#ifdef EXPAR_MISTAKE
  float const* out = rows;
#else
  float* out = rows;
#endif
  expar::encode(ctx, plan, expar::make_view(tokens, 2, 2), expar::make_view(out, 2, 2));
}
