// error: expar: this tensor is of an element type, a rounded number
// SPDX-License-Identifier: Apache-2.0
#include <expar/plan/renormalize_kept.hpp>

#ifdef EXPAR_MISTAKE
using weight = int;
#else
using weight = expar::half;
#endif

int main() {
  std::int32_t ids[2] = {};
  weight w[2] = {};
  auto const v = expar::make_view(w, 1, 2);
  expar::renormalize_kept(expar::host_context{}, expar::make_view(ids, 1, 2), v,
                          expar::renormalize{}, v);
}
