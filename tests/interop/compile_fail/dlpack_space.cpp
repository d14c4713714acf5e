// error: expar: this tensor lives in another memory space than the one that the context works in
// SPDX-License-Identifier: Apache-2.0
#include <expar/interop/dlpack.hpp>
#include <expar/plan/plan.hpp>

int main() {
#ifdef EXPAR_MISTAKE
  constexpr auto space = expar::memory_space::device;
#else
  constexpr auto space = expar::memory_space::host;
#endif
  DLTensor ids{};
  expar::dlpack::view<std::int64_t const, 2, space> const typed(ids);
  return static_cast<int>(expar::make_plan(expar::host_context{}, typed, 3).dropped());
}
