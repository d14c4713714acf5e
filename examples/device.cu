// SPDX-License-Identifier: Apache-2.0
// One layer on a device: three launches from logits to rows and back, and nothing waits.
#include <thrust/device_vector.h>
#include <thrust/host_vector.h>

#include <cstdio>

#include <expar/gpu/permute/decode.cuh>
#include <expar/gpu/permute/encode.cuh>
#include <expar/gpu/router/gate_plan.cuh>
#include <expar/router/models.hpp>

namespace {

constexpr int tokens = 32, experts = 16, top_k = 4, hidden = 64;

/// Device memory with two extents.
template <class T>
struct device_matrix {
  int rows, columns;
  thrust::device_vector<T> values =
      thrust::device_vector<T>(static_cast<std::size_t>(rows) * static_cast<std::size_t>(columns));
};

/// Stands for your GEMMs: expert e multiplies its rows by e + 1.
__global__ void run_experts(expar::gpu::plan_view plan, expar::tensor_view<float, 2> rows) {
  int const e = static_cast<int>(blockIdx.x);
  for (expar::index_t row = plan.offsets[e]; row < plan.offsets[e + 1]; ++row)
    rows(row, threadIdx.x) *= static_cast<float>(e + 1);
}

}  // namespace

//! [device]
template <class T>
struct expar::tensor_traits<device_matrix<T>> {
  static constexpr expar::memory_space space = expar::memory_space::device;
  static auto view(auto& m) {
    return expar::make_view(thrust::raw_pointer_cast(m.values.data()), m.rows, m.columns);
  }
};

struct device_routes {
  device_matrix<std::int32_t> ids{tokens, top_k};
  device_matrix<float> weights{tokens, top_k};
};

void layer(cudaStream_t stream, device_matrix<float> const& x, device_matrix<float> const& logits,
           device_matrix<float> const& bias, device_routes& routes, device_matrix<float>& out) {
  expar::gpu::context const ctx(stream);  // your stream; memory from the device's pool, or yours
  auto const router = expar::models::deepseek_v3({experts, top_k, 4, 2, 2.5});
  expar::gpu::route_plan plan(ctx);  // keep it from step to step, and it allocates no more

  auto const expert_bias = expar::make_view(thrust::raw_pointer_cast(bias.values.data()), experts);
  expar::gpu::gate_plan(ctx, router, logits, expert_bias, expar::ragged{8}, routes, plan);
  device_matrix<float> rows{static_cast<int>(plan.max_rows()), hidden};
  expar::gpu::encode(ctx, plan, x, rows);
  run_experts<<<experts, hidden, 0, stream>>>(
      plan.view(), expar::tensor_traits<device_matrix<float>>::view(rows));
  expar::gpu::decode(ctx, plan, rows, routes.weights, out);
  cudaStreamSynchronize(stream);  // rows live until here
}
//! [device]

int main() {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::printf("there is no device\n");
    return 77;
  }
  cudaStream_t stream = nullptr;
  cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  device_matrix<float> x{tokens, hidden}, logits{tokens, experts}, bias{1, experts},
      out{tokens, hidden};
  thrust::host_vector<float> values(tokens * experts);
  for (int i = 0; i < tokens * experts; ++i) values[i] = static_cast<float>(i * 37 % 101) / 50 - 1;
  logits.values = values;
  thrust::fill(x.values.begin(), x.values.end(), 1.f);
  device_routes routes;
  cudaDeviceSynchronize();
  layer(stream, x, logits, bias, routes, out);

  // Every token is a row of ones: out is the weighted sum of the numbers of its experts.
  thrust::host_vector<std::int32_t> const ids = routes.ids.values;
  thrust::host_vector<float> const weights = routes.weights.values, result = out.values;
  for (int t = 0; t < tokens; ++t) {
    float sum = 0;
    for (int j = 0; j < top_k; ++j)
      sum += weights[t * top_k + j] * static_cast<float>(ids[t * top_k + j] + 1);
    if (result[t * hidden + 5] < sum - 1e-4f || result[t * hidden + 5] > sum + 1e-4f) return 1;
  }
  std::printf("token 0: experts %d, %d, %d and %d make %.4f\n", ids[0], ids[1], ids[2], ids[3],
              static_cast<double>(result[0]));
  cudaStreamDestroy(stream);
}
