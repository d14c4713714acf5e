// error: expar: a router is made of policies, which expar::router lists
// SPDX-License-Identifier: Apache-2.0
#include <expar/router/router.hpp>

struct half_weights {
  template <class A>
  void operator()(std::int32_t const*, A* w, int k) const {
    for (int j = 0; j < k; ++j) w[j] /= 2;
  }
#ifndef EXPAR_MISTAKE  // a weight policy has an adjoint
  template <class A>
  void vjp(std::int32_t const*, A const*, A const*, A* d, int k) const {
    for (int j = 0; j < k; ++j) d[j] /= 2;
  }
#endif
};

int main() {
  expar::router const r({4, 2}, expar::softmax_score{}, half_weights{});
  return r.top_k - 2;
}
