// SPDX-License-Identifier: Apache-2.0
// The kernels whose registers and memory accesses registers.txt records: a line for each, in the
// form for the widest accesses. Compiled to device code alone, never run.
#include <expar/gpu/permute/decode.cuh>
#include <expar/gpu/permute/encode.cuh>
#include <expar/gpu/permute/quantize.cuh>
#include <expar/gpu/router/gate_plan.cuh>
#include <expar/router/models.hpp>

namespace {

using namespace expar::gpu::detail;
using expar::bfloat16, expar::float8_e4m3;

using bytes = tensor_rows<unsigned char>;
using rows = tensor_rows<bfloat16>;
using read_rows = tensor_rows<bfloat16 const>;
using weights = matrix_weights<float>;

using deepseek = decltype(expar::models::deepseek_v3());
using kimi = decltype(expar::models::kimi_k2());
using mixtral = decltype(expar::models::mixtral({8, 2}));
using tutel = decltype(expar::models::tutel({8, 2}));
using lanes = lane_layout<8, 32>;  // up to 256 experts

template <auto... Kernels>
void record() {
  void const* const kernels[] = {reinterpret_cast<void const*>(Kernels)...};
  static_cast<void>(kernels);
}

}  // namespace

void recorded_kernels();
void recorded_kernels() {
  record<place_routes<false>, place_routes<true>,              // plan, ragged and capacity
         gate_by_lanes<lanes, deepseek, float, float, float>,  // gate_plan, E = 256, k = 8
         gate_by_lanes<lanes, kimi, float, float, float>,
         gate_by_lanes<lanes, mixtral, float, float, float>,
         gate_by_lanes<lanes, tutel, float, float, float>,
         scatter_rows<unsigned char, 16, unit_weights, bytes, carry_nothing>,  // encode
         scatter_rows<bfloat16, 8, weights, rows, carry_nothing>,              // with weights
         scatter_quantized<bfloat16, 8, tensor_rows<float8_e4m3>, tensor_rows<float>>,
         gather_rows<bfloat16, bfloat16, 8, 8, true, weights, read_rows,
                     from_nothing>,                                             // decode, k = 8
         dot_rows<bfloat16, float, 8, 8, true, true, weights, read_rows, rows>  // decode_backward
         >();
}
