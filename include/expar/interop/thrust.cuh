// SPDX-License-Identifier: Apache-2.0
#pragma once

#if !__has_include(<thrust/device_vector.h>)
#error "expar/interop/thrust.cuh needs Thrust, which comes with the CUDA Toolkit"
#endif
#include <thrust/device_vector.h>

#include <expar/tensor.hpp>

namespace expar {
inline namespace v0 {

/// A thrust::device_vector is a tensor of rank 1 in device memory. For rows, make a view of its
/// pointer: make_view(thrust::raw_pointer_cast(v.data()), rows, columns).
template <class T, class Allocator>
struct tensor_traits<thrust::device_vector<T, Allocator>> {
  static constexpr memory_space space = memory_space::device;
  static auto view(auto& v) {
    return make_view(thrust::raw_pointer_cast(v.data()), static_cast<index_t>(v.size()));
  }
};

}  // namespace v0
}  // namespace expar
