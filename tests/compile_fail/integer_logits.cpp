// error: expar: this tensor is of an element type, a rounded number
// SPDX-License-Identifier: Apache-2.0
#include <expar/router/models.hpp>
#include <expar/router/route.hpp>

#ifdef EXPAR_MISTAKE
using logit = int;
#else
using logit = float;
#endif

int main() {
  logit z[8] = {};
  expar::routes<float> routes(1, 2);
  expar::route(expar::host_context{}, expar::models::mixtral({8, 2}), expar::make_view(z, 1, 8),
               routes);
}
