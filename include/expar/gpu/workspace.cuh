// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstddef>
#include <cstdint>

#include <expar/gpu/context.cuh>
#include <expar/gpu/detail/carver.cuh>

namespace expar::inline v0::gpu {

/// Device memory of the caller's as the memory of a context: what is made with the context, and
/// what its operations need while they run, stands in these bytes, and nothing is allocated.
/// Throws where they do not suffice. What is given back in the reverse order of taking is given out
/// again, anything else once all is given back: so operations and objects come and go like calls
/// and their variables. For contexts of one stream, on one host thread.
class workspace_memory {
 public:
  /// `p` is a multiple of 256, as what cudaMalloc gives, and outlives the object.
  workspace_memory(void* p, std::size_t bytes) : base_(static_cast<std::byte*>(p)), bytes_(bytes) {
    expar::detail::expects(reinterpret_cast<std::uintptr_t>(p) % detail::memory_unit == 0,
                           "workspace: the address is ",
                           reinterpret_cast<std::uintptr_t>(p) % detail::memory_unit,
                           " bytes behind a multiple of ", detail::memory_unit);
  }
  workspace_memory(workspace_memory const&) = delete;

  void* allocate(cudaStream_t, std::size_t bytes) {
    std::size_t const left = taken_ < bytes_ ? bytes_ - taken_ : 0;
    expar::detail::expects(bytes <= left, "workspace: ", bytes, " bytes are needed, but of ",
                           bytes_, " bytes ", left, " are left");
    void* const p = base_ + taken_;
    taken_ += detail::whole_units(bytes);
    ++live_;
    return p;
  }
  void deallocate(cudaStream_t, void* p, std::size_t bytes) noexcept {
    auto const begin = static_cast<std::size_t>(static_cast<std::byte*>(p) - base_);
    if (--live_ == 0)
      taken_ = 0;
    else if (begin + detail::whole_units(bytes) == taken_)
      taken_ = begin;
  }

 private:
  std::byte* base_;
  std::size_t bytes_, taken_ = 0;
  int live_ = 0;
};

static_assert(stream_ordered_memory<workspace_memory>);

}  // namespace expar::inline v0::gpu
