// error: expar: this matrix of Eigen lies in memory column by column
// SPDX-License-Identifier: Apache-2.0
#include <expar/interop/eigen.hpp>
#include <expar/plan/plan.hpp>

int main() {
#ifdef EXPAR_MISTAKE
  constexpr int order = Eigen::ColMajor;
#else
  constexpr int order = Eigen::RowMajor;
#endif
  Eigen::Matrix<int, Eigen::Dynamic, Eigen::Dynamic, order> ids(2, 2);
  ids << 0, 1, 2, 0;
  return static_cast<int>(expar::make_plan(expar::host_context{}, ids, 3).dropped());
}
