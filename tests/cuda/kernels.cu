// SPDX-License-Identifier: Apache-2.0
// The kernels whose registers and memory accesses registers.txt records: a line for each, in the
// form for the widest accesses. Compiled to device code alone, never run.
#include <expar/gpu/permute/decode.cuh>
#include <expar/gpu/permute/encode.cuh>

namespace {

using namespace expar::gpu::detail;
using expar::bfloat16;

using bytes = tensor_rows<unsigned char>;
using rows = tensor_rows<bfloat16>;
using read_rows = tensor_rows<bfloat16 const>;
using weights = matrix_weights<float>;

template <auto... Kernels>
void record() {
  void const* const kernels[] = {reinterpret_cast<void const*>(Kernels)...};
  static_cast<void>(kernels);
}

}  // namespace

void recorded_kernels();
void recorded_kernels() {
  record<place_routes<false>, place_routes<true>,               // plan, ragged and capacity
         scatter_rows<unsigned char, 16, unit_weights, bytes>,  // encode
         scatter_rows<bfloat16, 8, weights, rows>,              // encode with weights
         gather_rows<bfloat16, bfloat16, 8, 8, true, weights, read_rows>,       // decode, k = 8
         dot_rows<bfloat16, float, 8, 8, true, true, weights, read_rows, rows>  // decode_backward
         >();
}
