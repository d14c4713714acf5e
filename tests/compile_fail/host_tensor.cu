// error: expar: this tensor lives in another memory space than the one that the context works in
// SPDX-License-Identifier: Apache-2.0
#include <expar/gpu/plan/plan.cuh>

struct matrix {
  std::int32_t* entries;
  int rows;
};

template <>
struct expar::tensor_traits<matrix> {
#ifndef EXPAR_MISTAKE  // a type that does not say where it lives lives on the host
  static constexpr expar::memory_space space = expar::memory_space::device;
#endif
  static auto view(auto& m) {
    return expar::make_view(m.entries, m.rows, 2);
  }
};

void plan_of(cudaStream_t stream, matrix const& ids);
void plan_of(cudaStream_t stream, matrix const& ids) {
  expar::gpu::context const ctx(stream);
  auto const plan = expar::gpu::make_plan(ctx, ids, 3);
  static_cast<void>(plan);
}
