// error: expar: an at::Tensor does not say by its type what its elements are
// SPDX-License-Identifier: Apache-2.0
#include <expar/interop/torch.hpp>
#include <expar/plan/plan.hpp>

int main() {
  at::Tensor ids;
#ifdef EXPAR_MISTAKE
  auto const& typed = ids;
#else
  auto const typed = expar::torch::view<long const, 2>(ids);
#endif
  return static_cast<int>(expar::make_plan(expar::host_context{}, typed, 3).dropped());
}
