// error: this argument must be a tensor of the rank that the operation states
// SPDX-License-Identifier: Apache-2.0
#include <expar/plan/plan.hpp>

struct matrix {
  std::int32_t* entries;
  int rows;
};

#ifndef EXPAR_MISTAKE
template <>
struct expar::tensor_traits<matrix> {
  static auto view(auto& m) { return expar::make_view(m.entries, m.rows, 2); }
};
#endif

int main() {
  std::int32_t entries[] = {0, 1, 2, 0};
  matrix const ids{entries, 2};
  return static_cast<int>(expar::make_plan(expar::host_context{}, ids, 3).dropped());
}
