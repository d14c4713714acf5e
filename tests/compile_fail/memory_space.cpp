// error: expar: this tensor lives in another memory space than the one that the context works in
// SPDX-License-Identifier: Apache-2.0
#include <expar/plan/plan.hpp>

struct device_matrix {
  std::int32_t* entries;
  int rows;
};

template <>
struct expar::tensor_traits<device_matrix> {
#ifdef EXPAR_MISTAKE
  static constexpr expar::memory_space space = expar::memory_space::device;
#else
  static constexpr expar::memory_space space = expar::memory_space::any;  // mapped for both
#endif
  static auto view(auto& m) {
    return expar::make_view(m.entries, m.rows, 2);
  }
};

int main() {
  std::int32_t entries[] = {0, 1, 2, 0};
  device_matrix const ids{entries, 2};
  return static_cast<int>(expar::make_plan(expar::host_context{}, ids, 3).dropped());
}
