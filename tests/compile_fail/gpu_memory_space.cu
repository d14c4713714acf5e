// error: expar: this tensor lives in another memory space than the one that the context works in
// SPDX-License-Identifier: Apache-2.0
#include <expar/gpu/permute/encode.cuh>

struct matrix {
  float* entries;
  int rows, columns;
};

template <>
struct expar::tensor_traits<matrix> {
#ifndef EXPAR_MISTAKE  // a trait that is silent means host memory
  static constexpr expar::memory_space space = expar::memory_space::device;
#endif
  static auto view(auto& m) {
    return expar::make_view(m.entries, m.rows, m.columns);
  }
};

void run(expar::gpu::context const& ctx, expar::gpu::route_plan const& plan, matrix const& tokens,
         matrix& rows) {
  expar::gpu::encode(ctx, plan, tokens, rows);
}
