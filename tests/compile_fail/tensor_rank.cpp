// error: this argument must be a tensor of the rank that the operation states
// SPDX-License-Identifier: Apache-2.0
#include <vector>

#include <expar/plan/plan.hpp>

int main() {
  std::vector<std::int32_t> ids{0, 1, 2, 0};
#ifdef EXPAR_MISTAKE
  auto const& matrix = ids;  // rank 1, where [tokens, top_k] is wanted
#else
  auto const matrix = expar::make_view(ids.data(), 2, 2);
#endif
  return static_cast<int>(expar::make_plan(expar::host_context{}, matrix, 3).dropped());
}
