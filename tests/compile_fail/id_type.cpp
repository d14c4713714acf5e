// error: expar: expert ids are of a signed integer type
// SPDX-License-Identifier: Apache-2.0
#include <expar/plan/plan.hpp>

int main() {
#ifdef EXPAR_MISTAKE
  unsigned ids[] = {0, 1, 2, 0};
#else
  std::int64_t ids[] = {0, 1, 2, 0};
#endif
  auto const plan = expar::make_plan(expar::host_context{}, expar::make_view(ids, 2, 2), 3);
  return static_cast<int>(plan.dropped());
}
