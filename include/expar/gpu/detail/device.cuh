// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <new>

#include <expar/gpu/error.cuh>

namespace expar::inline v0::gpu::detail {

inline int current_device(char const* place) {
  int device = 0;
  check(cudaGetDevice(&device), "cudaGetDevice", place);
  return device;
}

/// Makes a device the current one while it lives, and the one before current again. Where it is
/// current already, that costs one cudaGetDevice.
class device_guard {
 public:
  device_guard(int device, char const* place) : device_guard(device, std::nothrow) {
    check(code_, "cudaSetDevice", place);
  }
  /// For what frees: leaves the device as it is where the runtime no longer answers.
  device_guard(int device, std::nothrow_t) noexcept : code_(cudaGetDevice(&before_)) {
    if (code_ != cudaSuccess || before_ == device) return;
    code_ = cudaSetDevice(device);
    changed_ = code_ == cudaSuccess;
  }
  device_guard(device_guard const&) = delete;
  ~device_guard() {
    if (changed_) static_cast<void>(cudaSetDevice(before_));
  }

 private:
  int before_ = 0;
  cudaError_t code_;
  bool changed_ = false;
};

}  // namespace expar::inline v0::gpu::detail
