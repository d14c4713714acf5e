// SPDX-License-Identifier: Apache-2.0
// Where there is no device this says so, and is content that it was built.
#include <cstdio>

#include <expar/gpu/plan/plan.cuh>

int main() {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || devices == 0) {
    std::printf("no device\n");
    return 0;
  }
  std::int32_t const ids[] = {0, 2, 2, 1};  // two tokens, two choices
  std::int32_t* on_device = nullptr;
  cudaStream_t stream = nullptr;
  bool ok = cudaStreamCreate(&stream) == cudaSuccess &&
            cudaMalloc(&on_device, sizeof ids) == cudaSuccess &&
            cudaMemcpy(on_device, ids, sizeof ids, cudaMemcpyHostToDevice) == cudaSuccess;
  if (ok) {
    expar::gpu::context const ctx(stream);
    auto const plan = expar::gpu::make_plan(ctx, expar::make_view(on_device, 2, 2), 3);
    auto const sums = expar::gpu::read_sync(ctx, plan);
    ok = sums.counts == std::vector<expar::index_t>{1, 1, 2};
    std::printf("%s\n", ok ? "planned on the device" : "a wrong plan");
  }
  cudaFree(on_device);
  cudaStreamDestroy(stream);
  return ok ? 0 : 1;
}
