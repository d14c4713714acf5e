// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <type_traits>

#include <expar/gpu/context.cuh>
#include <expar/gpu/detail/nvtx.cuh>

namespace expar::inline v0::gpu::detail {

/// Enqueues a kernel on the stream of the context, on its device; `place` is the operation that
/// errors and profilers name.
template <class... Parameters>
void launch(context const& ctx, char const* place, void (*kernel)(Parameters...), index_t blocks,
            int threads, std::size_t shared_bytes, std::type_identity_t<Parameters>... arguments) {
  if (blocks == 0) return;
  expar::detail::expects(blocks <= INT32_MAX, place, ": ", blocks, " blocks; a launch has at most ",
                         INT32_MAX);
  device_guard const here(ctx.device(), place);
  named_range const range(place);
  void* at[] = {const_cast<void*>(static_cast<void const*>(&arguments))...};
  check(cudaLaunchKernel(reinterpret_cast<void const*>(kernel), dim3(static_cast<unsigned>(blocks)),
                         dim3(static_cast<unsigned>(threads)), at, shared_bytes, ctx.stream()),
        "cudaLaunchKernel", place);
}

}  // namespace expar::inline v0::gpu::detail
