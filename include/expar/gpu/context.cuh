// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <concepts>
#include <cstddef>

#include <expar/gpu/detail/device.cuh>
#include <expar/gpu/error.cuh>
#include <expar/tensor.hpp>

namespace expar::inline v0::gpu {

/// Memory in stream order: what was deallocated on a stream may be given out again to later work on
/// that stream. Addresses are multiples of 256.
template <class M>
concept stream_ordered_memory = requires(M& m, cudaStream_t stream, void* p, std::size_t bytes) {
  { m.allocate(stream, bytes) } -> std::same_as<void*>;
  m.deallocate(stream, p, bytes);
};

/// The pool of the device, by cudaMallocAsync.
struct pool_memory {
  void* allocate(cudaStream_t stream, std::size_t bytes) const {
    void* p = nullptr;
    detail::check(cudaMallocAsync(&p, bytes, stream), "cudaMallocAsync", "allocate");
    return p;
  }
  void deallocate(cudaStream_t stream, void* p, std::size_t) const noexcept {
    static_cast<void>(cudaFreeAsync(p, stream));
  }
};

/// The stream of a type S of others that has neither get() nor stream(): a specialization gives it
/// by `static cudaStream_t stream(S const&)`. expar/interop/thrust.cuh has the one for execution
/// policies of Thrust.
template <class S>
struct stream_traits;

namespace detail {

template <class S>
concept stream_by_get = requires(S const& s) {
  { s.get() } -> std::convertible_to<cudaStream_t>;
};
template <class S>
concept stream_by_name = requires(S const& s) {
  { s.stream() } -> std::convertible_to<cudaStream_t>;
};
template <class S>
concept stream_by_traits = requires(S const& s) {
  { stream_traits<S>::stream(s) } -> std::same_as<cudaStream_t>;
};
/// A stream: a raw one, or a type that gives one by get(), by stream() or by stream_traits.
template <class S>
concept stream_like = std::convertible_to<S const&, cudaStream_t> || stream_by_get<S> ||
    stream_by_name<S> || stream_by_traits<S>;

template <stream_like S>
cudaStream_t stream_of(S const& s) {
  if constexpr (std::convertible_to<S const&, cudaStream_t>)
    return s;
  else if constexpr (stream_by_get<S>)
    return s.get();
  else if constexpr (stream_by_name<S>)
    return s.stream();
  else
    return stream_traits<S>::stream(s);
}

}  // namespace detail

/// Where device work runs: the caller's stream, and a memory resource. Operations only enqueue
/// work; nothing waits for the device unless its name ends in _sync. The stream is one of the
/// device that is current when the context is made. Whatever is done with the context later is done
/// on that device, and leaves the caller's current device as it was. The stream and the resource
/// outlive the context and everything made with it. Copies share both.
///
/// Without a resource, or with one of a pool, operations take what memory they need; with a
/// workspace_memory (gpu/workspace.cuh) they do with the bytes of the caller. Where an operation
/// needs any, a function beside it tells how many: plan_workspace_bytes(),
/// gate_plan_workspace_bytes(), route_workspace_bytes(), route_backward_workspace_bytes().
class context {
 public:
  static constexpr memory_space space = memory_space::device;

  /// Takes memory from the pool of the device.
  template <detail::stream_like Stream>
  requires(!std::same_as<Stream, context>) explicit context(Stream const& stream)
      : stream_(detail::stream_of(stream)), device_(detail::current_device("context")) {}
  /// Takes memory from `memory`.
  template <detail::stream_like Stream, stream_ordered_memory Memory>
  context(Stream const& stream, Memory& memory)
      : stream_(detail::stream_of(stream)),
        device_(detail::current_device("context")),
        memory_(&memory),
        allocate_([](void* m, cudaStream_t s, std::size_t n) {
          return static_cast<Memory*>(m)->allocate(s, n);
        }),
        deallocate_([](void* m, cudaStream_t s, void* p, std::size_t n) {
          static_cast<Memory*>(m)->deallocate(s, p, n);
        }) {}
  /// A device has no default stream here: name one.
  context(int) = delete;
  context(std::nullptr_t) = delete;

  cudaStream_t stream() const noexcept { return stream_; }
  int device() const noexcept { return device_; }

  void* allocate(std::size_t bytes) const {
    detail::device_guard const here(device_, "allocate");
    return memory_ != nullptr ? allocate_(memory_, stream_, bytes)
                              : pool_memory{}.allocate(stream_, bytes);
  }
  void deallocate(void* p, std::size_t bytes) const {
    detail::device_guard const here(device_, std::nothrow);
    if (memory_ != nullptr)
      deallocate_(memory_, stream_, p, bytes);
    else
      pool_memory{}.deallocate(stream_, p, bytes);
  }

 private:
  cudaStream_t stream_;
  int device_;
  void* memory_ = nullptr;
  void* (*allocate_)(void*, cudaStream_t, std::size_t) = nullptr;
  void (*deallocate_)(void*, cudaStream_t, void*, std::size_t) = nullptr;
};

}  // namespace expar::inline v0::gpu
