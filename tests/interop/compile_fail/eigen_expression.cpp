// error: expar: an expression of Eigen is no tensor before it is computed
// SPDX-License-Identifier: Apache-2.0
#include <expar/interop/eigen.hpp>
#include <expar/plan/plan.hpp>

int main() {
  Eigen::Matrix<int, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor> ids(2, 2);
  ids << 0, 1, 2, 0;
#ifdef EXPAR_MISTAKE
  auto const chosen = ids + ids;
#else
  auto const chosen = (ids + ids).eval();
#endif
  return static_cast<int>(expar::make_plan(expar::host_context{}, chosen, 5).dropped());
}
