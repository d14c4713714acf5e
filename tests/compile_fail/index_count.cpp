// error: expar: give one index per dimension
// SPDX-License-Identifier: Apache-2.0
#include <expar/tensor.hpp>

int main() {
  int values[] = {1, 2, 3, 4};
  auto const matrix = expar::make_view(values, 2, 2);
#ifdef EXPAR_MISTAKE
  return matrix(1);
#else
  return matrix(1, 0);
#endif
}
