// error: expar: the mask of valid tokens holds bool or std::uint8_t
// SPDX-License-Identifier: Apache-2.0
#include <expar/plan/reroute.hpp>

#ifdef EXPAR_MISTAKE
using mark = float;
#else
using mark = bool;
#endif

int main() {
  std::int32_t ids[2] = {};
  mark valid[1] = {};
  auto const v = expar::make_view(ids, 1, 2);
  expar::only const some(expar::make_view(valid, 1), v);
  return static_cast<int>(expar::take_first_free(expar::host_context{}, some, 1, 1, v));
}
