// SPDX-License-Identifier: Apache-2.0
#include <cuda_runtime_api.h>

#include <cuda/stream_ref>

#include <expar/gpu/context.cuh>
#include <expar/gpu/permute/decode.cuh>
#include <expar/gpu/permute/encode.cuh>

#include <optional>

#include "gpu/device.cuh"
#include "support/catch.hpp"

namespace {

// Where it points, launches note the device that is current.
std::vector<int>* launches = nullptr;

int current_device() {
  int device = -1;
  expar_test::require_success(cudaGetDevice(&device));
  return device;
}
int devices() {
  int n = 0;
  expar_test::require_success(cudaGetDeviceCount(&n));
  return n;
}

struct by_name {
  cudaStream_t s;
  cudaStream_t stream() const { return s; }
};
struct by_conversion {
  cudaStream_t s;
  operator cudaStream_t() const { return s; }
};
struct queue_of_others {
  cudaStream_t handle;
};

/// Memory that notes the device on which it was asked.
struct noting_memory {
  std::vector<int> taken, returned;
  void* allocate(cudaStream_t stream, std::size_t bytes) {
    taken.push_back(current_device());
    return expar::gpu::pool_memory{}.allocate(stream, bytes);
  }
  void deallocate(cudaStream_t stream, void* p, std::size_t bytes) {
    returned.push_back(current_device());
    expar::gpu::pool_memory{}.deallocate(stream, p, bytes);
  }
};

}  // namespace

// Launches of this program pass here on their way to the runtime.
extern "C" cudaError_t CUDARTAPI cudaLaunchKernel(void const* kernel, dim3 grid, dim3 block,
                                                  void** arguments, std::size_t shared,
                                                  cudaStream_t stream) {
  using function = cudaError_t (*)(void const*, dim3, dim3, void**, std::size_t, cudaStream_t);
  static auto const next = reinterpret_cast<function>(dlsym(RTLD_NEXT, "cudaLaunchKernel"));
  if (launches != nullptr) launches->push_back(current_device());
  return next(kernel, grid, block, arguments, shared, stream);
}

template <>
struct expar::gpu::stream_traits<queue_of_others> {
  static cudaStream_t stream(queue_of_others const& q) { return q.handle; }
};

TEST_CASE("a context takes a raw stream and what gives one") {
  expar_test::own_stream const own;
  cudaStream_t const stream = own.get();
  using expar::gpu::context;
  CHECK(context(stream).stream() == stream);
  CHECK(context(own).stream() == stream);
  CHECK(context(by_name{stream}).stream() == stream);
  CHECK(context(by_conversion{stream}).stream() == stream);
  CHECK(context(queue_of_others{stream}).stream() == stream);
  CHECK(context(cuda::stream_ref(stream)).stream() == stream);
  noting_memory memory;
  CHECK(context(cuda::stream_ref(stream), memory).stream() == stream);
  context const first(own);
  context const copy(first);
  CHECK(copy.stream() == stream);
  CHECK(copy.device() == current_device());
  STATIC_REQUIRE_FALSE(std::is_constructible_v<context, int>);
  STATIC_REQUIRE_FALSE(std::is_constructible_v<context, std::nullptr_t>);
  STATIC_REQUIRE_FALSE(std::is_constructible_v<context, float>);
  STATIC_REQUIRE_FALSE(std::is_constructible_v<context, noting_memory>);
}

TEST_CASE("memory is a pair of calls in stream order") {
  using expar::gpu::stream_ordered_memory;
  STATIC_REQUIRE(stream_ordered_memory<expar::gpu::pool_memory>);
  STATIC_REQUIRE(stream_ordered_memory<noting_memory>);
  STATIC_REQUIRE_FALSE(stream_ordered_memory<int>);
  STATIC_REQUIRE_FALSE(stream_ordered_memory<by_name>);
}

TEST_CASE("a device guard restores the device, whatever happens") {
  using expar::gpu::detail::device_guard;
  int const before = current_device(), last = devices() - 1;
  {
    device_guard const here(last, "test");
    CHECK(current_device() == last);
    {
      device_guard const again(before, "test");
      CHECK(current_device() == before);
    }
    CHECK(current_device() == last);
  }
  CHECK(current_device() == before);
  REQUIRE_THROWS_AS(device_guard(1 << 20, "test"), expar::cuda_error);
  CHECK(current_device() == before);
  {
    device_guard const nowhere(1 << 20, std::nothrow);
    CHECK(current_device() == before);
  }
  CHECK(current_device() == before);
  static_cast<void>(cudaGetLastError());
}

TEST_CASE("everything is done on the device of the context, whatever the current one is") {
  int const there = devices() - 1, here = 0;  // one device is both
  if (there == here) WARN("there is one device: no other can be the current one");
  auto const on_its_device = [&](auto f) {
    expar::gpu::detail::device_guard const guard(there, "test");
    f();
  };
  expar_test::require_success(cudaSetDevice(here));
  std::optional<expar_test::own_stream> stream;
  std::optional<expar_test::device_array<std::int32_t>> ids;
  std::optional<expar_test::device_array<float>> tokens, rows, out, weights;
  std::optional<expar::gpu::context> made;
  noting_memory memory;
  std::vector<float> const x{10, 11, 20, 21, 30, 31}, w{1, 2, 4};
  on_its_device([&] {
    stream.emplace();
    ids.emplace(std::vector<std::int32_t>{1, 0, 1});
    tokens.emplace(x);
    weights.emplace(w);
    rows.emplace(std::vector<float>(6));
    out.emplace(std::vector<float>(6));
    made.emplace(*stream, memory);
  });
  expar::gpu::context const ctx = *made;
  REQUIRE(ctx.device() == there);
  std::vector<int> launched;
  launches = &launched;
  {
    auto const plan = expar::gpu::make_plan(ctx, expar::make_view(ids->data(), 3, 1), 2);
    REQUIRE(current_device() == here);
    expar::gpu::encode(ctx, plan, expar::make_view(tokens->data(), 3, 2),
                       expar::make_view(rows->data(), 3, 2));
    expar::gpu::decode(ctx, plan, expar::make_view(rows->data(), 3, 2),
                       expar::make_view(weights->data(), 3, 1),
                       expar::make_view(out->data(), 3, 2));
    REQUIRE(current_device() == here);
    auto const sums = expar::gpu::read_sync(ctx, plan);
    REQUIRE(sums.counts == std::vector<expar::index_t>{1, 2});
    REQUIRE(current_device() == here);
    REQUIRE_THROWS_AS(expar::gpu::make_plan(ctx, expar::make_view(ids->data(), 3, 1), 0),
                      expar::error);
    REQUIRE(current_device() == here);
  }
  launches = nullptr;
  REQUIRE(current_device() == here);
  CHECK(launched == std::vector<int>(3, there));
  CHECK(memory.taken == std::vector<int>(memory.taken.size(), there));
  CHECK(memory.returned == memory.taken);
  CHECK(!memory.taken.empty());
  on_its_device([&] {
    stream->wait();
    CHECK(rows->read() == std::vector<float>{20, 21, 10, 11, 30, 31});
    CHECK(out->read() == std::vector<float>{10, 11, 40, 42, 120, 124});
    made.reset(), stream.reset(), ids.reset();
    tokens.reset(), rows.reset(), out.reset(), weights.reset();
  });
}
