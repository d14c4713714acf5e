// SPDX-License-Identifier: Apache-2.0
#include <expar/interop/thrust.cuh>

#include <utility>
#include <vector>

#include <expar/gpu/permute/encode.cuh>
#include <expar/gpu/permute/weights.cuh>

#include "gpu/device.cuh"
#include "support/catch.hpp"

namespace {

// A tensor of the reader's own that owns device memory.
struct device_matrix {
  int rows, columns;
  thrust::device_vector<float> entries;
};

}  // namespace

template <>
struct expar::tensor_traits<device_matrix> {
  static constexpr memory_space space = memory_space::device;
  static auto view(auto& m) {
    return make_view(thrust::raw_pointer_cast(m.entries.data()), m.rows, m.columns);
  }
};

TEST_CASE("a device vector is a tensor of rank 1 in device memory") {
  using vector = thrust::device_vector<float>;
  STATIC_REQUIRE(expar::tensor<vector, 1>);
  STATIC_REQUIRE(expar::tensor<vector const&, 1>);
  STATIC_REQUIRE_FALSE(expar::tensor<vector, 2>);
  STATIC_REQUIRE(expar::detail::space_of<vector>() == expar::memory_space::device);
  vector v(5);
  auto const view = expar::tensor_traits<vector>::view(v);
  STATIC_REQUIRE(std::is_same_v<decltype(view), expar::tensor_view<float, 1> const>);
  CHECK(view.data == thrust::raw_pointer_cast(v.data()));
  CHECK(view.extents[0] == 5);
  auto const read_only = expar::tensor_traits<vector>::view(std::as_const(v));
  STATIC_REQUIRE(std::is_same_v<decltype(read_only), expar::tensor_view<float const, 1> const>);
  CHECK(read_only.data == view.data);
}

TEST_CASE("device vectors and a device tensor of one's own go in and out") {
  expar_test::own_stream const stream;
  expar::gpu::context const ctx(stream);
  // Tokens 10, 20, 30 to the experts 1, 0, 1: rows 20, 10, 30.
  std::vector<std::int32_t> const experts{1, 0, 1};
  thrust::device_vector<std::int32_t> const ids(experts.begin(), experts.end());
  auto const plan =
      expar::gpu::make_plan(ctx, expar::make_view(thrust::raw_pointer_cast(ids.data()), 3, 1), 2);
  std::vector<float> const values{10, 11, 20, 21, 30, 31}, w{1, 2, 3};
  device_matrix const tokens{3, 2, {values.begin(), values.end()}};
  device_matrix const weights{3, 1, {w.begin(), w.end()}};
  device_matrix rows{3, 2, thrust::device_vector<float>(6)};
  thrust::device_vector<float> row_weights(3), alone(3);
  expar::gpu::encode(ctx, plan, tokens, weights, rows, row_weights);
  expar::gpu::encode_weights(ctx, plan, weights, alone);
  stream.wait();
  auto const read = [](auto const& v) {
    std::vector<float> to(v.size());
    thrust::copy(v.begin(), v.end(), to.begin());
    return to;
  };
  CHECK(read(rows.entries) == std::vector<float>{20, 21, 10, 11, 30, 31});
  CHECK(read(row_weights) == std::vector<float>{2, 1, 3});
  CHECK(read(alone) == std::vector<float>{2, 1, 3});
}

TEST_CASE("an execution policy that names a stream is a stream") {
  expar_test::own_stream const own;
  cudaStream_t const stream = own.get();
  using expar::gpu::context;
  CHECK(context(thrust::cuda::par.on(stream)).stream() == stream);
  CHECK(context(thrust::cuda::par_nosync.on(stream)).stream() == stream);
  thrust::device_allocator<char> allocator;
  CHECK(context(thrust::cuda::par(allocator).on(stream)).stream() == stream);
  STATIC_REQUIRE_FALSE(std::is_constructible_v<context, decltype(thrust::cuda::par)>);
  STATIC_REQUIRE_FALSE(std::is_constructible_v<context, decltype(thrust::cuda::par_nosync)>);
  STATIC_REQUIRE_FALSE(std::is_constructible_v<context, thrust::device_vector<float>>);
}
