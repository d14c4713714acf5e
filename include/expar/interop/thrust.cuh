// SPDX-License-Identifier: Apache-2.0
#pragma once

#if !__has_include(<thrust/device_vector.h>)
#error "expar/interop/thrust.cuh needs Thrust, which comes with the CUDA Toolkit"
#endif
#include <thrust/device_vector.h>
#include <thrust/system/cuda/execution_policy.h>

#include <concepts>

#include <expar/gpu/context.cuh>
#include <expar/tensor.hpp>

namespace expar::inline v0 {

/// A thrust::device_vector is a tensor of rank 1 in device memory. For rows, make a view of its
/// pointer: make_view(thrust::raw_pointer_cast(v.data()), rows, columns).
template <class T, class Allocator>
struct tensor_traits<thrust::device_vector<T, Allocator>> {
  static constexpr memory_space space = memory_space::device;
  static auto view(auto& v) {
    return make_view(thrust::raw_pointer_cast(v.data()), static_cast<index_t>(v.size()));
  }
};

namespace gpu {

/// An execution policy that names a stream is one: context(thrust::cuda::par.on(stream)), as is
/// par_nosync and what has an allocator. thrust::cuda::par alone is not, since it names none.
template <class Policy>
requires std::derived_from<Policy, thrust::cuda_cub::execution_policy<Policy>> &&
    requires(Policy const& policy) {
  { get_stream(policy) } -> std::same_as<cudaStream_t>;
}
struct stream_traits<Policy> {
  static cudaStream_t stream(Policy const& policy) { return get_stream(policy); }
};

}  // namespace gpu
}  // namespace expar::inline v0
