// SPDX-License-Identifier: Apache-2.0
#pragma once

#if !__has_include(<cuda_runtime_api.h>)
#error "expar/gpu needs the CUDA Toolkit: compile with nvcc, or put its include folder on the path"
#endif
#include <cuda_runtime_api.h>

#include <expar/error.hpp>

namespace expar::inline v0 {

/// A call of the CUDA runtime that failed: its code, the call, and the operation that made it.
class cuda_error : public error {
 public:
  cuda_error(cudaError_t code, char const* call, char const* place)
      : error(detail::sentence{"expar: ", place, ": ", call, " gave CUDA error ",
                               static_cast<int>(code), " (", cudaGetErrorName(code), ": ",
                               cudaGetErrorString(code), ")"}),
        code_(code),
        call_(call),
        place_(place) {}

  cudaError_t code() const noexcept { return code_; }
  char const* call() const noexcept { return call_; }
  char const* place() const noexcept { return place_; }

 private:
  cudaError_t code_;
  char const* call_;  // both are literals
  char const* place_;
};

namespace gpu::detail {

/// Throws unless `code` is success, and takes the error back from the runtime, which would report
/// it once more otherwise.
inline void check(cudaError_t code, char const* call, char const* place) {
  if (code == cudaSuccess) [[likely]]
    return;
  static_cast<void>(cudaGetLastError());
  throw cuda_error(code, call, place);
}

}  // namespace gpu::detail
}  // namespace expar::inline v0
